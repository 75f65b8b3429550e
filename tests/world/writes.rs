//! An acknowledged write is seen by whoever must see it, however its statement ended.

use std::sync::Arc;

use diesel::prelude::*;
use diesel_async::{AsyncConnectionCore, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Consistency, ReplicatedConnection, ReplicatedPool};
use futures_util::StreamExt;

use crate::support::{
    all_up, builder, builder_for, count, database, eventually, insert, on, own_cluster, run, users,
    who,
};

const ROUNDS: i64 = 10;

pub async fn of_the_pool(local: &Arc<LocalCluster>, level: Consistency) -> ReplicatedPool {
    let scope = ConsistencyConfig::from(level).write_scope(WriteScope::Pool);
    let pool = builder_for(local, "app").consistency(scope);
    let pool = pool.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

async fn pause(local: &Arc<LocalCluster>) {
    on(local, |local| {
        for node in local.replicas() {
            node.pause_replay().unwrap();
        }
    })
    .await;
}

/// Whether the primary says so, asked by itself.
async fn is(local: &Arc<LocalCluster>, sql: &'static str, number: i64) -> bool {
    let told = on(local, |local| {
        local.primary().sql("app", sql).unwrap()[0][0].clone()
    });
    told.await == Some(number.to_string())
}

/// As most Diesel applications insert: one row comes back, and nobody waits for the end.
pub async fn insert_for_id(conn: &mut ReplicatedConnection, name: &str) -> i32 {
    let row = diesel::insert_into(users::table).values(users::name.eq(name));
    row.returning(users::id).get_result(conn).await.unwrap()
}

// sgrif/diesel `get_result`; crates.io's tests; bxcodec/dbresolver #28 ("writes using RETURNING").
#[tokio::test]
async fn an_insert_for_one_row_is_read_by_the_next_connection() {
    let local = own_cluster().await;
    for (start, level) in [
        (3, Consistency::ReadYourWrites),
        (3 + ROUNDS, Consistency::Causal),
    ] {
        let pool = of_the_pool(&local, level).await;
        pause(&local).await;
        for round in 1..=ROUNDS {
            let mut writer = pool.get().await.unwrap();
            insert_for_id(&mut writer, &format!("{level} {round}")).await;
            // Whether the writer's connection is still out or not.
            if round % 2 == 0 {
                drop(writer);
            }
            let mut reader = pool.get().await.unwrap();
            assert_eq!(count(&mut reader).await, start + round, "{level}");
        }
    }
}

#[tokio::test]
async fn an_insert_whose_rows_are_still_being_read_is_seen_by_the_pool() {
    let local = own_cluster().await;
    let pool = of_the_pool(&local, Consistency::ReadYourWrites).await;
    pause(&local).await;
    for round in 1..=ROUNDS {
        let mut writer = pool.get().await.unwrap();
        let row = diesel::insert_into(users::table).values(users::name.eq(format!("n{round}")));
        let row = row.returning(users::id);
        let mut rows = AsyncConnectionCore::load(&mut writer, row).await.unwrap();
        assert!(rows.next().await.is_some());
        let mut reader = pool.get().await.unwrap();
        assert_eq!(count(&mut reader).await, 3 + round);
        drop(rows);
        assert_eq!(count(&mut reader).await, 3 + round);
    }
}

// A request that times out while its insert waits for a lock: it is committed later, and is the pool's; or it is
// cancelled, if its session ends before.
#[tokio::test]
async fn an_insert_whose_future_was_dropped_is_seen_by_the_pool_once_it_is_there() {
    let local = own_cluster().await;
    let pool = of_the_pool(&local, Consistency::ReadYourWrites).await;
    pause(&local).await;
    for (before, kept) in [(3, true), (4, false)] {
        let mut locker = pool.get().await.unwrap();
        run(&mut locker, "BEGIN; LOCK TABLE users IN SHARE MODE")
            .await
            .unwrap();
        let mut writer = pool.get().await.unwrap();
        let late = format!("INSERT INTO users (name) VALUES ('late {before}')");
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        {
            let mut inserting = Box::pin(run(&mut writer, &late));
            let sent = eventually("it waits for the lock", || async {
                is(&local, waits, 1).await
            });
            tokio::select! {
                _ = &mut inserting => unreachable!("the table is locked"),
                () = sent => {}
            }
        }
        let writer = kept.then_some(writer);
        // While nothing is decided, others read what is there.
        assert_eq!(count(&mut pool.get().await.unwrap()).await, before);
        if writer.is_none() {
            eventually("it is cancelled", || async { is(&local, waits, 0).await }).await;
        }
        run(&mut locker, "COMMIT").await.unwrap();
        let after = if writer.is_some() { before + 1 } else { before };
        eventually("it is over", || async {
            is(&local, "SELECT count(*) FROM users", after).await
        })
        .await;
        for _ in 0..3 {
            assert_eq!(count(&mut pool.get().await.unwrap()).await, after);
        }
        drop(writer);
        assert_eq!(count(&mut pool.get().await.unwrap()).await, after);
    }
}

#[tokio::test]
async fn what_is_written_on_the_bare_connection_is_seen_by_its_session_and_the_pool() {
    let local = own_cluster().await;
    let pool = of_the_pool(&local, Consistency::ReadYourWrites).await;
    let alone = builder_for(&local, "app").build().await.unwrap();
    pause(&local).await;
    let mut writer = pool.get().await.unwrap();
    let session = alone.session();
    let mut own = session.get().await.unwrap();
    for round in 1..=ROUNDS {
        let sql = format!("INSERT INTO users (name) VALUES ('pool {round}')");
        let bare = writer.primary_connection().await.unwrap();
        bare.batch_execute(&sql).await.unwrap();
        let mut reader = pool.get().await.unwrap();
        assert_eq!(count(&mut reader).await, 2 + 2 * round);
        let bare = own.primary_connection().await.unwrap();
        let sql = sql.replace("pool", "session");
        bare.batch_execute(&sql).await.unwrap();
        let mut reader = session.get().await.unwrap();
        assert_eq!(count(&mut reader).await, 3 + 2 * round);
        let token = session.token().await;
        let mut reader = alone.get_with(&token).await.unwrap();
        assert_eq!(count(&mut reader).await, 3 + 2 * round);
    }
    let bare = writer.primary_connection().await.unwrap();
    let sql = "INSERT INTO users (name) VALUES ('last')";
    bare.batch_execute(sql).await.unwrap();
    drop(writer);
    let mut reader = pool.get().await.unwrap();
    assert_eq!(count(&mut reader).await, 4 + 2 * ROUNDS);
}

#[tokio::test]
async fn a_reader_that_asks_for_more_than_its_pool_sees_the_pools_writes() {
    let local = own_cluster().await;
    let pool = of_the_pool(&local, Consistency::Eventual).await;
    pause(&local).await;
    let mut writer = pool.get().await.unwrap();
    for round in 1..=ROUNDS {
        insert(&format!("n{round}"))
            .execute(&mut writer)
            .await
            .unwrap();
        let mut reader = pool.get().await.unwrap();
        reader.set_consistency(Consistency::ReadYourWrites);
        assert_eq!(count(&mut reader).await, 3 + round);
    }
}

// remotisan #54, makara #178, pgdog #912, multigres #21: the next request has another connection, and does not find
// what the last one wrote; crates.io's own tests: "user_id from cookie not found" right after signing up. A plain
// pool shows every acknowledged write to whoever comes next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_connection_reads_what_the_last_one_wrote() {
    let pool = builder(&database().await).build().await.unwrap();
    let mut users = tokio::task::JoinSet::new();
    for user in 0..8 {
        let pool = pool.clone();
        users.spawn(async move {
            for round in 0..25 {
                let name = format!("user {user}.{round}");
                insert(&name)
                    .execute(&mut pool.get().await.unwrap())
                    .await
                    .unwrap();
                let mut next = pool.get().await.unwrap();
                let found = users::table.filter(users::name.eq(&name)).count();
                assert_eq!(found.get_result(&mut next).await, Ok(1_i64), "{name}");
            }
        });
    }
    users.join_all().await;
    // And what nobody writes to for a moment, replicas serve.
    eventually("a replica serves", || async {
        who(&mut pool.get().await.unwrap()).await != "primary"
    })
    .await;
}

// Found by an Elle-style history over this pool: a transaction whose COMMIT was refused, here by a deferred
// constraint, was over without a word, and left the next read without any need, as if it were within.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_after_a_refused_commit_sees_what_was_written_before() {
    let local = own_cluster().await;
    on(&local, |local| {
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN RAISE EXCEPTION ''refused''; END';
             CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (NEW.name LIKE 'refused%') EXECUTE FUNCTION refuse();";
        local.primary().sql("app", refuse).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    for scope in [WriteScope::Pool, WriteScope::Session] {
        let level = ConsistencyConfig::default().write_scope(scope);
        let pool = builder_for(&local, "app").consistency(level);
        let pool = pool.build().await.unwrap();
        eventually("all are up", || async { all_up(&pool) }).await;
        let mut conn = pool.get().await.unwrap();
        let before = count(&mut conn.primary()).await;
        pause(&local).await;
        insert(&format!("{scope:?}"))
            .execute(&mut conn)
            .await
            .unwrap();
        run(&mut conn, "BEGIN").await.unwrap();
        insert("refused").execute(&mut conn).await.unwrap();
        run(&mut conn, "COMMIT").await.unwrap_err();
        assert_eq!(count(&mut conn).await, before + 1, "{scope:?}");
        on(&local, |local| {
            let nodes = local.replicas().iter();
            nodes.for_each(|node| node.resume_replay().unwrap());
        })
        .await;
    }
}

// shardingsphere #8215, proxysql #1006 and #2205: what a transaction is said to be when it begins is not what it is when it
// ends. PostgreSQL lets one that begins read only become one that writes, until its first query.
#[tokio::test]
async fn a_transaction_that_begins_read_only_and_writes_after_all_is_a_write() {
    let local = own_cluster().await;
    let pool = of_the_pool(&local, Consistency::ReadYourWrites).await;
    pause(&local).await;
    let insert = "INSERT INTO users (name) VALUES (gen_random_uuid()::text)";
    let ways: [&[&str]; 9] = [
        &[
            "BEGIN READ ONLY",
            "SET TRANSACTION READ WRITE",
            insert,
            "COMMIT",
        ],
        &[
            "BEGIN READ ONLY",
            "SET TRANSACTION READ WRITE",
            insert,
            "END",
        ],
        &[
            "START TRANSACTION READ ONLY",
            "SET transaction_read_only = off",
            insert,
            "COMMIT",
        ],
        &[
            "BEGIN READ ONLY",
            "SET LOCAL transaction_read_only = off",
            insert,
            "COMMIT",
        ],
        &[
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
            "SET TRANSACTION READ WRITE",
            insert,
            "COMMIT",
        ],
        &[
            "BEGIN READ ONLY",
            "SELECT 1",
            "COMMIT AND CHAIN",
            "SET TRANSACTION READ WRITE",
            insert,
            "COMMIT",
        ],
        &[
            "BEGIN READ ONLY; SET TRANSACTION READ WRITE",
            insert,
            "COMMIT",
        ],
        // A second BEGIN only warns, and makes it read only from then on.
        &["BEGIN", insert, "BEGIN READ ONLY", "COMMIT"],
        &["BEGIN READ ONLY", "BEGIN READ WRITE", insert, "COMMIT"],
    ];
    for (round, way) in (1..).zip(ways) {
        let mut conn = pool.get().await.unwrap();
        for statement in way {
            run(&mut conn, statement).await.unwrap();
        }
        assert_eq!(count(&mut conn).await, 3 + round, "{way:?}");
        drop(conn);
        let mut other = pool.get().await.unwrap();
        assert_eq!(
            count(&mut other).await,
            3 + round,
            "{way:?}, another connection"
        );
    }
    // By the builder, too.
    let mut conn = pool.get().await.unwrap();
    let mut transaction = conn.build_transaction().read_only();
    transaction
        .run(async |conn| {
            run(conn, "SET TRANSACTION READ WRITE").await?;
            run(conn, insert).await
        })
        .await
        .unwrap();
    assert_eq!(count(&mut conn).await, 13);
}

// One that only reads is none: what comes after it asks for no position.
#[tokio::test]
async fn a_transaction_that_only_reads_is_no_write() {
    let local = own_cluster().await;
    let pool = of_the_pool(&local, Consistency::ReadYourWrites).await;
    pause(&local).await;
    let mut conn = pool.get().await.unwrap();
    for statement in [
        "BEGIN READ ONLY",
        "SELECT 1",
        "SAVEPOINT a",
        "RELEASE a",
        "COMMIT",
    ] {
        run(&mut conn, statement).await.unwrap();
    }
    assert_eq!(count(&mut conn).await, 3);
    assert_ne!(who(&mut conn).await, "primary");
}
