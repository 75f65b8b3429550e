//! What reads see: own writes, other sessions' writes, data of a certain age, on which node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode, StopMode};
use diesel_replicated::{
    Builder, Consistency, ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool,
};
use futures_util::FutureExt;

use crate::support::{
    Number, all_up, blocking, builder, builder_for, count, database, eventually, insert,
    own_cluster, pool, run, users, who,
};

/// Long enough for any replica to answer on a busy machine; a read ends it as soon as one has.
const PATIENT: Duration = Duration::from_secs(20);

/// For what a session itself must see, and no other.
fn level(level: Consistency) -> ConsistencyConfig {
    ConsistencyConfig::from(level).write_scope(WriteScope::Session)
}

async fn build(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

/// Does something to both replicas.
async fn on_replicas(local: &Arc<LocalCluster>, verb: impl Fn(&LocalNode) + Send + 'static) {
    let local = Arc::clone(local);
    blocking(move || local.replicas().iter().for_each(verb)).await;
}

fn kind(conn: &ReplicatedConnection) -> NodeKind {
    conn.last_route().unwrap().kind
}

fn reason(conn: &ReplicatedConnection) -> RouteReason {
    conn.last_route().unwrap().reason
}

#[tokio::test]
async fn own_writes_are_read_on_replicas_that_have_them() {
    let waits = level(Consistency::ReadYourWrites).wait(PATIENT);
    let pool = build(builder(&database().await).consistency(waits)).await;
    let session = pool.session();
    let mut conn = session.get().await.unwrap();
    for round in 0..20 {
        let name = format!("n{round}");
        match round % 4 {
            0 => drop(insert(&name).execute(&mut conn).await.unwrap()),
            // Only the first row is waited for: the statement is still running.
            1 => {
                let row = diesel::insert_into(users::table).values(users::name.eq(name));
                let row = row.returning(users::id);
                row.get_result::<i32>(&mut conn).await.unwrap();
            }
            2 => {
                let inserting = conn.transaction(async |conn| insert(&name).execute(conn).await);
                inserting.await.unwrap();
            }
            _ => {
                let text = format!("INSERT INTO users (name) VALUES ('{name}'); SELECT 1");
                run(&mut conn, &text).await.unwrap();
            }
        }
        let mut reader = session.get().await.unwrap();
        assert_eq!(count(&mut reader).await, 4 + round);
        let route = reader.last_route();
        assert_eq!(kind(&reader), NodeKind::Replica, "round {round}: {route:?}");
        assert_ne!(who(&mut reader).await, "primary");
    }
}

/// <https://github.com/sysown/proxysql/issues/1595>, <https://github.com/instill-ai/pipeline-backend/pull/433>: after a write all reads
/// went to the primary for a fixed time, or none did.
#[tokio::test]
async fn who_holds_the_primary_reads_there_at_once_until_a_replica_has_the_write() {
    let local = own_cluster().await;
    let waits = level(Consistency::ReadYourWrites).wait(PATIENT);
    let pool = build(builder_for(&local, "app").consistency(waits)).await;
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    for _ in 0..3 {
        assert_eq!(count(&mut conn).await, 4);
        assert_eq!(reason(&conn), RouteReason::OwnWrite);
        assert_eq!(conn.last_route().unwrap().waited, Duration::ZERO);
    }
    on_replicas(&local, |node| node.resume_replay().unwrap()).await;
    // The monitors ask by themselves.
    while kind(&conn) != NodeKind::Replica {
        assert_eq!(count(&mut conn).await, 4);
    }
}

#[tokio::test]
async fn the_primary_serves_what_no_replica_has() {
    let local = own_cluster().await;
    let of_sessions = level(Consistency::ReadYourWrites);
    let pool = build(builder_for(&local, "app").consistency(of_sessions)).await;
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    let session = pool.session();
    let mut conn = session.get().await.unwrap();
    insert("Ann").execute(&mut conn).await.unwrap();
    let mut writer = session.get().await.unwrap();
    assert_eq!(count(&mut writer).await, 4);
    assert_eq!(reason(&writer), RouteReason::OwnWrite);
    assert!(writer.last_route().unwrap().waited > Duration::ZERO);
    drop(writer);
    let mut writer = conn;
    assert_eq!(count(&mut writer).await, 4);
    // Others go on on the replicas, and see what those have.
    let mut other = pool.get().await.unwrap();
    assert_eq!(count(&mut other).await, 3);
    assert_eq!(kind(&other), NodeKind::Replica);
    assert_eq!(
        count(&mut writer.with_consistency(Consistency::Eventual)).await,
        3
    );
    // One replica that has it suffices.
    let one = Arc::clone(&local);
    blocking(move || one.replicas()[1].resume_replay().unwrap()).await;
    while who(&mut writer).await != "replica-2" {}
    for _ in 0..10 {
        assert_eq!(count(&mut writer).await, 4);
        assert_eq!(writer.last_route().unwrap().node, "replica-2");
    }
    on_replicas(&local, |node| drop(node.resume_replay())).await;
}

#[tokio::test]
async fn with_the_scope_of_the_pool_every_session_reads_every_write() {
    let local = own_cluster().await;
    let scope = level(Consistency::ReadYourWrites).write_scope(WriteScope::Pool);
    let pool = build(builder_for(&local, "app").consistency(scope)).await;
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    let mut writer = pool.get().await.unwrap();
    insert("Ann").execute(&mut writer).await.unwrap();
    let mut reader = pool.get().await.unwrap();
    assert_eq!(count(&mut reader).await, 4);
    assert_eq!(reason(&reader), RouteReason::OwnWrite);
    on_replicas(&local, |node| node.resume_replay().unwrap()).await;
    while kind(&reader) != NodeKind::Replica {
        assert_eq!(count(&mut reader).await, 4);
    }
}

#[tokio::test]
async fn a_write_in_doubt_keeps_its_session_on_the_primary() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    // Dropped before its answer: until something sent later is answered, nothing is known.
    assert!(insert("Ann").execute(&mut conn).now_or_never().is_none());
    let seen = count(&mut conn).await;
    assert_eq!(reason(&conn), RouteReason::OwnWrite);
    assert_eq!(seen, count(&mut conn.primary()).await);
    // From then on it is a write like any other.
    while kind(&conn) != NodeKind::Replica {
        assert_eq!(count(&mut conn).await, seen);
    }
}

#[tokio::test]
async fn asynchronous_commits_are_covered_too() {
    let waits = level(Consistency::ReadYourWrites).wait(PATIENT);
    for (place, sql) in [
        (1, "SET synchronous_commit = off"),
        (2, "SELECT set_config('Synchronous_Commit', 'off', false)"),
    ] {
        let pool = build(builder(&database().await).consistency(waits.clone())).await;
        let session = pool.session();
        let mut conn = session.get().await.unwrap();
        conn.transaction(async |conn| {
            run(
                conn,
                &sql.replace("SET ", "SET LOCAL ").replace("false", "true"),
            )
            .await?;
            insert("Ann").execute(conn).await
        })
        .await
        .unwrap();
        let mut reader = session.get().await.unwrap();
        assert_eq!(count(&mut reader).await, 4, "{place}");
        assert_eq!(kind(&reader), NodeKind::Replica, "{place}");
    }
    // Turned off for every connection.
    let off = builder(&database().await)
        .consistency(waits)
        .setup_sql("SET synchronous_commit = off");
    let session = build(off).await.session();
    let mut conn = session.get().await.unwrap();
    for round in 0..10 {
        insert(&format!("n{round}"))
            .execute(&mut conn)
            .await
            .unwrap();
        let mut reader = session.get().await.unwrap();
        assert_eq!(count(&mut reader).await, 4 + round);
        assert_eq!(kind(&reader), NodeKind::Replica);
    }
}

#[tokio::test]
async fn data_is_never_older_than_asked_for() {
    let local = own_cluster().await;
    let bound = Duration::from_millis(1500);
    let young = level(Consistency::BoundedStaleness(bound));
    let pool = build(builder_for(&local, "app").consistency(young)).await;
    let mut conn = pool.get().await.unwrap();
    // An idle primary does not make replicas old, however long it is idle.
    let idle = Instant::now();
    while idle.elapsed() < bound * 2 || kind(&conn) != NodeKind::Replica {
        count(&mut conn).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    insert("Ann").execute(&mut conn).await.unwrap();
    let written = Instant::now();
    while kind(&conn) == NodeKind::Replica || written.elapsed() < bound {
        let seen = count(&mut conn).await;
        assert!(
            seen == 4 || written.elapsed() < bound,
            "older than asked for"
        );
    }
    assert_eq!(count(&mut conn).await, 4);
    assert_eq!(reason(&conn), RouteReason::TooOld);
    on_replicas(&local, |node| node.resume_replay().unwrap()).await;
    while kind(&conn) != NodeKind::Replica {
        count(&mut conn).await;
    }
}

#[tokio::test]
async fn strong_reads_see_what_anyone_has_written() {
    let local = own_cluster().await;
    let pool = build(builder_for(&local, "app").consistency(Consistency::Strong)).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    assert_eq!(reason(&conn), RouteReason::Strong);

    let heavy = level(Consistency::Strong)
        .strong_reads_on_replicas(true)
        .wait(PATIENT);
    let pool = build(builder_for(&local, "app").consistency(heavy)).await;
    let mut conn = pool.get().await.unwrap();
    for round in 0..10 {
        // Nobody of this pool writes it.
        let local = Arc::clone(&local);
        let sql = format!("INSERT INTO users (name) VALUES ('n{round}')");
        blocking(move || local.primary().sql("app", &sql).unwrap()).await;
        assert_eq!(count(&mut conn).await, 4 + round);
        assert_eq!(kind(&conn), NodeKind::Replica);
    }
    let hasty = level(Consistency::Strong).strong_reads_on_replicas(true);
    let pool = build(builder_for(&local, "app").consistency(hasty)).await;
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    let other = Arc::clone(&local);
    let sql = "INSERT INTO users (name) VALUES ('late')";
    blocking(move || other.primary().sql("app", sql).unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 14);
    assert_eq!(reason(&conn), RouteReason::Strong);
    on_replicas(&local, |node| node.resume_replay().unwrap()).await;
}

#[tokio::test]
async fn a_causal_session_never_sees_less_than_it_has_seen() {
    let local = own_cluster().await;
    let pool = build(builder_for(&local, "app").consistency(Consistency::Causal)).await;
    let behind = Arc::clone(&local);
    blocking(move || behind.replicas()[0].pause_replay().unwrap()).await;
    let sql = "INSERT INTO users (name) VALUES ('new')";
    let other = Arc::clone(&local);
    blocking(move || other.primary().sql("app", sql).unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    // Until it meets the replica that has it, it may see the older state.
    let deadline = Instant::now() + Duration::from_secs(30);
    while count(&mut conn).await != 4 {
        assert!(Instant::now() < deadline, "the replica serves nobody");
        conn = pool.get().await.unwrap();
    }
    assert_eq!(conn.last_route().unwrap().node, "replica-2");
    let token = conn.session_token().await;
    pool.remove_replica("replica-2").await.unwrap();
    for _ in 0..5 {
        assert_eq!(count(&mut conn).await, 4, "on whatever node");
        assert_eq!(kind(&conn), NodeKind::Primary);
    }
    // Wherever its token goes, too.
    let mut resumed = pool.get_with(&token).await.unwrap();
    assert_eq!(count(&mut resumed).await, 4);
    // Another session has seen nothing. The primary may serve it, if the replica is slow to answer.
    let mut fresh = pool.get().await.unwrap();
    let mut seen = count(&mut fresh).await;
    while kind(&fresh) != NodeKind::Replica {
        assert!(Instant::now() < deadline, "what another has seen binds it");
        fresh = pool.get().await.unwrap();
        seen = count(&mut fresh).await;
    }
    assert_eq!(seen, 3);
}

/// Found by a history over several groups: reads after a `Strong` one were older.
#[tokio::test]
async fn a_causal_session_sees_no_less_than_a_strong_read_of_it_has_seen() {
    let local = own_cluster().await;
    let pool = build(builder_for(&local, "app").consistency(Consistency::Causal)).await;
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    let other = Arc::clone(&local);
    let sql = "INSERT INTO users (name) VALUES ('new')";
    blocking(move || other.primary().sql("app", sql).unwrap()).await;
    let session = pool.session();
    let mut conn = session.get().await.unwrap();
    let seen = count(&mut conn.with_consistency(Consistency::Strong)).await;
    assert_eq!(seen, 4);
    assert_eq!(count(&mut conn).await, 4, "on the same connection");
    drop(conn);
    let mut conn = session.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 4, "on another one");
    on_replicas(&local, |node| node.resume_replay().unwrap()).await;
}

#[tokio::test]
async fn a_causal_session_does_not_go_back_to_a_primary_that_shows_less() {
    let local = own_cluster().await;
    let node = |node: &LocalNode| NodeConfig::new(node.url("app")).name(node.name());
    let builder = ReplicatedPool::builder()
        .primary(node(local.primary()))
        .replica(node(&local.replicas()[1]))
        .consistency(Consistency::Causal);
    let pool = build(builder).await;
    let held = Arc::clone(&local);
    // Commits wait for a standby that is away; the other shows them before the primary does.
    blocking(move || {
        held.replicas()[0].stop(StopMode::Fast).unwrap();
        let names = "ALTER SYSTEM SET synchronous_standby_names = '\"replica-1\"'";
        held.primary().sql("postgres", names).unwrap();
        held.primary()
            .sql("postgres", "SELECT pg_reload_conf()")
            .unwrap();
    })
    .await;
    let writing = Arc::clone(&local);
    let sql = "INSERT INTO users (name) VALUES ('waits')";
    let writing = tokio::task::spawn_blocking(move || writing.primary().sql("app", sql));
    let mut conn = pool.get().await.unwrap();
    eventually("the primary says that commits wait", || {
        futures_util::future::ready(pool.status().synchronous_standbys == 1)
    })
    .await;
    while count(&mut conn).await != 4 {}
    assert_eq!(conn.last_route().unwrap().node, "replica-2");
    let mut stranger = pool.get().await.unwrap();
    assert_eq!(
        count(&mut stranger.primary()).await,
        3,
        "the primary does not"
    );
    // Whether the standby can still be asked for what it has shown, or not.
    for gone in [false, true] {
        if gone {
            pool.remove_replica("replica-2").await.unwrap();
        }
        let mut there = conn.primary();
        let back: QueryResult<i64> = users::table.count().get_result(&mut there).await;
        let error = back.unwrap_err();
        assert!(error.to_string().contains("synchronous standby"), "{error}");
        assert_eq!(error.outcome(), Outcome::NotRun);
    }
    // The standby comes back and confirms.
    let back = Arc::clone(&local);
    blocking(move || back.replicas()[0].start().unwrap()).await;
    writing.await.unwrap().unwrap();
    assert_eq!(count(&mut conn).await, 4);
    assert_eq!(kind(&conn), NodeKind::Primary);
}

#[tokio::test]
async fn a_long_transaction_of_another_holds_up_no_causal_read() {
    let pool = build(builder(&database().await).consistency(level(Consistency::Causal))).await;
    let mut long = pool.get().await.unwrap();
    run(&mut long, "BEGIN").await.unwrap();
    insert("open").execute(&mut long).await.unwrap();
    let mut other = pool.get().await.unwrap();
    insert("Ann").execute(&mut other).await.unwrap();
    let mut conn = pool.get().await.unwrap();
    while count(&mut conn).await != 4 {}
    assert_eq!(kind(&conn), NodeKind::Replica);
    assert_eq!(count(&mut conn.primary()).await, 4);
    // Also when what was seen cannot be asked for any more.
    let token = conn.session_token().await;
    let mut resumed = pool.get_with(&token).await.unwrap();
    assert_eq!(count(&mut resumed.primary()).await, 4);
    run(&mut long, "ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn a_snapshot_has_what_the_session_wrote() {
    for opted_in in [true, false] {
        let waits = level(Consistency::ReadYourWrites).wait(PATIENT);
        let builder = builder(&database().await).consistency(waits);
        let pool = build(builder.read_only_transactions_on_replicas(opted_in)).await;
        let mut conn = pool.get().await.unwrap();
        let mut other = pool.get().await.unwrap();
        for round in 0..5 {
            let name = format!("n{round}");
            insert(&name).execute(&mut conn).await.unwrap();
            let reading = async |conn: &mut ReplicatedConnection| {
                let seen = count(conn).await;
                insert(&format!("{name} and more"))
                    .execute(&mut other)
                    .await
                    .unwrap();
                assert_eq!(count(&mut other).await, seen + 1);
                QueryResult::Ok((seen, who(conn).await, count(conn).await))
            };
            let (seen, server, again) = if opted_in {
                let mut transaction = conn.build_transaction().read_only().repeatable_read();
                transaction.run(reading).await.unwrap()
            } else {
                conn.snapshot(reading).await.unwrap()
            };
            assert_eq!((seen, again), (4 + 2 * round, 4 + 2 * round));
            assert_ne!(server, "primary");
        }
        // Without being told so, and without the pool's leave, on the primary.
        let mut plain = conn.build_transaction().read_only();
        let server = plain.run(async |conn| QueryResult::Ok(who(conn).await));
        assert_eq!(server.await.unwrap() == "primary", !opted_in);
    }
}

#[tokio::test]
async fn reads_that_need_nothing_ask_nobody() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    for _ in 0..10 {
        let one: Number = sql_query("SELECT 1 AS number")
            .get_result(&mut conn)
            .await
            .unwrap();
        assert_eq!(one.number, 1);
        assert_eq!(conn.last_route().unwrap().waited, Duration::ZERO);
    }
}
