//! Commits that wait for no disk are covered like all others, whatever made them so.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Consistency, ReplicatedPool};

use crate::support::{all_up, builder_for, count, eventually, insert, on, own_cluster, run};

/// A cluster whose log reaches its standbys late, unless a commit waits for the disk.
async fn lazy() -> Arc<LocalCluster> {
    let local = own_cluster().await;
    set(&local, "ALTER SYSTEM SET wal_writer_delay = '10s'").await;
    local
}

async fn set(local: &Arc<LocalCluster>, sql: &'static str) {
    on(local, move |local| {
        local.primary().sql("postgres", sql).unwrap();
        let reload = "SELECT pg_reload_conf()";
        local.primary().sql("postgres", reload).unwrap();
    })
    .await;
}

async fn pool(local: &LocalCluster) -> ReplicatedPool {
    let pool = builder_for(local, "app").build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

/// How many of some reads lack the write of their own session that came before.
async fn stale(pool: &ReplicatedPool, texts: &[&str]) -> usize {
    let mut stale = 0;
    let mut conn = pool.get().await.unwrap();
    let mut expected = count(&mut conn.primary()).await;
    for round in 0..5 {
        for (place, text) in texts.iter().enumerate() {
            let name = format!("{place} {round} {expected}");
            let mut conn = pool.get().await.unwrap();
            run(&mut conn, &text.replace("$name", &name)).await.unwrap();
            expected += 1;
            stale += usize::from(count(&mut conn).await < expected);
        }
    }
    stale
}

#[tokio::test]
async fn a_transaction_in_one_text_that_turns_it_off() {
    let local = lazy().await;
    let pool = pool(&local).await;
    let texts = [
        "BEGIN; SET LOCAL synchronous_commit TO off; \
         INSERT INTO users (name) VALUES ('$name'); COMMIT",
        "BEGIN; INSERT INTO users (name) VALUES ('$name'); \
         SELECT set_config('synchronous_commit', 'off', true); COMMIT",
        "SET LOCAL synchronous_commit TO off; INSERT INTO users (name) VALUES ('$name')",
    ];
    assert_eq!(stale(&pool, &texts).await, 0);
}

#[tokio::test]
async fn functions_procedures_triggers_and_blocks_that_turn_it_off() {
    let local = lazy().await;
    on(&local, |local| {
        let sql = "
            CREATE FUNCTION quietly(name text) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN
                PERFORM set_config('synchronous_commit', 'off', true);
                INSERT INTO users (name) VALUES (name); END $f$;
            CREATE PROCEDURE quiet(name text) LANGUAGE plpgsql AS $f$ BEGIN
                SET LOCAL synchronous_commit TO off;
                INSERT INTO users (name) VALUES (name); END $f$;
            CREATE TABLE others (name text);
            CREATE FUNCTION triggered() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
                PERFORM set_config('synchronous_commit', 'off', true);
                INSERT INTO users (name) VALUES (NEW.name); RETURN NEW; END $f$;
            CREATE TRIGGER quietly AFTER INSERT ON others FOR EACH ROW EXECUTE FUNCTION triggered()";
        local.primary().sql("app", sql).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = pool(&local).await;
    let texts = [
        "SELECT quietly('$name')",
        "CALL quiet('$name')",
        "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', true); \
         INSERT INTO users (name) VALUES ('$name'); END $$",
        "INSERT INTO others VALUES ('$name')",
    ];
    assert_eq!(stale(&pool, &texts).await, 0);
}

#[tokio::test]
async fn the_bare_connection_turns_it_off_and_another_of_its_session_reads() {
    let local = lazy().await;
    let pool = pool(&local).await;
    let mut stale = 0;
    for round in 1..=10 {
        let session = pool.session();
        let mut writer = session.get().await.unwrap();
        let bare = writer.primary_connection().await.unwrap();
        let sql =
            format!("SET synchronous_commit TO off; INSERT INTO users (name) VALUES ('n{round}')");
        bare.batch_execute(&sql).await.unwrap();
        let token = session.token().await;
        let mut reader = session.get().await.unwrap();
        stale += usize::from(count(&mut reader).await < 3 + round);
        drop(writer);
        stale += usize::from(count(&mut reader).await < 3 + round);
        let mut elsewhere = pool.get_with(&token).await.unwrap();
        stale += usize::from(count(&mut elsewhere).await < 3 + round);
    }
    assert_eq!(stale, 0);
}

#[tokio::test]
async fn it_is_turned_off_for_the_server_the_database_or_the_role_while_the_pool_runs() {
    let local = lazy().await;
    let texts = ["INSERT INTO users (name) VALUES ('$name')"];
    for (off, on) in [
        (
            "ALTER SYSTEM SET synchronous_commit = off",
            "ALTER SYSTEM RESET synchronous_commit",
        ),
        (
            "ALTER DATABASE app SET synchronous_commit = off",
            "ALTER DATABASE app RESET synchronous_commit",
        ),
        (
            "ALTER ROLE ALL SET synchronous_commit = off",
            "ALTER ROLE ALL RESET synchronous_commit",
        ),
    ] {
        let pool = pool(&local).await;
        set(&local, off).await;
        // What is open keeps what was set for its database and role; what is opened now has it.
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut conn = pool.get().await.unwrap();
            let name = format!("{off} {}", open.len());
            insert(&name).execute(&mut conn).await.unwrap();
            open.push(conn);
        }
        assert_eq!(stale(&pool, &texts).await, 0, "{off}");
        set(&local, on).await;
    }
}

// `BoundedStaleness` and `max_lag` go by what is written, not by what is on the disk.
#[tokio::test]
async fn data_of_bounded_age_has_what_waits_for_no_disk() {
    let local = lazy().await;
    set(&local, "ALTER SYSTEM SET synchronous_commit = off").await;
    let bound = Duration::from_millis(1500);
    let young = Consistency::BoundedStaleness(bound);
    let pool = builder_for(&local, "app").consistency(young);
    let pool = pool.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    let written = std::time::Instant::now();
    insert("Ann").execute(&mut conn).await.unwrap();
    let mut reader = pool.get().await.unwrap();
    while written.elapsed() < bound * 2 {
        let asked = written.elapsed();
        let seen = count(&mut reader).await;
        assert!(
            seen == 4 || asked < bound,
            "older than asked for: {asked:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
