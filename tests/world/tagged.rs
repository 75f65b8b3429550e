//! Reads that ask for nodes with a tag: reports beside web requests.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryDsl;
use diesel::result::Error as DieselError;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::TagConfig;
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{
    Builder, Consistency, ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool,
};
use tokio::sync::oneshot;

use crate::support::{
    all_up, always, blocking, builder_for, count, eventually, fill, insert, on, own_cluster_of,
    run, users, who,
};

const TAG: &str = "analytics";

/// A pool whose replicas from this one on have the tag, and are read by it alone.
fn builder(local: &LocalCluster, first: usize, tag: TagConfig) -> Builder {
    let primary = local.primary();
    let primary = NodeConfig::new(primary.url("app")).name("primary");
    let builder = ReplicatedPool::builder().primary(primary).tagged(TAG, tag);
    let replicas = local.replicas().iter().enumerate();
    replicas.fold(builder, |builder, (place, replica)| {
        let node = NodeConfig::new(replica.url("app")).name(replica.name());
        builder.replica(match place >= first {
            true => node.tag(TAG, "true").no_reads(true),
            false => node.tag(TAG, "false"),
        })
    })
}

async fn built(builder: Builder) -> ReplicatedPool {
    let pool = builder.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    pool
}

/// Which node a report reads from.
async fn reported(conn: &mut ReplicatedConnection) -> String {
    who(&mut *conn.tagged(TAG)).await
}

// passport #2139: reports need a replica of their own, with other limits. gorm's dbresolver #47: what was meant for one replica
// fails, or goes anywhere, when that is gone.
#[tokio::test]
async fn reports_and_web_requests_each_have_their_nodes() {
    let local = own_cluster_of(3).await;
    let pool = built(builder(&local, 2, TagConfig::default())).await;
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        assert_ne!(who(&mut conn).await, "replica-3");
        assert_eq!(reported(&mut conn).await, "replica-3");
        assert_ne!(who(&mut conn).await, "replica-3");
    }
    on(&local, |local| local.replicas()[2].kill().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    let gone = || async {
        let mut conn = pool.get().await.unwrap();
        let error = run(&mut conn.tagged(TAG), "SELECT 1").await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
        error
            .to_string()
            .starts_with("no replica with the tag `analytics` can serve")
    };
    eventually("nothing stands in", gone).await;
    assert_ne!(who(&mut conn).await, "replica-3");
}

// metabase #23243: one pool for all, and the long queries have its connections.
#[tokio::test]
async fn a_report_takes_no_connection_from_a_web_request_nor_the_other_way() {
    let local = own_cluster_of(1).await;
    let node = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url("app")).name(node.name())
    };
    let replica = node(&local.replicas()[0]).tag(TAG, "yes");
    let builder = ReplicatedPool::builder()
        .primary(node(local.primary()))
        .replica(replica)
        .max_size(1)
        .tagged(TAG, TagConfig::default().max_size(1));
    let pool = built(builder).await;
    let (mut report, mut web) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    // What it has of everybody's it gives back.
    assert_eq!(who(&mut report).await, "replica-1");
    run(&mut report.primary(), "SELECT 1").await.unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (over, is_over) = oneshot::channel();
    let report = async {
        let reading = async |conn: &mut ReplicatedConnection| {
            let node = who(conn).await;
            begun.send(()).unwrap();
            is_over.await.unwrap();
            Ok::<_, DieselError>(node)
        };
        report.tagged(TAG).snapshot(reading).await.unwrap()
    };
    let others = async {
        has_begun.await.unwrap();
        // The report has its only connection.
        assert_eq!(who(&mut web).await, "replica-1");
        run(&mut pool.get().await.unwrap().primary(), "SELECT 1")
            .await
            .unwrap();
        let another = pool.clone();
        let another = tokio::spawn(async move {
            let mut conn = another.get().await.unwrap();
            reported(&mut conn).await
        });
        always("it waits", Duration::from_millis(100), || async {
            !another.is_finished()
        })
        .await;
        // So does the web request, which keeps its own.
        over.send(()).unwrap();
        assert_eq!(another.await.unwrap(), "replica-1");
    };
    let (node, ()) = tokio::join!(report, others);
    assert_eq!(node, "replica-1");
    let status = pool.status();
    let own = &status.node("replica-1").unwrap().tagged[TAG];
    assert_eq!((own.connections, own.max_size), (1, 1));
    assert!(status.node("primary").unwrap().tagged.is_empty());
}

// aws-advanced-jdbc-wrapper PR 2109: whoever names a reader reads it however old it is.
#[tokio::test]
async fn a_report_sees_what_its_session_has_written_or_is_told() {
    let local = own_cluster_of(2).await;
    let wait = Duration::from_millis(200);
    let pool = built(builder(&local, 1, TagConfig::default().wait(wait))).await;
    on(&local, |local| local.replicas()[1].pause_replay().unwrap()).await;
    let session = pool.session();
    let mut conn = session.get().await.unwrap();
    insert("new").execute(&mut conn).await.unwrap();
    drop(conn);
    let mut conn = session.get().await.unwrap();
    let error = run(&mut conn.tagged(TAG), "SELECT 1").await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    let words = error.to_string();
    assert!(
        words.contains("`analytics` shows what this session must see"),
        "{words}"
    );
    // So are a read that no replica would get elsewhere, and a transaction.
    let volatile = diesel::sql_query("SELECT random()");
    let volatile = volatile.execute(&mut *conn.tagged(TAG)).await.unwrap_err();
    let begun = conn
        .tagged(TAG)
        .transaction(async |_| Ok::<_, DieselError>(()))
        .await
        .unwrap_err();
    for error in [volatile, begun] {
        assert!(
            error
                .to_string()
                .contains("shows what this session must see"),
            "{error}"
        );
    }
    let strong = run(
        &mut conn.tagged(TAG).with_consistency(Consistency::Strong),
        "SELECT 1",
    )
    .await;
    let words = strong.unwrap_err().to_string();
    assert!(
        words.contains("only the primary can show") && words.contains("(strong)"),
        "{words}"
    );
    let mut report = conn.tagged(TAG);
    let old = count(&mut report.with_consistency(Consistency::Eventual)).await;
    drop(report);
    on(&local, |local| local.replicas()[1].resume_replay().unwrap()).await;
    let shown = || async {
        let mut conn = session.get().await.unwrap();
        let mut report = conn.tagged(TAG);
        rows(&mut report).await.is_ok_and(|rows| rows == old + 1)
    };
    eventually("it is there", shown).await;
}

async fn rows(conn: &mut ReplicatedConnection) -> Result<i64, DieselError> {
    users::table.count().get_result(conn).await
}

/// It is slow on one server, and holds a snapshot meanwhile.
const REPORT: &str = "CREATE FUNCTION report() RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN
    PERFORM count(*) FROM users;
    IF current_setting('cluster_name') = 'replica-2' THEN PERFORM pg_sleep(60); END IF;
    RETURN current_setting('cluster_name'); END $$";

// sequelize #7179, graph-node #4327, spicedb PR 2233, cube #3904: a conflict with recovery cancels long reads first, and they
// fail. PostgREST #3673: they are tried again on the same replica without end, which holds up its replay.
#[tokio::test]
async fn a_report_that_recovery_cancels_runs_again_on_another_with_the_tag() {
    let local = blocking(|| {
        let builder = LocalCluster::builder().replicas(3);
        let builder = builder.setting("max_standby_streaming_delay", "0");
        let local = builder.start().unwrap();
        fill(&local, "app");
        local.primary().sql("app", REPORT).unwrap();
        local.wait_caught_up().unwrap();
        Arc::new(local)
    })
    .await;
    let node = |name: &str| {
        let node = local.node(name).unwrap();
        NodeConfig::new(node.url("app")).name(name)
    };
    let builder = ReplicatedPool::builder()
        .primary(node("primary"))
        .replica(node("replica-1"))
        .replica(node("replica-2").tag(TAG, "1").no_reads(true))
        // It is read when the other one cannot be.
        .replica(node("replica-3").tag(TAG, "1").no_reads(true).weight(0))
        .tagged(TAG, TagConfig::default())
        .allow_function("report");
    let pool = built(builder).await;
    let mut conn = pool.get().await.unwrap();
    let report = async {
        let report = diesel::sql_query("SELECT report()");
        report.execute(&mut *conn.tagged(TAG)).await
    };
    let vacuum = async {
        loop {
            on(&local, |local| {
                let change = "UPDATE users SET visits = visits + 1";
                local.primary().sql("app", change).unwrap();
                local.primary().sql("app", "VACUUM users").unwrap();
            })
            .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        done = report => assert_eq!(done, Ok(1)),
        () = vacuum => {}
    }
    assert_eq!(conn.last_route().unwrap().node, "replica-3");
}

#[tokio::test]
async fn a_report_has_a_limit_of_its_own_and_ends_with_its_view() {
    let local = own_cluster_of(1).await;
    let limit = Duration::from_millis(300);
    let pool = builder(&local, 0, TagConfig::default().statement_deadline(limit));
    let pool = built(pool.statement_deadline(Duration::from_secs(60))).await;
    let mut conn = pool.get().await.unwrap();
    let late = diesel::sql_query("SELECT pg_sleep(30)");
    let error = late.execute(&mut *conn.tagged(TAG)).await.unwrap_err();
    assert!(error.to_string().contains("300ms"), "{error}");
    // Who asks for the primary within the view has its limit, as the next one has.
    let slow = diesel::sql_query("SELECT pg_sleep(0.4)");
    slow.execute(&mut *conn.tagged(TAG).primary())
        .await
        .unwrap();
    assert_eq!(conn.last_route().unwrap().node, "primary");
    diesel::sql_query("SELECT pg_sleep(0.4)")
        .execute(&mut conn)
        .await
        .unwrap();
    assert_eq!(conn.last_route().unwrap().node, "primary");
    assert_eq!(reported(&mut conn).await, "replica-1");
}

#[tokio::test]
async fn a_tag_that_the_pool_was_not_told_of_is_named() {
    let local = own_cluster_of(1).await;
    let pool = built(builder(&local, 0, TagConfig::default())).await;
    let mut conn = pool.get().await.unwrap();
    for sql in ["SELECT 1", "INSERT INTO users (name) VALUES ('x')", "BEGIN"] {
        let error = run(&mut conn.tagged("analitics"), sql).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotRun);
        let words = error.to_string();
        assert!(
            words.contains("`analitics`") && words.contains("some for analytics"),
            "{words}"
        );
    }
    assert_eq!(count(&mut conn).await, 3);
    let pool = builder_for(&local, "app").build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let error = run(&mut conn.tagged(TAG), "SELECT 1").await.unwrap_err();
    assert!(error.to_string().ends_with("it has none"), "{error}");
}
