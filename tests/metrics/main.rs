//! What a real exporter shows of a pool: every instrument, with the right numbers, and nothing that is nobody's business.
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::too_many_lines,
    missing_debug_implementations,
    dead_code,
    unreachable_pub,
    reason = "a program of tests, which fail by panicking; its helpers are those of the program `it`"
)]

mod page;
#[path = "../it/support.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use diesel::sql_query;
use diesel::sql_types::Text;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::{ConsistencyConfig, HealthConfig, WriteScope};
use diesel_replicated::metrics::{INSTRUMENTS, InstrumentKind};
use diesel_replicated::multi_primary::setup_sql;
use diesel_replicated::testing::{LocalCluster, LocalGroups};
use diesel_replicated::{Builder, MultiPrimaryPool, NodeConfig, ReplicatedPool, Routing};

use page::Page;
use support::{count, eventually, insert, on, own_cluster, run, takes_a_write};

/// A pool whose nodes have names of their own, so that tests in one process do not meet.
async fn pool(
    local: &LocalCluster,
    prefix: &str,
    change: impl FnOnce(Builder) -> Builder,
) -> ReplicatedPool {
    let named = |node: &diesel_replicated::testing::LocalNode| {
        NodeConfig::new(node.url("app")).name(format!("{prefix}-{}", node.name()))
    };
    let mut builder = ReplicatedPool::builder()
        .primary(named(local.primary()))
        .health(HealthConfig::default().interval(Duration::from_millis(100)));
    for replica in local.replicas() {
        builder = builder.replica(named(replica));
    }
    change(builder).build().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_counted_where_they_went_and_why() {
    page::recorder();
    let local = own_cluster().await;
    let own = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let pool = pool(&local, "count", |builder| builder.consistency(own)).await;
    for _ in 0..7 {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
    }
    let mut conn = pool.get().await.unwrap();
    conn.transaction(async |conn| insert("Barbara").execute(conn).await)
        .await
        .unwrap();
    assert!(run(&mut conn, "SELECT 1/0").await.is_err());
    drop(conn);
    let page = Page::read();
    let statements = |kind: &str, reason: &str| {
        page.sum(
            "diesel_replicated_statements",
            &[("kind", kind), ("reason", reason)],
            "count-",
        )
    };
    assert_eq!(statements("replica", "plain_select"), 7.0);
    // The insert and its COMMIT.
    assert_eq!(statements("primary", "in_transaction"), 2.0);
    assert_eq!(statements("primary", "transaction_control"), 1.0);
    let port = local.replicas()[0].port().to_string();
    let server = [("server_port", port.as_str())];
    let took = page.sum("db_client_operation_duration_count", &server, "");
    assert!(took >= 1.0, "{took}");
    let failed = [
        ("db_response_status_code", "22012"),
        ("error_type", "failed"),
    ];
    assert_eq!(
        page.sum("db_client_operation_duration_count", &failed, ""),
        1.0
    );
    let pool_name = [("db_client_connection_pool_name", "count-primary")];
    for name in ["create_time", "use_time"] {
        let times = page.sum(
            &format!("db_client_connection_{name}_count"),
            &pool_name,
            "",
        );
        assert!(times >= 1.0, "{name}: {times}");
    }
    assert_eq!(
        page.sum("db_client_connection_pending_requests", &pool_name, ""),
        0.0
    );
    // What is held back, by whether a replica was ready.
    pool.set_routing(Routing::Observe).unwrap();
    let before = page.sum("diesel_replicated_held_back", &[("ready", "true")], "");
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    let after = Page::read().sum("diesel_replicated_held_back", &[("ready", "true")], "");
    assert_eq!(after - before, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_of_nodes_and_a_failover_are_seen() {
    page::recorder();
    let local = own_cluster().await;
    let pool = pool(&local, "state", |builder| builder).await;
    let node = |name: &str, what: &str| {
        let page = Page::read();
        page.sum(&format!("diesel_replicated_{what}"), &[("node", name)], "")
    };
    eventually("all are up", || async {
        ["state-primary", "state-replica-1", "state-replica-2"]
            .iter()
            .all(|name| node(name, "node_up") == 1.0)
    })
    .await;
    on(&local, |local| local.replicas()[0].pause_replay().unwrap()).await;
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    eventually("the replica is behind", || async {
        node("state-replica-1", "replica_lag_bytes") > 0.0
            && node("state-replica-2", "replica_lag_bytes") == 0.0
    })
    .await;
    on(&local, |local| local.replicas()[0].resume_replay().unwrap()).await;
    let (failovers, pauses) = (
        Page::read().sum("diesel_replicated_failovers", &[], ""),
        Page::read().sum("diesel_replicated_write_pause_duration_count", &[], ""),
    );
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("writes go on", || async { takes_a_write(&pool).await }).await;
    eventually("the failover is counted", || async {
        let page = Page::read();
        page.sum("diesel_replicated_failovers", &[], "") >= failovers + 1.0
            && page.sum("diesel_replicated_write_pause_duration_count", &[], "") > pauses
            && node("state-primary", "node_up") == 0.0
            && page.sum(
                "diesel_replicated_node_serves",
                &[("node", "state-replica-1"), ("what", "writes")],
                "",
            ) == 1.0
    })
    .await;
    on(&local, |local| local.primary().start().unwrap()).await;
    eventually("the old primary is told of", || async {
        node("state-primary", "node_stray_primary") == 1.0
    })
    .await;
    assert_eq!(node("state-replica-1", "node_stray_primary"), 0.0);
    let page = Page::read();
    assert!(
        page.sum(
            "diesel_replicated_events",
            &[("event", "primary_changed")],
            ""
        ) >= 1.0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_statement_gets_out_and_labels_stay_few() {
    page::recorder();
    let local = own_cluster().await;
    let pool = pool(&local, "secret", |builder| builder).await;
    let mut conn = pool.get().await.unwrap();
    let raise = "CREATE FUNCTION raise(code text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN \
        RAISE EXCEPTION 'hunter2' USING ERRCODE = code; END $$";
    run(&mut conn, raise).await.unwrap();
    for number in 0..250 {
        let call = sql_query("SELECT raise($1)").bind::<Text, _>(format!("U{number:04}"));
        assert!(call.execute(&mut conn).await.is_err());
    }
    insert("hunter2").execute(&mut conn).await.unwrap();
    assert!(insert("hunter2").execute(&mut conn).await.is_err());
    let page = Page::read();
    assert!(!page.text.contains("hunter2") && !page.text.contains("SELECT"));
    let codes = page.values("db_response_status_code");
    assert!(codes.len() <= 150, "{}", codes.len());
    assert!(codes.contains("23505"));
}

// Each name is in the list, each of the list has been seen, each label is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_instruments_is_complete() {
    page::recorder();
    let local = own_cluster().await;
    let hasty = ConsistencyConfig::default()
        .wait(Duration::from_millis(50))
        .write_scope(WriteScope::Session);
    let pool = Arc::new(
        pool(&local, "list", |builder| {
            builder
                .consistency(hasty)
                .max_size(1)
                .connection_timeout(Duration::from_millis(50))
                // All nodes are outside of it.
                .prefer_zones(["elsewhere"])
        })
        .await,
    );
    let session = pool.session();
    for number in 0..3 {
        let mut conn = session.get().await.unwrap();
        insert(&format!("user {number}"))
            .execute(&mut conn)
            .await
            .unwrap();
        // Who holds the primary waits for no replica.
        drop(conn);
        count(&mut session.get().await.unwrap()).await;
    }
    let mut conn = pool.get().await.unwrap();
    insert("holder").execute(&mut conn).await.unwrap();
    // It waits in vain for the only connection.
    let mut other = pool.get().await.unwrap();
    assert!(insert("late").execute(&mut other).await.is_err());
    drop((conn, other));
    observe(&pool).await;
    refuse_a_token(&pool).await;
    let (_groups, _pool) = a_conflict().await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("all are seen", || async {
        let page = Page::read();
        INSTRUMENTS.iter().all(|it| page.has(it.name))
    })
    .await;
    let page = Page::read();
    for (name, labels) in page.series() {
        let Some(it) = INSTRUMENTS
            .iter()
            .find(|it| page::names(it.name).contains(&name))
        else {
            panic!("{name} is not in the list");
        };
        for label in labels {
            let known = it
                .labels
                .iter()
                .any(|known| known.replace('.', "_") == label);
            let bucket = it.kind == InstrumentKind::Histogram && label == "le";
            assert!(known || bucket, "{name} has the label {label}");
        }
    }
}

/// A key that has moved, and a row that two groups have written past the pool.
async fn a_conflict() -> (LocalGroups, MultiPrimaryPool) {
    let groups = ["eu", "us"].into_iter().fold(
        LocalGroups::builder().schema("CREATE TABLE notes (id bigint PRIMARY KEY)"),
        |groups, name| groups.group(name, 0).schema_of(name, setup_sql(name, "eu")),
    );
    let groups = groups.start().unwrap();
    let mut pool = MultiPrimaryPool::builder();
    for name in groups.names() {
        pool = pool.group(name, Builder::from_url(&groups.url(name)).unwrap());
    }
    let pool = pool.build().await.unwrap();
    pool.place("ada", "eu").await.unwrap();
    pool.move_home(["ada"], "us").await.unwrap();
    let cables = [("eu", "us"), ("us", "eu")];
    let cables = cables.map(|(from, to)| groups.cable(from, to).unwrap());
    cables.iter().for_each(|cable| cable.cut());
    for name in ["eu", "us"] {
        let primary = groups.primary_of(name).unwrap();
        primary.sql("app", "INSERT INTO notes VALUES (7)").unwrap();
    }
    cables.iter().for_each(|cable| cable.heal());
    (groups, pool)
}

async fn observe(pool: &ReplicatedPool) {
    pool.set_routing(Routing::Observe).unwrap();
    let mut conn = pool.get().await.unwrap();
    count(&mut conn).await;
    pool.set_routing(Routing::default()).unwrap();
}

/// A request with a cookie that is no token.
async fn refuse_a_token(pool: &ReplicatedPool) {
    use diesel_replicated::web::SessionLayer;
    use tower::ServiceExt;

    let router = axum::Router::new()
        .route("/", axum::routing::get(async || ()))
        .layer(SessionLayer::new(pool));
    let request = axum::extract::Request::builder()
        .header("cookie", "drs=nonsense")
        .body(axum::body::Body::empty())
        .unwrap();
    router.oneshot(request).await.unwrap();
}

/// Each name in the texts that begins as ours do.
fn used(text: &str) -> BTreeSet<&str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter| !is_part(letter));
    words
        .filter(|word| word.starts_with("diesel_replicated_") || word.starts_with("db_client_"))
        .collect()
}

// A panel or an alert on a name that nobody records shows a quiet day for ever.
#[test]
fn the_dashboard_and_the_alerts_use_only_what_there_is() {
    let labels = INSTRUMENTS.iter().flat_map(|it| it.labels);
    let labels: Vec<String> = labels.map(|label| label.replace('.', "_")).collect();
    let names: Vec<String> = INSTRUMENTS
        .iter()
        .flat_map(|it| page::names(it.name))
        .collect();
    let dashboard = include_str!("../../examples/monitoring/dashboard.json");
    let alerts = include_str!("../../examples/monitoring/alerts.yml");
    let tests = include_str!("../../examples/monitoring/alerts_test.yml");
    for text in [dashboard, alerts, tests] {
        assert!(used(text).len() > 5);
        for word in used(text) {
            let known = |known: &String| known == word;
            assert!(names.iter().chain(&labels).any(known), "{word}");
        }
    }
    // Each alert is tested, and the guide says what to do.
    let guide = include_str!("../../src/guide/operations.md");
    for alert in alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(tests.contains(alert), "{alert} has no test");
        assert!(
            guide.contains(&format!("`{alert}`")),
            "{alert} is not in the guide"
        );
    }
    serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
}

// A statement that fails after its first row, and a node that has left or been promoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_late_is_seen_too() {
    page::recorder();
    let local = own_cluster().await;
    let pool = pool(&local, "late", |builder| builder).await;
    let failed = [
        ("db_response_status_code", "22012"),
        ("error_type", "failed"),
    ];
    let count_of = || Page::read().sum("db_client_operation_duration_count", &failed, "");
    let before = count_of();
    let mut conn = pool.get().await.unwrap();
    let late = sql_query(
        "SELECT (10 / (5000 - g))::text AS name, g AS id FROM generate_series(1, 10000) g",
    );
    let rows: Result<Vec<Row>, _> = late.load(&mut conn).await;
    assert!(rows.is_err());
    assert_eq!(count_of() - before, 1.0);
    drop(conn);
    let up = |name: &str| Page::read().value("diesel_replicated_node_up", &[("node", name)]);
    eventually("it is up", || async { up("late-replica-2") == Some(1.0) }).await;
    pool.remove_replica("late-replica-2").await.unwrap();
    assert!(up("late-replica-2").unwrap().is_nan());
    let lag =
        |name: &str| Page::read().value("diesel_replicated_replica_lag_bytes", &[("node", name)]);
    on(&local, |local| {
        local.replicas()[0].pause_replay().unwrap();
        local
            .primary()
            .sql(
                "app",
                "CREATE TABLE much AS SELECT generate_series(1, 10000)",
            )
            .unwrap();
    })
    .await;
    eventually("it is behind", || async {
        lag("late-replica-1").is_some_and(|lag| lag > 0.0)
    })
    .await;
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("it is behind nobody", || async {
        lag("late-replica-1") == Some(0.0)
    })
    .await;
}

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    name: String,
}
