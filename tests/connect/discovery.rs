//! Lists of nodes that change: nodes join, leave and move, and nonsense changes nothing.
//!
//! Situations: Patroni scales in and out; an operator writes half a file; a name of the domain name system has no address for
//! a while; a list without the primary.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::discovery::{Discovery, DiscoveryError, Dns, File, from_fn};
use diesel_replicated::status::{Degradation, NodeHealth};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Consistency, Error, NodeConfig, ReplicatedPool};

use crate::balancer::balancer;
use crate::support::{count, eventually, insert, on, own_cluster, takes_a_write, users};

fn line(local: &LocalCluster, name: &str) -> String {
    format!("{name} {}\n", local.node(name).unwrap().url("app"))
}

/// A file of this text, which another takes the place of at once.
struct List {
    folder: tempfile::TempDir,
}

impl List {
    fn new(text: &str) -> Self {
        let list = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        list.write(text);
        list
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("nodes")
    }

    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}

async fn pool(source: impl Discovery) -> Result<ReplicatedPool, Error> {
    let quick = HealthConfig::default().interval(Duration::from_millis(200));
    let builder = ReplicatedPool::builder().health(quick).discovery(source);
    builder.failover_wait(Duration::from_secs(1)).build().await
}

fn names(pool: &ReplicatedPool) -> BTreeSet<String> {
    pool.status()
        .nodes
        .into_iter()
        .map(|node| node.name)
        .collect()
}

fn cause(pool: &ReplicatedPool) -> Option<String> {
    let degraded = pool.status().degraded;
    let found = degraded
        .into_iter()
        .find(|what| what.reason == Degradation::Discovery);
    found.map(|what| what.detail)
}

async fn has(pool: &ReplicatedPool, expected: &[&str]) {
    eventually(&format!("the nodes are {expected:?}"), async || {
        names(pool).iter().eq(expected)
    })
    .await;
}

async fn serves(pool: &ReplicatedPool, name: &str) {
    eventually(&format!("{name} serves"), async || {
        let mut conn = pool.get().await.unwrap();
        // Whatever is being written meanwhile.
        conn.set_consistency(Consistency::Eventual);
        count(&mut conn).await;
        conn.last_route().unwrap().node == name
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_and_leave_as_a_file_says_and_nonsense_changes_nothing() {
    let local = own_cluster().await;
    let [primary, one, two] = ["primary", "replica-1", "replica-2"].map(|name| line(&local, name));
    let list = List::new(&format!("# the nodes\n{primary}{one}"));
    let pool = pool(File::new(list.path())).await.unwrap();
    has(&pool, &["primary", "replica-1"]).await;
    serves(&pool, "replica-1").await;
    // One joins, under load, and one leaves.
    let (stop, load) = load(&pool);
    list.write(&format!("{primary}{one}{two}"));
    has(&pool, &["primary", "replica-1", "replica-2"]).await;
    serves(&pool, "replica-2").await;
    list.write(&format!("{primary}{two}"));
    has(&pool, &["primary", "replica-2"]).await;
    serves(&pool, "replica-2").await;
    // What cannot be meant.
    let many: String = (0..100)
        .map(|number| format!("n{number} postgres://a@10.0.0.1:{}/x\n", 1000 + number))
        .collect();
    for (text, why) in [
        (String::new(), "empty"),
        ("# nothing\n".to_owned(), "empty"),
        (many, "100 nodes"),
        (
            format!("{primary}{one}{one}"),
            "two nodes named `replica-1`",
        ),
        (format!("{primary}db9 mysql://a@b/c\n"), "`postgres://`"),
        (
            format!("{primary}db9 postgres://a:hunter2@b/c?sslmode=maybe\n"),
            "sslmode",
        ),
    ] {
        list.write(&text);
        eventually(&format!("it is told: {why}"), async || {
            cause(&pool).is_some_and(|cause| cause.contains(why))
        })
        .await;
        assert!(!cause(&pool).unwrap().contains("hunter2"));
        assert!(names(&pool).iter().eq(&["primary", "replica-2"]));
    }
    std::fs::remove_file(list.path()).unwrap();
    eventually("it is told that it is gone", async || {
        cause(&pool).is_some_and(|cause| cause.contains("nodes"))
    })
    .await;
    assert!(names(&pool).iter().eq(&["primary", "replica-2"]));
    // And back.
    list.write(&format!("{primary}{one}{two}"));
    has(&pool, &["primary", "replica-1", "replica-2"]).await;
    eventually("nothing is told any more", async || cause(&pool).is_none()).await;
    stop.cancel();
    for task in load {
        task.await.unwrap();
    }
}

/// Reads and writes of several tasks, none of which may fail.
fn load(
    pool: &ReplicatedPool,
) -> (
    tokio_util::sync::CancellationToken,
    Vec<tokio::task::JoinHandle<()>>,
) {
    let stop = tokio_util::sync::CancellationToken::new();
    let tasks = (0..4).map(|task| {
        let (pool, stop) = (pool.clone(), stop.clone());
        tokio::spawn(async move {
            let mut round = 0;
            while !stop.is_cancelled() {
                let mut conn = pool.get().await.unwrap();
                let name = format!("{task}-{round}");
                insert(&name).execute(&mut conn).await.unwrap();
                let own = users::table.filter(users::name.eq(name)).count();
                assert_eq!(own.get_result::<i64>(&mut conn).await.unwrap(), 1);
                round += 1;
            }
        })
    });
    (stop.clone(), tasks.collect())
}

// A list that has lost the primary, as while one is being replaced: it stays until another takes the writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_leaves_only_when_another_is_the_primary() {
    let local = own_cluster().await;
    let [primary, one, two] = ["primary", "replica-1", "replica-2"].map(|name| line(&local, name));
    let list = List::new(&format!("{primary}{one}{two}"));
    let pool = pool(File::new(list.path())).await.unwrap();
    list.write(&format!("{one}{two}"));
    eventually("it is told", async || {
        cause(&pool).is_some_and(|cause| cause.contains("`primary` cannot leave"))
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "primary");
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
        local.replicas()[1].follow(&local.replicas()[0]).unwrap();
    })
    .await;
    has(&pool, &["replica-1", "replica-2"]).await;
    eventually("the next one takes writes", async || {
        takes_a_write(&pool).await
    })
    .await;
}

// A server gets another address, and keeps its name: the node is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moves_keeps_its_name_and_its_history() {
    let local = own_cluster().await;
    let (port, _to) = balancer(&[local.replicas()[0].port()]).await;
    let [primary, one] = ["primary", "replica-1"].map(|name| line(&local, name));
    let list = List::new(&format!("{primary}{one}"));
    let pool = pool(File::new(list.path())).await.unwrap();
    serves(&pool, "replica-1").await;
    let before = pool.status().node("replica-1").unwrap().transitions.clone();
    let moved = format!("replica-1 postgres://postgres@127.0.0.1:{port}/app\n");
    list.write(&format!("{primary}{moved}"));
    eventually("it goes over", async || {
        let status = pool.status();
        let node = status.node("replica-1").unwrap();
        node.health == NodeHealth::Up && cause(&pool).is_none() && status.epoch > 0
    })
    .await;
    on(&local, move |_| ()).await;
    serves(&pool, "replica-1").await;
    let after = pool.status().node("replica-1").unwrap().transitions.clone();
    assert!(after.starts_with(&before), "{before:?} {after:?}");
    // One that cannot be reached changes nothing, and is tried again.
    list.write(&format!(
        "{primary}replica-1 postgres://postgres@127.0.0.1:1/app\n"
    ));
    eventually("it is told", async || {
        cause(&pool).is_some_and(|cause| cause.contains("replica-1"))
    })
    .await;
    serves(&pool, "replica-1").await;
}

// scylladb/python-driver 254, morphium 233: all nodes get other addresses at once, under other names. No statement fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_get_other_names_and_addresses_at_once() {
    let local = own_cluster().await;
    let [primary, one] = ["primary", "replica-1"].map(|name| line(&local, name));
    let list = List::new(&format!("{primary}{one}"));
    let pool = pool(File::new(list.path())).await.unwrap();
    serves(&pool, "replica-1").await;
    let (stop, load) = load(&pool);
    let ports = [local.primary().port(), local.replicas()[0].port()];
    let (to_primary, _) = balancer(&ports[..1]).await;
    let (to_one, _) = balancer(&ports[1..]).await;
    let new = |name: &str, port: u16| format!("{name} postgres://postgres@127.0.0.1:{port}/app\n");
    list.write(&format!("{}{}", new("a", to_primary), new("b", to_one)));
    has(&pool, &["a", "b"]).await;
    serves(&pool, "b").await;
    eventually("the new name of the primary takes writes", async || {
        pool.status().primary.as_deref() == Some("a") && pool.status().takes_writes
    })
    .await;
    stop.cancel();
    for task in load {
        task.await.unwrap();
    }
}

// The application's code panics, and then works again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_panics_changes_nothing() {
    let local = own_cluster().await;
    let urls = ["primary", "replica-1"].map(|name| (name, local.node(name).unwrap().url("app")));
    let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let source = from_fn(Duration::from_millis(300), move || {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let urls = urls.clone();
        async move {
            assert!(number % 8 < 4, "out of order");
            let nodes = urls
                .into_iter()
                .map(|(name, url)| NodeConfig::new(url).name(name));
            Ok(nodes.collect())
        }
    });
    let pool = pool(source).await.unwrap();
    eventually("it is told", async || {
        cause(&pool).is_some_and(|cause| cause.contains("panicked"))
    })
    .await;
    has(&pool, &["primary", "replica-1"]).await;
    eventually("it is over", async || cause(&pool).is_none()).await;
    serves(&pool, "replica-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_begins_with_the_list_or_with_what_it_was_given() {
    let local = own_cluster().await;
    let failing = || {
        from_fn(Duration::from_millis(100), async || {
            Err::<Vec<NodeConfig>, DiscoveryError>("out of order".into())
        })
    };
    let error = pool(failing()).await.unwrap_err();
    assert!(matches!(error, Error::Discovery { .. }), "{error:?}");
    assert!(error.to_string().contains("out of order"));
    let given = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("primary"))
        .discovery(failing())
        .build()
        .await
        .unwrap();
    eventually("it is told", async || cause(&given).is_some()).await;
    let mut conn = given.get().await.unwrap();
    count(&mut conn).await;
    // A name with an address: the nodes that were given stay beside it.
    let port = local.replicas()[0].port();
    let name = Dns::new(format!("postgres://postgres@localhost:{port}/app"))
        .interval(Duration::from_millis(100));
    let mixed = ReplicatedPool::builder()
        .primary(NodeConfig::new(local.primary().url("app")).name("primary"))
        .discovery(name)
        .build()
        .await
        .unwrap();
    let found = format!("localhost/127.0.0.1:{port}");
    assert!(names(&mixed).contains(&found), "{:?}", names(&mixed));
    serves(&mixed, &found).await;
    let closed = Arc::new(mixed);
    closed.close(Duration::from_secs(1)).await;
}

/// A source of what is put there, asked once in `interval`, and how often it was asked.
#[derive(Clone)]
struct Told {
    nodes: Arc<parking_lot::Mutex<Vec<NodeConfig>>>,
    asked: Arc<std::sync::atomic::AtomicU32>,
}

impl Told {
    fn new(nodes: &[NodeConfig]) -> Self {
        Self {
            nodes: Arc::new(parking_lot::Mutex::new(nodes.to_vec())),
            asked: Arc::default(),
        }
    }

    fn says(&self, nodes: &[NodeConfig]) {
        *self.nodes.lock() = nodes.to_vec();
    }

    fn asked(&self) -> u32 {
        std::sync::atomic::AtomicU32::load(&self.asked, std::sync::atomic::Ordering::Relaxed)
    }

    fn source(&self, interval: Duration) -> impl Discovery + use<> {
        let told = self.clone();
        from_fn(interval, move || {
            told.asked
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let nodes = told.nodes.lock().clone();
            async move { Ok(nodes) }
        })
    }
}

fn node(local: &LocalCluster, name: &str) -> NodeConfig {
    NodeConfig::new(local.node(name).unwrap().url("app")).name(name)
}

// A change that could not be made was tried again each second, and the source, which waits longer, was not asked any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_cannot_be_made_keeps_nobody_from_asking_again() {
    let local = own_cluster().await;
    let [primary, one, two] = ["primary", "replica-1", "replica-2"].map(|name| node(&local, name));
    let told = Told::new(&[primary.clone(), one.clone()]);
    let pool = pool(told.source(Duration::from_millis(1500)))
        .await
        .unwrap();
    let nowhere = NodeConfig::new("postgres://postgres@127.0.0.1:1/app").name("replica-1");
    told.says(&[primary.clone(), nowhere]);
    eventually("it is told", async || cause(&pool).is_some()).await;
    let before = told.asked();
    eventually("it is asked again", async || told.asked() > before + 2).await;
    told.says(&[primary.clone(), one.clone(), two.clone()]);
    has(&pool, &["primary", "replica-1", "replica-2"]).await;
    eventually("nothing is lacking", async || cause(&pool).is_none()).await;
    // What an operator has set meanwhile stays when something else changes.
    pool.set_max_size("replica-2", 3).await.unwrap();
    told.says(&[primary, one, two.tag("zone", "b")]);
    let tagged = || pool.status().node("replica-2").unwrap().clone();
    eventually("it is tagged", async || !tagged().tags.is_empty()).await;
    assert_eq!(tagged().max_size, 3);
}

// Nodes that accept and never answer were tried one after the other, and all else waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_answer_hold_up_no_other() {
    let local = own_cluster().await;
    let [primary, one, two] = ["primary", "replica-1", "replica-2"].map(|name| node(&local, name));
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let told = Told::new(&[primary.clone(), one.clone(), two.clone()]);
    let builder = ReplicatedPool::builder().connect_timeout(Duration::from_secs(120));
    let source = told.source(Duration::from_millis(200));
    let pool = builder.discovery(source).build().await.unwrap();
    let away = |name: &str| {
        NodeConfig::new(format!("postgres://postgres@127.0.0.1:{port}/app")).name(name)
    };
    told.says(&[primary.clone(), away("replica-1"), away("replica-2")]);
    let before = told.asked();
    eventually("it is asked again", async || told.asked() > before + 10).await;
    let third = NodeConfig::new(local.primary().url("postgres")).name("third");
    told.says(&[primary, away("replica-1"), third]);
    has(&pool, &["primary", "replica-1", "third"]).await;
    drop(silent);
}

/// Panics once, when a node leaves.
struct Panics(std::sync::atomic::AtomicBool);

impl tracing::Subscriber for Panics {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut leaves = false;
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                leaves |= field.name() == "message" && format!("{value:?}") == "node_left";
            },
        );
        let first = leaves && !self.0.swap(true, std::sync::atomic::Ordering::Relaxed);
        assert!(!first, "a subscriber is out of order");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

// block/proto-fleet 822: whoever listens panics.
#[tokio::test]
async fn a_subscriber_that_panics_ends_no_following() {
    let local = own_cluster().await;
    let [primary, one, two] = ["primary", "replica-1", "replica-2"].map(|name| node(&local, name));
    let subscriber = Panics(std::sync::atomic::AtomicBool::new(false));
    let _guard = crate::support::traced_by(subscriber);
    let told = Told::new(&[primary.clone(), one]);
    let pool = pool(told.source(Duration::from_millis(100))).await.unwrap();
    told.says(std::slice::from_ref(&primary));
    has(&pool, &["primary"]).await;
    told.says(&[primary, two]);
    has(&pool, &["primary", "replica-2"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_does_not_wait_asks_at_once_and_failures_are_events() {
    let local = own_cluster().await;
    let [primary, one] = ["primary", "replica-1"].map(|name| node(&local, name));
    let told = Told::new(&[primary.clone(), one.clone()]);
    let hourly = told.source(Duration::from_secs(3600));
    // What is given and listed is one node.
    let builder = ReplicatedPool::builder().primary(primary.clone());
    let pool = builder.discovery(hourly).build_unchecked().unwrap();
    has(&pool, &["primary", "replica-1"]).await;
    serves(&pool, "replica-1").await;
    assert_eq!(cause(&pool), None);
    let told = Told::new(&[]);
    let source = told.source(Duration::from_millis(100));
    let builder = ReplicatedPool::builder().primary(primary.clone());
    let pool = builder.discovery(source).build().await.unwrap();
    assert!(cause(&pool).unwrap().contains("empty"));
    let mut events = pool.subscribe();
    let next = async |events: &mut diesel_replicated::status::Events| loop {
        let event = futures_util::StreamExt::next(events).await.unwrap();
        if event.name().starts_with("degrad") {
            return event.name();
        }
    };
    told.says(&[primary.clone(), one]);
    assert_eq!(next(&mut events).await, "degradation_over");
    told.says(&[]);
    assert_eq!(next(&mut events).await, "degraded");
    // Under its own name, and another list.
    let url = local.primary().url("app");
    let told = Told::new(&[NodeConfig::new(url.as_str()), primary]);
    let source = told.source(Duration::from_millis(100));
    let builder = ReplicatedPool::builder().primary(url.as_str());
    builder.discovery(source).build().await.unwrap();
}
