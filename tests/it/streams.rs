//! Row streams hold their connection until they end, and give it back sound.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Integer;
use diesel_async::RunQueryDsl;
use futures_util::{StreamExt, TryStreamExt};

use crate::support::{Number, builder, count, database, eventually, insert, pool, process, users};

const MANY: &str = "SELECT generate_series(1, $1) AS number";

#[tokio::test]
async fn rows_come_one_by_one() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let names: Vec<String> = users::table
        .select(users::name)
        .order(users::id)
        .load_stream::<String>(&mut conn)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(names, ["Ada", "Grace", "Edsger"]);
}

#[tokio::test]
async fn a_stream_outlives_its_connection() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let mut rows = sql_query(MANY)
        .bind::<Integer, _>(200_000)
        .load_stream::<Number>(&mut conn)
        .await
        .unwrap();
    assert_eq!(rows.next().await.unwrap().unwrap().number, 1);
    let server = conn.last_route().unwrap().node;
    drop(conn);
    assert_eq!(pool.status().node(&server).unwrap().idle_connections, 0);
    let rest = rows
        .try_fold(0, async |count, _| Ok(count + 1))
        .await
        .unwrap();
    assert_eq!(rest, 199_999);
    eventually("the connection is back", || async {
        pool.status().node(&server).unwrap().idle_connections == 1
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_dropped_early_blocks_nobody() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    for _ in 0..5 {
        let mut conn = pool.get().await.unwrap();
        let mut rows = sql_query(MANY)
            .bind::<Integer, _>(3_000_000)
            .load_stream::<Number>(&mut conn)
            .await
            .unwrap();
        assert_eq!(rows.next().await.unwrap().unwrap().number, 1);
        drop(rows);
        drop(conn);
        let mut next = pool.get().await.unwrap();
        assert_eq!(count(&mut next).await, 3);
        drop(next);
    }
    assert!(pool.status().nodes.iter().all(|node| node.connections <= 1));
}

#[tokio::test]
async fn a_write_beside_an_open_stream_of_a_replica_does_not_deadlock() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let mut rows = sql_query(MANY)
        .bind::<Integer, _>(100_000)
        .load_stream::<Number>(&mut conn)
        .await
        .unwrap();
    assert_ne!(conn.last_route().unwrap().node, "primary");
    assert_eq!(rows.next().await.unwrap().unwrap().number, 1);
    insert("Beside").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    assert_eq!(rows.count().await, 99_999);
}

#[tokio::test]
async fn first_and_get_result_give_the_connection_back_whole() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let mut backends = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let mut conn = pool.get().await.unwrap();
        let name: String = users::table
            .select(users::name)
            .first(&mut conn)
            .await
            .unwrap();
        assert!(!name.is_empty());
        backends.insert(process(&mut conn).await.unwrap());
    }
    assert_eq!(backends.len(), 1, "no connection was thrown away");
}
