//! Reads that wait for a replica wait on its server, from PostgreSQL 19 on: how such waits go wrong elsewhere.
//!
//! Replay is held up by a lock, so that each test says when it goes on.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::config::{ConsistencyConfig, HealthConfig, WriteScope};
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::testing::{Binaries, LocalCluster, LocalNode};
use diesel_replicated::{
    Builder, Consistency, ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool,
};
use tokio::task::JoinHandle;

use crate::support::{
    all_up, always, blocking, builder_for, count, eventually, fill, insert, on, run,
};

/// A read ends its wait as soon as its server shows what it waits for.
const PATIENT: Duration = Duration::from_secs(20);

/// For reads that are to wait in vain, on a machine that may be busy.
const IMPATIENT: Duration = Duration::from_millis(300);

const BOTH: &[&str] = &["replica-1", "replica-2"];

/// A cluster whose servers can wait, which log what they are asked. `None` if the installed servers cannot.
async fn able() -> Option<Arc<LocalCluster>> {
    let major = Binaries::find().unwrap().major_version();
    if major < 19 {
        eprintln!("not run: PostgreSQL {major} has no WAIT FOR LSN");
        return None;
    }
    let local = blocking(|| {
        let builder = LocalCluster::builder().setting("log_statement", "all");
        let local = builder
            .setting("max_standby_streaming_delay", "-1")
            .start()
            .unwrap();
        fill(&local, "app");
        local.primary().sql("app", "CREATE TABLE held ()").unwrap();
        local.wait_caught_up().unwrap();
        Arc::new(local)
    });
    Some(local.await)
}

/// Keeps these replicas from replaying until it is dropped.
async fn hold(local: &Arc<LocalCluster>, names: &'static [&'static str]) -> Vec<AsyncPgConnection> {
    let mut held = Vec::new();
    for name in names {
        let url = local.node(name).unwrap().url("app");
        let mut conn = AsyncPgConnection::establish(&url).await.unwrap();
        conn.batch_execute("BEGIN; SELECT FROM held").await.unwrap();
        held.push(conn);
    }
    let lock = "DO $$ BEGIN LOCK TABLE held IN ACCESS EXCLUSIVE MODE; END $$";
    on(local, move |local| {
        local.primary().sql("app", lock).unwrap()
    })
    .await;
    for name in names {
        let waits = "backend_type = 'startup' AND wait_event_type = 'Lock'";
        eventually("replay stands still", || async {
            active(local, name, waits).await == 1
        })
        .await;
    }
    held
}

/// How many processes of a node are like that.
async fn active(local: &Arc<LocalCluster>, name: &'static str, like: &'static str) -> usize {
    let query = format!("SELECT count(*) FROM pg_stat_activity WHERE {like}");
    on(local, move |local| {
        let rows = local.node(name).unwrap().sql("postgres", &query).unwrap();
        rows[0][0].as_deref().unwrap().parse().unwrap()
    })
    .await
}

/// How many waits a node has under way.
async fn waiting(local: &Arc<LocalCluster>, name: &'static str) -> usize {
    active(
        local,
        name,
        "state = 'active' AND query LIKE 'WAIT FOR LSN%'",
    )
    .await
}

async fn waiting_anywhere(local: &Arc<LocalCluster>) -> usize {
    waiting(local, "replica-1").await + waiting(local, "replica-2").await
}

/// Does the same to all replicas.
async fn on_replicas(local: &Arc<LocalCluster>, verb: fn(&LocalNode)) {
    on(local, move |local| local.replicas().iter().for_each(verb)).await;
}

async fn one_waits(local: &Arc<LocalCluster>) {
    eventually("a read waits on a server", || async {
        waiting_anywhere(local).await == 1
    })
    .await;
}

async fn nothing_waits(local: &Arc<LocalCluster>) {
    eventually("nothing waits on a server", || async {
        waiting_anywhere(local).await == 0
    })
    .await;
}

/// How often a node was sent a text like this.
fn sent(local: &Arc<LocalCluster>, name: &str, text: &str) -> usize {
    let log = local.node(name).unwrap().log();
    log.lines()
        .filter(|line| line.contains("LOG:") && line.contains(text))
        .count()
}

fn waits_sent(local: &Arc<LocalCluster>, name: &str) -> usize {
    sent(local, name, "statement: WAIT FOR LSN")
}

fn waits_sent_anywhere(local: &Arc<LocalCluster>) -> usize {
    BOTH.iter().map(|name| waits_sent(local, name)).sum()
}

/// What a session itself wrote, waited for up to `wait`.
fn own_writes(wait: Duration) -> ConsistencyConfig {
    ConsistencyConfig::from(Consistency::ReadYourWrites)
        .write_scope(WriteScope::Session)
        .wait(wait)
}

async fn build(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

async fn pool_of(local: &Arc<LocalCluster>, wait: Duration) -> ReplicatedPool {
    build(builder_for(local, "app").consistency(own_writes(wait))).await
}

/// A read of all rows under way. It ends with the connection that it used.
type Reading = JoinHandle<(i64, ReplicatedConnection)>;

fn read(mut conn: ReplicatedConnection) -> Reading {
    tokio::spawn(async move { (count(&mut conn).await, conn) })
}

/// Writes a row. Then a read of all rows begins.
async fn write_and_read(pool: &ReplicatedPool, name: &str) -> Reading {
    read(written(pool, name).await)
}

/// A session that has written a row.
async fn written(pool: &ReplicatedPool, name: &str) -> ReplicatedConnection {
    // Who has written holds the primary, and reads there.
    let session = pool.session();
    let mut writer = session.get().await.unwrap();
    insert(name).execute(&mut writer).await.unwrap();
    drop(writer);
    session.get().await.unwrap()
}

/// The read waits until replay goes on. Then a replica serves it, and shows the row that was written.
async fn ends_on_a_replica(
    local: &Arc<LocalCluster>,
    held: Vec<AsyncPgConnection>,
    reading: Reading,
) {
    one_waits(local).await;
    drop(held);
    let (rows, reader) = reading.await.unwrap();
    assert_eq!(rows, 4);
    assert_eq!(reader.last_route().unwrap().kind, NodeKind::Replica);
}

/// `MaxScale` #164 and sysown/proxysql #1208 send the wait before the read, in its packet. Its result is nobody's.
#[tokio::test]
async fn a_read_and_its_wait_go_together_and_nobody_asks_meanwhile() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    one_waits(&local).await;
    let asked =
        || sent(&local, "replica-1", "replay_lsn") + sent(&local, "replica-2", "replay_lsn");
    let before = asked();
    always("it waits", Duration::from_millis(500), || async {
        waiting_anywhere(&local).await == 1
    })
    .await;
    // Each replica is asked once in a second, whatever waits.
    assert!(asked() - before <= 8, "{} questions", asked() - before);
    drop(held);
    let (rows, mut conn) = reading.await.unwrap();
    assert_eq!(rows, 4);
    let route = conn.last_route().unwrap();
    assert_eq!(
        (route.kind, route.reason),
        (NodeKind::Replica, RouteReason::PlainSelect)
    );
    assert!(route.waited > Duration::ZERO);
    assert_eq!(waits_sent_anywhere(&local), 1);
    // The connection is in order, and so is what it answers.
    assert_eq!(count(&mut conn).await, 4);
    let names: Vec<String> = {
        use crate::support::users;
        users::table
            .select(users::name)
            .order(users::id)
            .load(&mut conn)
            .await
            .unwrap()
    };
    assert_eq!(names, ["Ada", "Grace", "Edsger", "one"]);
}

/// The other way, for comparison: without it the replicas are asked all the time.
#[tokio::test]
async fn without_it_the_replicas_are_asked_again_and_again() {
    let Some(local) = able().await else { return };
    let asks = own_writes(PATIENT).wait_for_lsn(false);
    let pool = build(builder_for(&local, "app").consistency(asks)).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    let before = sent(&local, "replica-1", "replay_lsn");
    eventually("it is asked again and again", || async {
        sent(&local, "replica-1", "replay_lsn") > before + 50
    })
    .await;
    drop(held);
    assert_eq!(reading.await.unwrap().0, 4);
    assert_eq!(waits_sent_anywhere(&local), 0);
}

/// sysown/proxysql #2535: reads wait for the limit of connecting, and get an error. vitessio/vitess #6843 and
/// signal18/replication-manager #113: what comes of a wait that ends without success.
#[tokio::test]
async fn what_comes_too_late_is_read_on_the_primary_and_not_waited_for_again() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, IMPATIENT).await;
    let held = hold(&local, BOTH).await;
    let (rows, mut conn) = write_and_read(&pool, "one").await.await.unwrap();
    let route = conn.last_route().unwrap();
    assert!(route.waited > Duration::ZERO, "{route:?}");
    for _ in 0..4 {
        assert_eq!(rows, 4);
        let route = conn.last_route().unwrap();
        assert_eq!(
            (route.kind, route.reason),
            (NodeKind::Primary, RouteReason::OwnWrite)
        );
        assert_eq!(count(&mut conn).await, 4);
    }
    // At each replica once.
    for name in BOTH {
        assert!(waits_sent(&local, name) <= 1, "{name}");
    }
    assert!(waits_sent_anywhere(&local) > 0);
    drop(held);
    // A replica that has caught up is waited for again.
    eventually("a replica serves", || async {
        let (rows, conn) = write_and_read(&pool, &format!("{:?}", std::time::Instant::now()))
            .await
            .await
            .unwrap();
        assert!(rows > 4);
        conn.last_route().unwrap().kind == NodeKind::Replica
    })
    .await;
}

/// sysown/proxysql #3490: the read goes to a node that lacks it, though another has it.
#[tokio::test]
async fn the_replica_that_has_it_serves_beside_one_that_stands_still() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, IMPATIENT).await;
    let held = hold(&local, &["replica-1"]).await;
    let mut conn = pool.get().await.unwrap();
    for round in 0..20 {
        insert(&format!("n{round}"))
            .execute(&mut conn)
            .await
            .unwrap();
        assert_eq!(count(&mut conn).await, 4 + round);
        assert_ne!(conn.last_route().unwrap().node, "replica-1");
    }
    // Once is enough to know. The second is for the pool's memory, which lasts a minute.
    assert!(waits_sent(&local, "replica-1") <= 2);
    drop(held);
}

/// sysown/proxysql #5098: only the connection that wrote is waited for. Here every connection of the pool reads it.
#[tokio::test]
async fn another_connection_of_the_pool_waits_as_well() {
    let Some(local) = able().await else { return };
    let of_pool = own_writes(PATIENT).write_scope(WriteScope::Pool);
    let pool = build(builder_for(&local, "app").consistency(of_pool)).await;
    let held = hold(&local, BOTH).await;
    drop(written(&pool, "one").await);
    let reading = read(pool.get().await.unwrap());
    ends_on_a_replica(&local, held, reading).await;
}

/// pgdogdev/pgdog #912: consumers know the position of a commit from a message, and read before it is there.
#[tokio::test]
async fn a_token_from_another_process_is_waited_for() {
    let Some(local) = able().await else { return };
    let (here, there) = (
        pool_of(&local, PATIENT).await,
        pool_of(&local, PATIENT).await,
    );
    let held = hold(&local, BOTH).await;
    let token = written(&here, "one").await.session_token().await;
    let reading = read(there.get_with(&token).await.unwrap());
    ends_on_a_replica(&local, held, reading).await;
}

/// EnterpriseDB/repmgr #325: who waits for a position that nobody has waits for ever.
#[tokio::test]
async fn nobody_waits_for_a_position_that_does_not_exist() {
    use base64::Engine as _;
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let writer = written(&pool, "one").await;
    let own = writer.session_token().await;
    let base64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    // On the first timeline, as far away as a position can be.
    let mut bytes = base64.decode(own.to_string()).unwrap()[..9].to_vec();
    bytes.extend([2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0]);
    let forged = base64.encode(bytes).parse().unwrap();
    let before = waits_sent_anywhere(&local);
    let mut reader = pool.get_with(&forged).await.unwrap();
    assert_eq!(count(&mut reader).await, 4);
    assert_eq!(reader.last_route().unwrap().reason, RouteReason::OwnWrite);
    let after = waits_sent_anywhere(&local);
    assert_eq!(after, before);
}

/// vitessio/vitess #4718: waits take all there is, and who need not wait cannot read either.
#[tokio::test]
async fn reads_that_wait_leave_connections_to_those_that_need_not() {
    let Some(local) = able().await else { return };
    let builder = builder_for(&local, "app").max_size(4);
    let pool = build(builder.consistency(own_writes(PATIENT))).await;
    let held = hold(&local, BOTH).await;
    let mut sessions = Vec::new();
    for round in 0..12 {
        // The primary has few connections, too.
        let mut conn = pool.get().await.unwrap();
        insert(&format!("n{round}"))
            .execute(&mut conn)
            .await
            .unwrap();
        let token = conn.session_token().await;
        sessions.push(pool.get_with(&token).await.unwrap());
    }
    let readings: Vec<_> = sessions
        .into_iter()
        .map(|mut conn| tokio::spawn(async move { count(&mut conn).await }))
        .collect();
    eventually("several wait", || async {
        waiting_anywhere(&local).await >= 2
    })
    .await;
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        let mut conn = conn.with_consistency(Consistency::Eventual);
        assert_eq!(count(&mut conn).await, 3);
        assert_eq!(conn.last_route().unwrap().kind, NodeKind::Replica);
        for name in BOTH {
            assert!(waiting(&local, name).await <= 2, "{name}");
        }
    }
    drop(held);
    for (round, reading) in readings.into_iter().enumerate() {
        assert!(reading.await.unwrap() >= 4 + i64::try_from(round).unwrap());
    }
}

/// yugabyte/yugabyte-db #124: a read waits for a node that will never be so far, and is never answered.
#[tokio::test]
async fn a_server_that_hangs_holds_no_read() {
    let Some(local) = able().await else { return };
    let patient = HealthConfig::default().timeout(PATIENT);
    let builder = builder_for(&local, "app").health(patient);
    let pool = build(builder.consistency(own_writes(IMPATIENT))).await;
    let held = hold(&local, BOTH).await;
    let mut conn = written(&pool, "one").await;
    on_replicas(&local, |node| node.freeze()).await;
    let reading = tokio::time::timeout(PATIENT, count(&mut conn)).await;
    on_replicas(&local, |node| node.thaw()).await;
    assert_eq!(reading.unwrap(), 4);
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::OwnWrite);
    drop(held);
}

/// EnterpriseDB/repmgr #540: replay is paused, so nothing comes of a wait.
#[tokio::test]
async fn a_replica_whose_replay_is_paused_is_not_waited_for() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, IMPATIENT).await;
    on_replicas(&local, |node| node.pause_replay().unwrap()).await;
    eventually("the pool knows", || async {
        let lagging = |name: &str| {
            let status = pool.status();
            let node = status.nodes.iter().find(|node| &*node.name == name);
            node.is_some_and(|node| node.replay_paused)
        };
        BOTH.iter().all(|name| lagging(name))
    })
    .await;
    let (rows, conn) = write_and_read(&pool, "one").await.await.unwrap();
    assert_eq!(rows, 4);
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::OwnWrite);
    assert_eq!(waits_sent_anywhere(&local), 0);
    on_replicas(&local, |node| node.resume_replay().unwrap()).await;
}

/// `ContaAzul/postgresql_exporter` #58: a promoted server still tells how far it has replayed.
#[tokio::test]
async fn a_promotion_ends_the_wait_and_the_read_sees_what_its_session_wrote() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    one_waits(&local).await;
    on(&local, |local| {
        local
            .primary()
            .stop(diesel_replicated::testing::StopMode::Fast)
            .unwrap();
    })
    .await;
    let name = if waiting(&local, "replica-1").await == 1 {
        "replica-1"
    } else {
        "replica-2"
    };
    on(&local, move |local| {
        // It replays first what it has received.
        local
            .node(name)
            .unwrap()
            .sql("postgres", "SELECT pg_promote(false)")
            .unwrap();
    })
    .await;
    drop(held);
    let (rows, _) = reading.await.unwrap();
    assert_eq!(rows, 4);
}

/// orioledb #1145: beyond a fork the same numbers stand for something else.
#[tokio::test]
async fn the_numbers_of_another_timeline_are_not_taken_for_the_write() {
    let Some(local) = able().await else { return };
    // The one pool writes. The other knows a replica that has gone elsewhere meanwhile, and asks it seldom.
    let url = |name: &str| {
        diesel_replicated::NodeConfig::new(local.node(name).unwrap().url("app")).name(name)
    };
    let here = ReplicatedPool::builder()
        .primary(url("primary"))
        .consistency(own_writes(PATIENT))
        .build()
        .await
        .unwrap();
    let seldom = HealthConfig::default().interval(Duration::from_secs(600));
    let there = ReplicatedPool::builder()
        .primary(url("primary"))
        .replica(url("replica-2"))
        .consistency(own_writes(IMPATIENT))
        .failover_wait(Duration::from_millis(100))
        .health(seldom);
    let there = build(there).await;
    on(&local, |local| {
        let [first, second] = local.replicas() else {
            unreachable!()
        };
        first.detach().unwrap();
        second.detach().unwrap();
        first.promote().unwrap();
        second.follow(first).unwrap();
        // Far beyond what the primary will write.
        let much = "INSERT INTO users (name) SELECT 'other ' || n FROM generate_series(1, 5000) n";
        first.sql("app", much).unwrap();
    })
    .await;
    eventually("the replica has gone over", || async {
        let rows = on(&local, |local| {
            local.replicas()[1]
                .sql("app", "SELECT count(*) FROM users")
                .unwrap()
        });
        rows.await[0][0].as_deref() == Some("5003")
    })
    .await;
    let token = written(&here, "one").await.session_token().await;
    let mut reader = there.get_with(&token).await.unwrap();
    let read: QueryResult<i64> = {
        use crate::support::users;
        users::table.count().get_result(&mut reader).await
    };
    // The primary serves it, unless the pool has learned meanwhile that it is overtaken.
    assert!(matches!(read, Ok(4) | Err(_)), "{read:?}");
    assert_eq!(waits_sent(&local, "replica-2"), 1, "the server was to wait");
    // It was that far, and said where.
    let log = local.node("replica-2").unwrap().log();
    assert!(log.contains("\"diesel_replicated.server_is_on_another_timeline\""));
}

/// multigres/multigres #1266: replay stands still for a while, and is taken to have ended.
#[tokio::test]
async fn a_conflict_with_recovery_only_makes_the_read_wait() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    for round in 0..3 {
        let held = hold(&local, BOTH).await;
        let reading = write_and_read(&pool, &format!("n{round}")).await;
        one_waits(&local).await;
        drop(held);
        assert_eq!(reading.await.unwrap().0, 4 + round);
    }
}

#[tokio::test]
async fn a_server_that_is_killed_in_the_wait_costs_the_read_nothing() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    one_waits(&local).await;
    on_replicas(&local, |node| node.kill().unwrap()).await;
    let (rows, conn) = reading.await.unwrap();
    assert_eq!(rows, 4);
    assert_eq!(conn.last_route().unwrap().kind, NodeKind::Primary);
    drop(held);
}

#[tokio::test]
async fn whoever_leaves_the_wait_leaves_none_on_the_server() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    one_waits(&local).await;
    reading.abort();
    assert!(reading.await.unwrap_err().is_cancelled());
    nothing_waits(&local).await;
    // What nobody waits for keeps nobody from reading.
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(count(&mut conn).await, 3);
    }
    drop(held);
}

#[tokio::test]
async fn who_cancels_the_wait_cancels_the_read() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let mut conn = written(&pool, "one").await;
    let token = conn.cancel_token();
    let reading = tokio::spawn(async move {
        use crate::support::users;
        let read: QueryResult<i64> = users::table.count().get_result(&mut conn).await;
        (read, conn)
    });
    one_waits(&local).await;
    token.cancel().await.unwrap();
    let (read, mut conn) = reading.await.unwrap();
    let error = read.unwrap_err();
    assert!(error.to_string().contains("cancel"), "{error}");
    drop(held);
    assert_eq!(count(&mut conn).await, 4);
}

/// The server's own limit of a statement is for statements of the application. It ends a longer wait, and not the read.
#[tokio::test]
async fn a_statement_timeout_that_is_shorter_than_the_wait_ends_the_wait_alone() {
    let Some(local) = able().await else { return };
    on(&local, |local| {
        let short = "ALTER DATABASE app SET statement_timeout = '400ms'";
        local.primary().sql("postgres", short).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    one_waits(&local).await;
    nothing_waits(&local).await;
    drop(held);
    assert_eq!(reading.await.unwrap().0, 4);
}

#[tokio::test]
async fn a_deadline_ends_the_wait_and_nothing_has_run() {
    let Some(local) = able().await else { return };
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let mut conn = written(&pool, "one").await;
    let mut limited = conn.with_deadline(Duration::from_millis(800));
    let read: QueryResult<i64> = {
        use crate::support::users;
        users::table.count().get_result(&mut limited).await
    };
    assert_eq!(read.unwrap_err().outcome(), Outcome::NotRun);
    nothing_waits(&local).await;
    drop(held);
}

/// A wait fails where a snapshot is held, so it comes before BEGIN.
#[tokio::test]
async fn a_read_only_transaction_waits_before_it_begins() {
    let Some(local) = able().await else { return };
    let builder = builder_for(&local, "app").read_only_transactions_on_replicas(true);
    let pool = build(builder.consistency(own_writes(PATIENT))).await;
    let held = hold(&local, BOTH).await;
    let mut conn = written(&pool, "one").await;
    let reading = tokio::spawn(async move {
        run(&mut conn, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .unwrap();
        let rows = count(&mut conn).await;
        let kind = conn.last_route().unwrap().kind;
        run(&mut conn, "COMMIT").await.unwrap();
        (rows, kind)
    });
    one_waits(&local).await;
    drop(held);
    assert_eq!(reading.await.unwrap(), (4, NodeKind::Replica));
}

/// A role may have another level of isolation by default.
#[tokio::test]
async fn reads_of_a_higher_isolation_wait_as_well() {
    let Some(local) = able().await else { return };
    on(&local, |local| {
        let higher = "ALTER DATABASE app SET default_transaction_isolation = 'repeatable read'";
        local.primary().sql("postgres", higher).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = pool_of(&local, PATIENT).await;
    let held = hold(&local, BOTH).await;
    let reading = write_and_read(&pool, "one").await;
    ends_on_a_replica(&local, held, reading).await;
}
