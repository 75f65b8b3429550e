//! Which pool may be waited for, and while holding what.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::RunQueryDsl;
use diesel_replicated::status::RouteReason;
use diesel_replicated::{Builder, Error, NodeConfig, ReplicatedConnection, ReplicatedPool};

use crate::support::{
    Number, blocking, cluster, count, database, eventually, insert, run, users, who,
};

/// One connection to the primary and one to one replica.
async fn two_connections() -> Builder {
    let database = database().await;
    let node = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url(&database)).name(node.name())
    };
    ReplicatedPool::builder()
        .primary(node(cluster().primary()))
        .replica(node(&cluster().replicas()[0]))
        .max_size(1)
        .connection_timeout(Duration::from_secs(20))
}

async fn read(mut conn: &ReplicatedConnection) -> QueryResult<i64> {
    users::table.count().get_result(&mut conn).await
}

async fn write(mut conn: &ReplicatedConnection, name: &str) -> QueryResult<usize> {
    let row = users::name.eq(name.to_owned());
    diesel::insert_into(users::table)
        .values(row)
        .execute(&mut conn)
        .await
}

#[tokio::test]
async fn sessions_that_read_and_write_at_once_do_not_wait_for_each_other_in_a_circle() {
    let pool = two_connections().await.build().await.unwrap();
    let mut holder = pool.get().await.unwrap();
    assert_ne!(who(&mut holder).await, "primary");
    let sessions: Vec<_> = (0..4)
        .map(|place| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let conn = pool.get().await.unwrap();
                let name = format!("s{place}");
                // Half of them ask for the replica first, the others for the primary.
                if place % 2 == 0 {
                    futures_util::future::join(read(&conn), write(&conn, &name)).await
                } else {
                    let (wrote, read) =
                        futures_util::future::join(write(&conn, &name), read(&conn)).await;
                    (read, wrote)
                }
            })
        })
        .collect();
    eventually(
        "one of them waits for the replica, or all are done",
        || async {
            sessions.iter().any(tokio::task::JoinHandle::is_finished)
                || pool.status().node("replica-1").unwrap().in_flight == 0
        },
    )
    .await;
    drop(holder);
    for session in sessions {
        let (read, wrote) = session.await.unwrap();
        assert!(read.unwrap() >= 3);
        assert_eq!(wrote.unwrap(), 1);
    }
}

#[tokio::test]
async fn who_holds_the_primary_and_insists_on_a_replica_is_told_that_all_are_busy() {
    let pool = two_connections().await.build().await.unwrap();
    let mut holder = pool.get().await.unwrap();
    assert_eq!(who(&mut holder).await, "replica-1");
    let mut conn = pool.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    let error = users::table
        .count()
        .get_result::<i64>(&mut conn.replica())
        .await
        .unwrap_err();
    let busy = Error::ReplicasBusy { nodes: vec![] }.to_string();
    assert!(
        error
            .to_string()
            .starts_with(busy.split(';').next().unwrap()),
        "{error}"
    );
}

#[tokio::test]
async fn session_state_is_refused_where_it_would_be_lost() {
    let pool = two_connections()
        .await
        .read_only_transactions_on_replicas(true)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let set = sql_query("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY");
    let error = set.clone().execute(&mut conn.replica()).await.unwrap_err();
    assert!(error.to_string().contains("SET LOCAL"), "{error}");
    conn.build_transaction()
        .read_only()
        .run(async |conn| {
            assert_eq!(who(conn).await, "replica-1");
            let error = set.execute(conn).await.unwrap_err();
            assert!(error.to_string().contains("SET LOCAL"), "{error}");
            run(conn, "SET LOCAL application_name = 'kept'").await?;
            let kept =
                sql_query("SELECT 1 AS number WHERE current_setting('application_name') = 'kept'");
            kept.get_result::<Number>(conn).await
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_primary_that_takes_reads_and_fails_leaves_them_to_the_replicas() {
    let database = database().await;
    // Port 1 of the loopback refuses everybody.
    let dead = "postgres://postgres@127.0.0.1:1/app";
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(dead).name("dead").weight(9))
        .replica(NodeConfig::new(cluster().replicas()[0].url(&database)).name("replica-1"))
        .start_read_only(true)
        .build()
        .await
        .unwrap();
    for _ in 0..30 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(who(&mut conn).await, "replica-1");
    }
}

#[tokio::test]
async fn a_removed_replica_keeps_no_connection() {
    let database = database().await;
    let app = format!("removed_{database}");
    let replica = &cluster().replicas()[0];
    let url = format!("{}?application_name={app}", replica.url(&database));
    let pool = ReplicatedPool::builder()
        .primary(cluster().primary().url(&database))
        .replica(NodeConfig::new(url).name("leaves").weight(1000))
        .replica(cluster().replicas()[1].url(&database))
        .read_only_transactions_on_replicas(true)
        .build()
        .await
        .unwrap();
    let mut reader = pool.get().await.unwrap();
    run(&mut reader, "BEGIN READ ONLY").await.unwrap();
    count(&mut reader).await;
    assert_eq!(reader.last_route().unwrap().node, "leaves");
    let removing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.remove_replica("leaves").await }
    });
    eventually("it is out", || async {
        pool.status().node("leaves").is_none()
    })
    .await;
    assert_eq!(count(&mut reader).await, 3, "the transaction goes on");
    assert!(!removing.is_finished(), "it waits for the transaction");
    run(&mut reader, "COMMIT").await.unwrap();
    removing.await.unwrap().unwrap();
    assert_eq!(count(&mut reader).await, 3);
    assert_eq!(
        reader.last_route().unwrap().reason,
        RouteReason::PlainSelect
    );
    eventually("its connections are closed", || {
        let count =
            format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{app}'");
        async move {
            blocking(move || replica.sql("postgres", &count).unwrap()[0][0].as_deref() == Some("0"))
                .await
        }
    })
    .await;
}
