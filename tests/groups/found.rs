//! What somebody found who had not read the tests, and tried to break the promise.

use std::time::Duration;

use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::Consistency;
use diesel_replicated::multi_primary::Finding;

use crate::support::{SUM, groups, number, pool, pool_that_waits, route, rows, write};

/// 8,773 writes were acknowledged, and 6,310 were there.
#[tokio::test(flavor = "multi_thread")]
async fn a_comment_behind_begin_hides_no_question() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let other = crate::support::pool(&groups, "us").await;
    let mut stale = other.for_key("ada").await.unwrap();
    write(&mut stale, 1, "ada").await.unwrap();
    pool.move_home(["ada"], "eu").await.unwrap();
    for begin in [
        "BEGIN -- request 7",
        "begin /* a */ -- b",
        "BEGIN;\n",
        "START TRANSACTION --",
    ] {
        stale.batch_execute(begin).await.unwrap();
        write(&mut stale, 2, "ada").await.unwrap();
        assert_eq!(route(&stale).0, "eu", "{begin}");
        stale.batch_execute("COMMIT -- done").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_past_the_question_from_within_a_transaction() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let insert = "INSERT INTO notes VALUES (9, 'past', 1)";
    for (begin, text) in [
        ("BEGIN READ ONLY", "COMMIT"),
        (
            "BEGIN READ ONLY",
            "SAVEPOINT a; RELEASE a; SET TRANSACTION READ WRITE",
        ),
        ("BEGIN READ ONLY", "RESET transaction_read_only"),
        ("BEGIN", "COMMIT; SELECT pg_sleep(0)"),
        ("BEGIN", "ABORT; BEGIN"),
        ("BEGIN", "COMMIT AND CHAIN"),
    ] {
        for keyed in [true, false] {
            let mut conn = match keyed {
                true => pool.for_key("ada").await.unwrap(),
                false => pool.get().await.unwrap(),
            };
            if conn.batch_execute(begin).await.is_err() {
                continue;
            }
            let text = format!("{text}; {insert}");
            conn.batch_execute(&text).await.unwrap_err();
            conn.batch_execute("ROLLBACK").await.unwrap();
        }
    }
    for name in groups.names() {
        let primary = groups.group(name).unwrap().primary();
        assert_eq!(rows(primary, "SELECT count(*) FROM notes"), "0");
    }
}

/// The row was there over the same connection, and gone when that was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_given_up_is_never_seen_and_holds_no_lock() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    let slow = sql_query("INSERT INTO notes SELECT 1, 'ada', 1 FROM pg_sleep(0.4)");
    let given_up = tokio::time::timeout(Duration::from_millis(100), slow.execute(&mut conn)).await;
    given_up.unwrap_err();
    let eu = groups.group("eu").unwrap().primary();
    let seen = number(&mut conn, SUM).await.unwrap();
    assert_eq!(seen, 0);
    pool.move_home(["ada"], "us").await.unwrap();
    write(&mut conn, 2, "ada").await.unwrap();
    assert_eq!(number(&mut conn, SUM).await.unwrap(), 1);
    assert_eq!(rows(eu, "SELECT count(*) FROM notes WHERE id = 1"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_at_home_wait_for_what_the_session_wrote_elsewhere() {
    let groups = groups(&["eu", "us"]);
    let pool = pool_that_waits(&groups, "eu", Duration::from_millis(700)).await;
    pool.place("e", "eu").await.unwrap();
    pool.place("u", "us").await.unwrap();
    let session = pool.session();
    let mut e = session.for_key("e").await.unwrap();
    let mut u = session.for_key("u").await.unwrap();
    number(&mut u, SUM).await.unwrap();
    groups.wait_applied().unwrap();
    groups.cable("eu", "us").unwrap().cut();
    write(&mut e, 1, "e").await.unwrap();
    assert_eq!(number(&mut u, SUM).await.unwrap(), 1, "near");
    let primary = number(&mut u.primary(), SUM).await;
    assert!(primary.is_err());
    let strong = number(&mut u.with_consistency(Consistency::Strong), SUM).await;
    assert!(strong.is_err());
    let transaction = u.transaction(async |conn| number(conn, SUM).await).await;
    assert!(transaction.is_err());
    // A write by itself waits for nobody.
    write(&mut u, 2, "u").await.unwrap();
    groups.cable("eu", "us").unwrap().heal();
    while number(&mut u.primary(), SUM).await.is_err() {
        crate::support::pause().await;
    }
    assert_eq!(number(&mut u.primary(), SUM).await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_group_that_is_away_stops_no_session_of_others() {
    let groups = groups(&["eu", "us", "ap"]);
    let pool = pool_that_waits(&groups, "eu", Duration::from_secs(2)).await;
    pool.place("ada", "eu").await.unwrap();
    for node in groups.group("ap").unwrap().nodes() {
        node.kill().unwrap();
    }
    for id in 1..4 {
        let session = pool.session();
        let mut conn = session.for_key("ada").await.unwrap();
        write(&mut conn, id, "ada").await.unwrap();
        let token = session.token().await;
        let mut conn = pool.resume(&token).for_key("ada").await.unwrap();
        assert_eq!(number(&mut conn, SUM).await.unwrap(), id);
    }
}

/// A move that a transaction holds up says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_a_transaction_holds_up_says_so_and_moves_nothing() {
    let groups = groups(&["eu", "us"]);
    let pool = pool_that_waits(&groups, "eu", Duration::from_secs(1)).await;
    pool.place("ada", "eu").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    conn.batch_execute("BEGIN").await.unwrap();
    write(&mut conn, 1, "ada").await.unwrap();
    let error = pool.move_home(["ada"], "us").await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("held the key for 1000 ms; nothing was moved"),
        "{error}"
    );
    conn.batch_execute("COMMIT").await.unwrap();
    assert_eq!(pool.move_home(["ada"], "us").await.unwrap().len(), 1);
}

/// Moved keys counted as conflicts, and what leaves rows out was not told.
#[tokio::test(flavor = "multi_thread")]
async fn moves_are_no_conflicts_and_what_leaves_rows_out_is_named() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "eu").await.unwrap();
    for to in ["us", "eu", "us", "eu"] {
        let mut conn = pool.for_key("ada").await.unwrap();
        write(&mut conn, 1, "ada").await.unwrap();
        pool.move_home(["ada"], to).await.unwrap();
    }
    groups.wait_applied().unwrap();
    let status = pool.check(Duration::from_secs(5)).await;
    for group in &status {
        assert!(group.directions[0].conflicts.is_empty(), "{status:?}");
        assert_eq!(group.findings, []);
    }
    let eu = groups.primary_of("eu").unwrap();
    eu.sql("app", "ALTER TABLE counters SET UNLOGGED").unwrap();
    let one = "CREATE PUBLICATION other FOR TABLE notes; DROP PUBLICATION everything; \
        CREATE PUBLICATION everything FOR TABLE counters, diesel_replicated.homes WHERE (key <> 'ada')";
    let logged = "ALTER TABLE counters SET LOGGED";
    let status = pool.check(Duration::from_secs(5)).await;
    let unlogged = Finding::NotPublished("counters".to_owned());
    assert!(status[0].findings.contains(&unlogged), "{status:?}");
    eu.sql("app", logged).unwrap();
    eu.sql("app", one).unwrap();
    let status = pool.check(Duration::from_secs(5)).await;
    for finding in [
        Finding::NotPublished("notes".to_owned()),
        Finding::PublishesNotAll("everything".to_owned()),
    ] {
        assert!(status[0].findings.contains(&finding), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_the_home_can_be_read_at_every_level() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    conn.set_consistency(Consistency::Strong);
    let snapshot = conn.snapshot(async |conn| number(conn, SUM).await).await;
    assert_eq!(snapshot.unwrap(), 0);
    assert_eq!(route(&conn).0, "us");
    // What names the state of the server is asked at home as well.
    let sql = "SELECT count(*) AS number FROM notes WHERE NOT pg_is_in_recovery()";
    assert_eq!(number(&mut conn, sql).await.unwrap(), 0);
    assert_eq!(route(&conn).0, "us");
}

/// The worker was in the middle of a transaction, and applied it over what was written since.
#[tokio::test(flavor = "multi_thread")]
async fn a_forced_move_waits_until_nothing_is_applied_any_more() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    let eu = groups.group("eu").unwrap().primary();
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN PERFORM pg_sleep(1.5); RETURN NEW; END $$; \
        CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION slow(); \
        ALTER TABLE notes ENABLE REPLICA TRIGGER slow";
    eu.sql("app", slow).unwrap();
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 5, "late").await.unwrap();
    let applying = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    while rows(eu, applying) == "0" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    groups.group("us").unwrap().primary().kill().unwrap();
    let forced = pool.force_move_home("us", "eu").await.unwrap();
    assert_eq!(rows(eu, applying), "0");
    assert!(
        forced.keys == 1 && forced.survivors[0].applied.is_some(),
        "{forced:?}"
    );
    // It takes no keys until it is taken back.
    groups.group("us").unwrap().primary().start().unwrap();
    let given_up = pool.place("new", "us").await.unwrap_err();
    assert!(given_up.to_string().contains("given up"), "{given_up}");
    let given_up = pool.move_home(["ada"], "us").await.unwrap_err();
    assert!(given_up.to_string().contains("given up"), "{given_up}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_on_its_way_when_its_old_home_is_lost_gets_another() {
    let groups = groups(&["eu", "us", "ap"]);
    let pool = pool(&groups, "eu").await;
    pool.place("ada", "us").await.unwrap();
    groups.cable("us", "ap").unwrap().cut();
    let us = groups.group("us").unwrap().primary();
    rows(us, "SELECT diesel_replicated.move_home('ada', 'ap', 1000)");
    let eu = groups.group("eu").unwrap().primary();
    while rows(eu, "SELECT home FROM diesel_replicated.homes") != "ap" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for node in groups.group("us").unwrap().nodes() {
        node.kill().unwrap();
    }
    let forced = pool.force_move_home("us", "eu").await.unwrap();
    assert_eq!(forced.keys, 1);
    let mut conn = pool.for_key("ada").await.unwrap();
    write(&mut conn, 1, "ada").await.unwrap();
    assert_eq!(route(&conn).0, "eu");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_any_text_that_fits() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    let long = "ü".repeat(500);
    for key in ["", "o'brien", "back\\slash", "$$;--\n", "\u{1f30a}", &long] {
        pool.place(key, "us").await.unwrap();
        let mut conn = pool.for_key(key).await.unwrap();
        write(&mut conn, 1, "any").await.unwrap();
    }
    let longer = "x".repeat(1001);
    for key in ["a\0b", &longer] {
        let error = pool.for_key(key).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("1000"), "{error}");
        pool.place(key, "us").await.unwrap_err();
        pool.move_home([key], "us").await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_dropped_asks_nobody_any_more() {
    let groups = groups(&["eu", "us"]);
    let pool = pool(&groups, "eu").await;
    number(&mut pool.get().await.unwrap(), SUM).await.unwrap();
    drop(pool);
    let eu = groups.group("eu").unwrap().primary();
    // Standbys keep the slots of subscribers by connections of clients.
    let clients = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
        AND pid <> pg_backend_pid() AND application_name NOT LIKE 'replica-%'";
    while rows(eu, clients) != "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
