//! How many times a statement goes over the ocean: each way takes so long here that nothing else counts.

use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::{Builder, MultiPrimaryPool, NodeConfig, ReplicatedConnection};

use crate::support::groups;

diesel::table! { counters (key) { key -> Text, count -> BigInt, } }

const WAY: Duration = Duration::from_millis(100);

async fn delete(conn: &mut ReplicatedConnection) -> QueryResult<usize> {
    // Diesel keeps what it has prepared for it, which it does not for an update.
    diesel::delete(counters::table.find("ada"))
        .execute(conn)
        .await
}

/// So many whole trips there and back.
fn trips(began: Instant) -> u128 {
    began.elapsed().as_millis() / (2 * WAY).as_millis()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_takes_two_trips_and_each_statement_of_a_transaction_one() {
    let groups = groups(&["eu", "us"]);
    let us = groups.group("us").unwrap().primary();
    let far = NodeConfig::new(us.proxied_url("app").unwrap());
    let pool = MultiPrimaryPool::builder()
        .group("eu", Builder::from_url(&groups.url("eu")).unwrap())
        .group("us", Builder::default().node(far))
        .build()
        .await
        .unwrap();
    pool.place("ada", "us").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    delete(&mut conn).await.unwrap();
    us.proxy().unwrap().delay(WAY);
    // The least of several: others work on this machine, too.
    let (mut write, mut transaction) = (u128::MAX, u128::MAX);
    for _ in 0..8 {
        let began = Instant::now();
        delete(&mut conn).await.unwrap();
        write = write.min(trips(began));
        let began = Instant::now();
        conn.transaction(async |conn| delete(conn).await)
            .await
            .unwrap();
        transaction = transaction.min(trips(began));
        if (write, transaction) == (2, 3) {
            break;
        }
    }
    assert_eq!((write, transaction), (2, 3));
}
