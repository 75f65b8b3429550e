//! Where statements go, and what they see.

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};

use crate::support::{SUM, groups, number, pool, route, rows, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_written_at_home_and_read_where_it_is_near() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    let home = pool.place("ada", "us").await.unwrap();
    assert_eq!((home.group.as_str(), home.settled), ("us", true));
    let mut conn = pool.for_key("ada").await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 0);
    assert_eq!(route(&conn).0, "eu");
    assert_eq!(write(&mut conn, 1, "ada").await.unwrap(), 1);
    assert_eq!(route(&conn), ("us".to_owned(), "primary".to_owned()));
    // At once, wherever it runs.
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
    // When the local group has it, it serves.
    while route(&conn).0 != "eu" {
        crate::support::pause().await;
        assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
    }
    let sum: i64 = conn
        .transaction(async |conn| {
            write(conn, 2, "ada").await?;
            number(conn, SUM).await
        })
        .await
        .unwrap();
    assert_eq!(sum, 2);
    assert_eq!(route(&conn).0, "us");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_believes_in_an_old_home_finds_the_new_one() {
    let groups = groups(&["eu", "us"]);
    let (eu, us) = (pool(&groups, "eu").await, pool(&groups, "us").await);
    eu.place("ada", "eu").await.unwrap();
    let mut here = eu.for_key("ada").await.unwrap();
    let mut there = us.for_key("ada").await.unwrap();
    write(&mut here, 1, "ada").await.unwrap();
    write(&mut there, 1, "ada").await.unwrap();
    let moved = eu.move_home(["ada"], "us").await.unwrap();
    println!("held {:?}", moved[0].held);
    write(&mut there, 1, "ada").await.unwrap();
    assert_eq!(route(&there).0, "us");
    write(&mut here, 1, "ada").await.unwrap();
    assert_eq!(route(&here).0, "us");
    assert_eq!(number(&mut here, SUM).await.unwrap(), 4);
    groups.wait_applied().unwrap();
    for name in groups.names() {
        let rows = groups
            .group(name)
            .unwrap()
            .primary()
            .sql("app", "SELECT n FROM notes");
        assert_eq!(rows.unwrap()[0][0].as_deref(), Some("4"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_key_writes_nothing() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "us").await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 0);
    let error = write(&mut conn, 1, "ada").await.unwrap_err();
    assert!(error.to_string().contains("for_key"), "{error}");
    let mut conn = pool.for_key("nobody").await.unwrap();
    let error = write(&mut conn, 1, "nobody").await.unwrap_err();
    assert!(error.to_string().contains("place"), "{error}");
    // What is near can be read all the same.
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_write_returns_come_when_it_is_committed() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    let insert =
        "INSERT INTO notes SELECT n, 'ada', 1 FROM generate_series(1, 3) n RETURNING id AS number";
    let ids: Vec<crate::support::Number> = sql_query(insert).load(&mut conn).await.unwrap();
    assert_eq!(
        ids.iter().map(|it| it.number).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    let us = groups.group("us").unwrap().primary();
    assert_eq!(rows(us, "SELECT count(*) FROM notes"), "3");
    // A deferred constraint fails at COMMIT: nothing may be handed out as done.
    us.sql(
        "app",
        "ALTER TABLE notes ADD UNIQUE (n, owner, id) DEFERRABLE INITIALLY DEFERRED",
    )
    .unwrap();
    us.sql(
        "app",
        "ALTER TABLE notes ADD CONSTRAINT once UNIQUE (owner) DEFERRABLE INITIALLY DEFERRED",
    )
    .unwrap_err();
    us.sql("app", "DELETE FROM notes; ALTER TABLE notes ADD CONSTRAINT once UNIQUE (owner) DEFERRABLE INITIALLY DEFERRED")
        .unwrap();
    let ids: QueryResult<Vec<crate::support::Number>> = sql_query(insert).load(&mut conn).await;
    assert!(ids.err().unwrap().to_string().contains("once"));
    assert_eq!(rows(us, "SELECT count(*) FROM notes"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_leaves_the_connection_as_it_was() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    let error = sql_query("INSERT INTO notes VALUES (1, NULL, 1)");
    let error = error.execute(&mut conn).await.unwrap_err();
    assert!(error.to_string().contains("null"), "{error}");
    assert_eq!(write(&mut conn, 1, "ada").await.unwrap(), 1);
    let failed: QueryResult<()> = conn
        .transaction(async |conn| {
            write(conn, 2, "ada").await?;
            Err(diesel::result::Error::RollbackTransaction)
        })
        .await;
    failed.unwrap_err();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
    // Within a savepoint.
    conn.transaction(async |conn| {
        write(conn, 3, "ada").await?;
        let inner: QueryResult<()> = conn
            .transaction(async |conn| {
                write(conn, 4, "ada").await?;
                Err(diesel::result::Error::RollbackTransaction)
            })
            .await;
        inner.unwrap_err();
        QueryResult::Ok(())
    })
    .await
    .unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_with_their_own_transactions_are_refused() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    for text in [
        "BEGIN; INSERT INTO notes VALUES (1, 'ada', 1); COMMIT; INSERT INTO notes VALUES (2, 'ada', 1)",
        "INSERT INTO notes VALUES (1, 'ada', 1); COMMIT; INSERT INTO notes VALUES (2, 'ada', 1)",
        "COMMIT; INSERT INTO notes VALUES (2, 'ada', 1)",
    ] {
        let error = conn.batch_execute(text).await.unwrap_err();
        assert!(error.to_string().contains("guarded"), "{error}");
    }
    let two = "INSERT INTO notes VALUES (1, 'ada', 1); INSERT INTO notes VALUES (2, 'ada', 1)";
    conn.batch_execute(two).await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_transaction_near_stays_read_only() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    let mut builder = conn.build_transaction().read_only();
    let sum = builder.run(async |conn| number(conn, SUM).await);
    assert_eq!(sum.await.unwrap(), 0);
    assert_eq!(route(&conn).0, "eu");
    for set in [
        "SET TRANSACTION READ WRITE",
        "SET LOCAL transaction_read_only = off",
        "SET transaction_read_only = off",
    ] {
        let wrote: QueryResult<()> = conn
            .build_transaction()
            .read_only()
            .run(async |conn| {
                conn.batch_execute(set).await?;
                write(conn, 1, "ada").await.map(drop)
            })
            .await;
        assert!(wrote.unwrap_err().to_string().contains("settings"), "{set}");
    }
    let eu = groups.group("eu").unwrap().primary();
    assert_eq!(rows(eu, "SELECT count(*) FROM notes"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_dropped_anywhere_leaves_nothing_half_done() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let cable = groups.group("us").unwrap().primary();
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 0, "ada").await.unwrap();
    for polls in 1..40 {
        let mut conn = pool.for_key("ada").await.unwrap();
        {
            let mut writing = std::pin::pin!(write(&mut conn, polls, "ada"));
            for _ in 0..polls {
                let step =
                    std::future::poll_fn(|cx| std::task::Poll::Ready(writing.as_mut().poll(cx)));
                if step.await.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // The connection is as good as before, and no transaction is left open.
        write(&mut conn, 1_000 + polls, "ada").await.unwrap();
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    while rows(cable, open) != "0" {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(
        rows(cable, "SELECT count(*) FROM notes WHERE id >= 1000"),
        "39"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_goes_on_elsewhere_sees_what_it_wrote_and_saw() {
    let groups = groups(&["eu", "us"]);
    let (eu, us) = (pool(&groups, "eu").await, pool(&groups, "us").await);
    eu.place("ada", "us").await.unwrap();
    for round in 1..20 {
        groups
            .cable("us", "eu")
            .unwrap()
            .delay(std::time::Duration::from_millis(20));
        let session = us.session();
        let mut conn = session.for_key("ada").await.unwrap();
        write(&mut conn, 1, "ada").await.unwrap();
        let token = session.token().await;
        assert!(
            token
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)),
            "{token}"
        );
        // What has no key may read it, too: the local group waits until it has it.
        let mut conn = eu.resume(&token).get().await.unwrap();
        assert_eq!(number(&mut conn, SUM).await.unwrap(), round);
        assert_eq!(route(&conn).0, "eu");
    }
    for junk in ["", ".", "us", "us.", "us.AAAA", "eu.us.eu", "\u{fe0f}.x"] {
        let mut conn = eu.resume(junk).get().await.unwrap();
        number(&mut conn, SUM).await.unwrap();
    }
}
