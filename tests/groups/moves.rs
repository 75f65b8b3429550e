//! Keys that move while others write.

use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::{ErrorExt, Outcome, RetryPolicy};

use crate::support::{SUM, groups, number, pool, rows, write};

/// The snapshot of such a transaction is older than the lock that its write waits for: citus 1303 and others ask what a
/// move does to what is under way.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_snapshot_is_older_than_the_move_writes_nothing_at_the_old_home() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let eu = groups.group("eu").unwrap().primary();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        // With the key at home, and with a snapshot from before.
        let conn = pool.group("eu").unwrap().get().await.unwrap();
        let mut conn = conn;
        let begin = format!("BEGIN ISOLATION LEVEL {level}");
        conn.batch_execute(&begin).await.unwrap();
        assert_eq!(number(&mut conn, SUM).await.unwrap(), 0);
        pool.move_home(["ada"], "us").await.unwrap();
        let error = sql_query("SELECT diesel_replicated.at_home('ada')");
        let error = error.execute(&mut conn).await.unwrap_err();
        assert!(error.to_string().contains("serialize"), "{error}");
        conn.batch_execute("ROLLBACK").await.unwrap();
        pool.move_home(["ada"], "eu").await.unwrap();
    }
    assert_eq!(rows(eu, "SELECT home FROM diesel_replicated.homes"), "eu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_waits_for_a_transaction_and_no_longer_than_it_may() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "us").await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    let moving = conn
        .transaction(async |conn| {
            write(conn, 1, "ada").await?;
            let moving = tokio::spawn({
                let pool = pool.clone();
                async move { pool.move_home(["ada"], "us").await }
            });
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!moving.is_finished());
            write(conn, 2, "ada").await?;
            QueryResult::Ok(moving)
        })
        .await
        .unwrap();
    let moved = moving.await.unwrap().unwrap();
    assert_eq!(moved[0].to.group, "us");
    // What the transaction wrote is at the new home before anything else is.
    assert_eq!(write(&mut conn, 3, "ada").await.unwrap(), 1);
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_moves_to_different_homes_at_once_each_key_has_one_home_at_the_end() {
    let groups = groups(&["eu", "us", "ap"]);
    let mut pools = Vec::new();
    for name in ["eu", "us", "ap"] {
        pools.push(pool(&groups, name).await);
    }
    pools[0].place("ada", "eu").await.unwrap();
    let mut moving = tokio::task::JoinSet::new();
    for (at, pool) in pools.iter().enumerate() {
        for to in ["eu", "us", "ap"] {
            let pool = pool.clone();
            moving.spawn(async move {
                pool.move_home(["ada"], to).await.unwrap();
                let mut conn = pool.for_key("ada").await.unwrap();
                write(&mut conn, i64::try_from(at).unwrap(), "ada")
                    .await
                    .unwrap();
            });
        }
    }
    moving.join_all().await;
    groups.wait_applied().unwrap();
    let home = pools[0].home("ada").await.unwrap().unwrap();
    assert!(home.settled);
    for name in groups.names() {
        let primary = groups.group(name).unwrap().primary();
        assert_eq!(
            rows(primary, "SELECT home FROM diesel_replicated.homes"),
            home.group
        );
        assert_eq!(rows(primary, "SELECT sum(n) FROM notes"), "9");
    }
}

/// influxdb's, couchdb's and qdrant's users write of moves that nobody finishes (couchdb 3865).
#[tokio::test(flavor = "multi_thread")]
async fn a_move_whose_maker_is_gone_is_finished_by_whoever_writes() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let eu = groups.group("eu").unwrap().primary();
    rows(eu, "SELECT diesel_replicated.move_home('ada', 'us', 1000)");
    let mut conn = pool.for_key("ada").await.unwrap();
    assert_eq!(write(&mut conn, 1, "ada").await.unwrap(), 1);
    assert_eq!(conn.last_route().unwrap().group.as_deref(), Some("us"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_not_move_to_a_group_that_does_not_apply() {
    let groups = groups(&["eu", "us"]);
    let pool = crate::support::pool_that_waits(&groups, "eu", Duration::from_millis(500)).await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    groups.cable("eu", "us").unwrap().cut();
    write(&mut conn, 1, "ada").await.unwrap();
    let error = pool.move_home(["ada"], "us").await.unwrap_err();
    assert!(error.to_string().contains("nothing was moved"), "{error}");
    write(&mut conn, 1, "ada").await.unwrap();
    groups.cable("eu", "us").unwrap().heal();
}

/// As above, but the cable is cut when the key has left its home: its writes wait, and say so.
#[tokio::test(flavor = "multi_thread")]
async fn writes_of_a_key_that_is_stuck_on_its_way_say_that_nothing_ran() {
    let groups = groups(&["eu", "us"]);
    let pool = crate::support::pool_that_waits(&groups, "eu", Duration::from_millis(500)).await;
    pool.place("ada", "eu").await.unwrap();
    groups.cable("eu", "us").unwrap().cut();
    let eu = groups.group("eu").unwrap().primary();
    rows(eu, "SELECT diesel_replicated.move_home('ada', 'us', 1000)");
    let mut conn = pool.for_key("ada").await.unwrap();
    let error = write(&mut conn, 1, "ada").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    assert!(error.to_string().contains("on its way"), "{error}");
    groups.cable("eu", "us").unwrap().heal();
    while write(&mut conn, 1, "ada").await.is_err() {
        crate::support::pause().await;
    }
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_retried_goes_on_at_the_new_home() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    let mut moves = tokio::spawn({
        let pool = pool.clone();
        async move {
            for to in ["us", "eu", "us", "eu", "us"] {
                pool.move_home(["ada"], to).await.unwrap();
            }
        }
    });
    let mut written = 0;
    while !moves.is_finished() || written == 0 {
        let builder = &mut conn.build_transaction().serializable();
        let written_now = builder.retry(RetryPolicy::default(), async |conn| {
            number(conn, SUM).await?;
            write(conn, 1, "ada").await
        });
        written += i64::try_from(written_now.await.unwrap()).unwrap();
    }
    (&mut moves).await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_go_along_with_a_key_that_moves_and_other_state_is_missed_aloud() {
    let groups = groups(&["eu", "us"]);
    for name in groups.names() {
        let primary = groups.group(name).unwrap().primary();
        let schema =
            "CREATE SCHEMA other; CREATE TABLE other.notes (LIKE public.notes INCLUDING ALL)";
        primary.sql("app", schema).unwrap();
    }
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    conn.batch_execute("SET search_path = other, public")
        .await
        .unwrap();
    write(&mut conn, 1, "ada").await.unwrap();
    pool.move_home(["ada"], "us").await.unwrap();
    write(&mut conn, 2, "ada").await.unwrap();
    assert_eq!(conn.last_route().unwrap().group.as_deref(), Some("us"));
    let us = groups.group("us").unwrap().primary();
    assert_eq!(
        rows(us, "SELECT count(*) FROM other.notes WHERE id = 2"),
        "1"
    );
    conn.batch_execute("CREATE TEMP TABLE kept (id int)")
        .await
        .unwrap();
    pool.move_home(["ada"], "eu").await.unwrap();
    let error = write(&mut conn, 3, "ada").await.unwrap_err();
    assert!(error.to_string().contains("temporary tables"), "{error}");
    assert_eq!(error.outcome(), Outcome::NotRun);
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 3, "ada").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_around_the_question_is_refused() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    conn.primary_connection().await.map(drop).unwrap_err();
    let none = conn.wait_for_replicas(
        diesel_replicated::connection::Replicas::All,
        diesel_replicated::connection::Stage::Applied,
        Duration::from_secs(1),
    );
    none.await.map(drop).unwrap_err();
    let news =
        futures_util::StreamExt::next(&mut std::pin::pin!(conn.notifications_stream())).await;
    assert!(news.unwrap().unwrap_err().to_string().contains("group"));
    conn.batch_execute("BEGIN").await.unwrap();
    let chain = conn.batch_execute("COMMIT AND CHAIN").await.unwrap_err();
    assert_eq!(chain.outcome(), Outcome::NotRun);
    conn.batch_execute("ROLLBACK").await.unwrap();
    write(&mut conn, 1, "ada").await.unwrap();
    // A view of the primary is one of the home's, and asks it.
    assert_eq!(number(&mut conn.primary(), SUM).await.unwrap(), 1);
    assert_eq!(conn.last_route().unwrap().group.as_deref(), Some("us"));
    pool.move_home(["ada"], "eu").await.unwrap();
    let other = crate::support::pool(&groups, "us").await;
    let mut there = other.for_key("ada").await.unwrap();
    write(&mut there, 1, "ada").await.unwrap();
    assert_eq!(number(&mut conn.primary(), SUM).await.unwrap(), 2);
}
