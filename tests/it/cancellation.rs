//! Futures that are dropped leave nothing half done in a pool.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use futures_util::FutureExt;

use crate::support::{
    Number, blocking, builder, cluster, count, database, eventually, insert, run, who,
};

/// Polls a future this many times and drops it.
async fn poll_and_drop<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        if let Some(output) = (&mut future).now_or_never() {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test]
async fn a_transaction_dropped_at_any_point_leaks_nothing() {
    let database = database().await;
    let pool = builder(&database).max_size(2).build().await.unwrap();
    let mut completed = 0;
    for polls in 0..60 {
        let mut conn = pool.get().await.unwrap();
        let name = format!("Dropped {polls}");
        let work = conn.transaction(async |conn| {
            insert(&name).execute(conn).await?;
            conn.transaction(async |conn| count(conn).map(QueryResult::Ok).await)
                .await?;
            QueryResult::Ok(())
        });
        let finished = poll_and_drop(work, polls).await.is_some();
        drop(conn);
        completed += usize::from(finished);
        // Whatever happened, the next session has a sound connection.
        let mut conn = pool.get().await.unwrap();
        assert_ne!(who(&mut conn.replica()).await, "primary");
        let savepoint = run(&mut conn.primary(), "SAVEPOINT outside")
            .await
            .unwrap_err();
        assert!(
            savepoint.to_string().contains("transaction blocks"),
            "{savepoint}"
        );
    }
    let mut conn = pool.get().await.unwrap();
    let rows = count(&mut conn.primary()).await;
    assert!(rows >= 3 + i64::try_from(completed).unwrap());
}

#[tokio::test]
async fn statements_dropped_at_any_point_leave_the_session_usable() {
    let database = database().await;
    let pool = builder(&database).max_size(2).build().await.unwrap();
    for polls in 0..30 {
        let mut conn = pool.get().await.unwrap();
        let read = poll_and_drop(who(&mut conn.replica()), polls).await;
        assert_ne!(read.as_deref(), Some("primary"));
        assert_ne!(who(&mut conn.replica()).await, "primary");
        let name = format!("{polls}");
        let written = poll_and_drop(insert(&name).execute(&mut conn), polls).await;
        let after = count(&mut conn).await;
        if written.is_some() {
            assert!(after >= 4);
        }
    }
}

#[tokio::test]
async fn a_connection_in_the_middle_of_a_command_goes_to_nobody() {
    let database = database().await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let slow = sql_query("SELECT 1 AS number FROM pg_sleep(30)");
    let timed_out = tokio::time::timeout(
        Duration::from_millis(100),
        slow.get_result::<Number>(&mut conn),
    )
    .await;
    assert!(timed_out.is_err());
    // The same session reads on over another connection; the next gets one at once.
    assert_ne!(who(&mut conn.replica()).await, "primary");
    drop(conn);
    let mut next = pool.get().await.unwrap();
    assert_ne!(who(&mut next.replica()).await, "primary");
}

#[tokio::test]
async fn a_token_cancels_whatever_runs() {
    let database = database().await;
    let pool = builder(&database).build().await.unwrap();
    for on_primary in [false, true] {
        let mut conn = pool.get().await.unwrap();
        let token = conn.cancel_token();
        token.cancel().await.unwrap();
        let running = tokio::spawn(async move {
            let slow = || sql_query("SELECT 1 AS number FROM pg_sleep(30)");
            let result: QueryResult<Number> = if on_primary {
                slow().get_result(&mut conn.primary()).await
            } else {
                slow().get_result(&mut conn).await
            };
            (result.map(|number| number.number), conn)
        });
        let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%pg_sleep(30)%' AND state = 'active'";
        eventually("it runs", || async {
            blocking(|| {
                cluster()
                    .nodes()
                    .any(|node| node.sql("postgres", query).unwrap()[0][0].as_deref() != Some("0"))
            })
            .await
        })
        .await;
        // As with the token of diesel-async's own connection, to which a connector is given.
        token.cancel_query(()).await.unwrap();
        let (result, mut conn) = running.await.unwrap();
        let error = result.unwrap_err();
        assert!(error.to_string().contains("cancel"), "{error}");
        run(&mut conn, "SELECT 1").await.unwrap();
    }
}
