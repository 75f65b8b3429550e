//! Names and servers: one server under two names, a name over several servers, a name that leads to another database or,
//! one day, to another server or cluster.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::config::{ConsistencyConfig, HealthConfig, PromotionConfig, WriteScope};
use diesel_replicated::position::Lsn;
use diesel_replicated::status::{Degradation, NodeHealth, NodeKind, NodeStatus, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{
    Builder, Consistency, Error, ErrorExt, Event, NodeConfig, Outcome, ReplicatedPool,
};
use futures_util::StreamExt;

use crate::balancer::balancer;
use crate::support::{
    always, builder, cluster, count, database, eventually, insert, on, own_cluster, run,
    takes_a_write, who,
};

/// What the node is, in words.
fn standing(pool: &ReplicatedPool, name: &str) -> String {
    pool.status().node(name).unwrap().standing.clone()
}

fn unused(node: &NodeStatus) -> bool {
    node.kind.is_none() && !node.serves_reads && !node.serves_writes
}

/// Two names, of which the first is declared the primary.
async fn one_and_two(one: String, two: String) -> ReplicatedPool {
    ReplicatedPool::builder()
        .primary(NodeConfig::new(one).name("one"))
        .replica(NodeConfig::new(two).name("two"))
        .health(HealthConfig::default().interval(Duration::from_millis(100)))
        .build()
        .await
        .unwrap()
}

/// All nodes of a cluster behind proxies, as behind names that can be given to others.
fn named(local: &LocalCluster) -> Builder {
    let health = HealthConfig::default().interval(Duration::from_millis(200));
    let builder = ReplicatedPool::builder().health(health);
    local.nodes().fold(builder, |builder, node| {
        let url = node.proxied_url("app").unwrap();
        let config = NodeConfig::new(url).name(node.name());
        if node.name() == "primary" {
            builder.primary(config)
        } else {
            builder.replica(config)
        }
    })
}

// epgsql #47 speaks of `localhost` beside `127.0.0.1`: two names of one server are no two primaries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_there_under_two_names_is_one() {
    let database = database().await;
    let url = |host: &str| {
        let port = cluster().primary().port();
        format!("postgres://postgres@{host}:{port}/{database}")
    };
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(url("127.0.0.1")).name("one"))
        .replica(NodeConfig::new(url("localhost")).name("two"))
        .replica(NodeConfig::new(cluster().replicas()[0].url(&database)).name("replica"))
        .promotion(PromotionConfig::automatic())
        .build()
        .await
        .unwrap();
    eventually("the replica is up", || async {
        pool.status().node("replica").unwrap().serves_reads
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "one");
    assert_eq!(count(&mut conn).await, 4);
    let state = pool.status();
    let second = state.node("two").unwrap();
    assert!(unused(second), "{second:?}");
    assert!(
        second.standing.contains("the same server as `one`"),
        "{}",
        second.standing
    );
    // It takes a majority of servers, not of names.
    eventually("too few are told", || async {
        let told = pool.status().promotion.hindrances;
        told.iter()
            .any(|reason| reason.contains("of 2 none is left"))
    })
    .await;
    // It is in nobody's way.
    pool.check(Duration::from_secs(10)).await.unwrap();
}

// The same while the server is restarted: one name tells of the new run before the other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_names_stay_one_server_when_it_is_restarted() {
    let local = own_cluster().await;
    let pool = one_and_two(
        local.primary().url("app"),
        local.primary().proxied_url("app").unwrap(),
    )
    .await;
    let mut events = pool.subscribe();
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    on(&local, |local| local.primary().restart().unwrap()).await;
    // What is sent while the names change places is in doubt.
    eventually("the server takes writes", async || {
        takes_a_write(&pool).await
    })
    .await;
    // One name alone fails, and the other is used.
    on(&local, |local| local.primary().proxy().unwrap().cut()).await;
    eventually("the other is down", || async {
        pool.status().node("two").unwrap().health == NodeHealth::Down
    })
    .await;
    // What is sent before the session hears of the cut would be in doubt; a read tells it.
    let hears = async {
        while run(&mut conn.primary(), "SELECT 1").await.is_err()
            || conn.last_route().unwrap().node != "one"
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(20), hears).await;
    heard.expect("the session goes on under the other name");
    let before = count(&mut conn).await;
    assert!(before >= 5);
    insert("Frances").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, before + 1);
    on(&local, |local| local.primary().proxy().unwrap().heal()).await;
    eventually("it is told for what it is", || async {
        standing(&pool, "two").contains("the same server")
    })
    .await;
    pool.close(Duration::from_secs(5)).await;
    while let Some(event) = events.next().await {
        if let Event::StandingChanged { standing, .. } = event {
            assert!(!standing.contains("and so does another"), "{standing}");
        }
    }
}

// A name fails for a while; its server goes on under the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_name_serves_while_the_first_one_leads_nowhere() {
    let local = own_cluster().await;
    let pool = one_and_two(
        local.primary().proxied_url("app").unwrap(),
        local.primary().url("app"),
    )
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "one");
    on(&local, |local| local.primary().proxy().unwrap().cut()).await;
    eventually("the other name serves", || async {
        let mut conn = pool.get().await.unwrap();
        insert("Edith").execute(&mut conn).await.is_ok() && conn.last_route().unwrap().node == "two"
    })
    .await;
    // Nothing moves back: it is the same server.
    on(&local, |local| local.primary().proxy().unwrap().heal()).await;
    eventually("the first is there again", || async {
        standing(&pool, "one").contains("the same server as `two`")
    })
    .await;
    always("two stays", Duration::from_secs(1), || async {
        pool.status().primary.as_deref() == Some("two")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_added_under_a_second_name_is_one_replica() {
    let database = database().await;
    let pool = builder(&database).build().await.unwrap();
    let port = cluster().replicas()[0].port();
    let again = format!("postgres://postgres@localhost:{port}/{database}");
    pool.add_replica(NodeConfig::new(again).name("again"))
        .await
        .unwrap();
    eventually("it is told for what it is", || async {
        let state = pool.status();
        let again = state.node("again").unwrap();
        unused(again) && again.standing.contains("the same server as `replica-1`")
    })
    .await;
    pool.remove_replica("again").await.unwrap();
}

// django-multidb-router #49: the read replica has a host, a port and a database name of its own to mistype. Reads
// there answer from another database, or fail in a way that looks like a replica that is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_another_database_serves_nothing_and_says_so() {
    let (ours, other) = (database().await, database().await);
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(cluster().primary().url(&ours)).name("primary"))
        .replica(NodeConfig::new(cluster().replicas()[0].url(&other)).name("wrong"))
        .replica(NodeConfig::new(cluster().replicas()[1].url(&ours)).name("right"))
        .build()
        .await
        .unwrap();
    eventually("the right one is up", || async {
        pool.status().node("right").unwrap().serves_reads
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    for _ in 0..20 {
        assert_eq!(count(&mut conn).await, 3);
        assert_ne!(conn.last_route().unwrap().node, "wrong");
    }
    let state = pool.status();
    let wrong = state.node("wrong").unwrap();
    assert!(unused(wrong), "{wrong:?}");
    let told = format!("connected to database `{other}`, where the others are to `{ours}`");
    assert!(wrong.standing.contains(&told), "{}", wrong.standing);
}

// canonical/pgbouncer-k8s-operator #148: one pooler offers `app` and `app_readonly`. Without a pooler in between, two
// databases of one address are one server, and that is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_of_one_address_are_two_nodes_until_the_server_says_otherwise() {
    let (ours, other) = (database().await, database().await);
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(cluster().primary().url(&ours)).name("app"))
        .replica(NodeConfig::new(cluster().primary().url(&other)).name("readonly"))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    assert_eq!(conn.last_route().unwrap().kind, NodeKind::Primary);
    let said = standing(&pool, "readonly");
    assert!(said.contains("the same server as `app`"), "{said}");
    // The same address and database twice is a mistake of whoever wrote it.
    let twice = ReplicatedPool::builder()
        .primary(NodeConfig::new(cluster().primary().url(&ours)).name("app"))
        .replica(NodeConfig::new(cluster().primary().url(&ours)).name("again"))
        .build()
        .await;
    assert!(matches!(twice, Err(Error::Config(_))), "{twice:?}");
}

// aws-advanced-jdbc-wrapper #1920 and #2096: after a blue/green deployment the same names lead to another cluster, and
// clients stay with the old one, or block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_follows_when_every_name_leads_to_another_cluster() {
    let (blue, green) = (own_cluster().await, own_cluster().await);
    let pool = {
        let blue = Arc::clone(&blue);
        crate::support::blocking(move || named(&blue)).await
    };
    let pool = pool.build().await.unwrap();
    let mut events = pool.subscribe();
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    let token = conn.session_token().await;
    let old = pool.status().cluster.unwrap();

    // Half of the names lead there: nothing is written to either.
    let lead = |from: usize, to: usize| {
        let names: Vec<u16> = green.nodes().map(|node| node.port()).collect();
        on(&blue, move |blue| {
            for (node, port) in blue.nodes().zip(names).take(to).skip(from) {
                node.proxy().unwrap().lead_to(port);
            }
        })
    };
    lead(0, 2).await;
    eventually("two are of another cluster", || async {
        let state = pool.status();
        state.nodes.iter().filter(|node| unused(node)).count() == 2
    })
    .await;
    always("nothing is followed", Duration::from_secs(2), || async {
        let state = pool.status();
        !state.takes_writes && state.cluster == Some(old)
    })
    .await;

    lead(2, 3).await;
    eventually("writes go to the new cluster", || async {
        pool.status().takes_writes
    })
    .await;
    let new = pool.status().cluster.unwrap();
    assert_ne!(new, old);
    // What the session wrote is not there, and it is told so.
    assert_eq!(count(&mut conn).await, 3);
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::LostWrite);
    assert!(conn.lost_write().is_some());
    // A session that begins now has lost nothing, and reads what it writes.
    let mut fresh = pool.get().await.unwrap();
    insert("Edith").execute(&mut fresh).await.unwrap();
    assert_eq!(count(&mut fresh).await, 4);
    assert!(fresh.lost_write().is_none());
    eventually("replicas serve again", || async {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await == 4 && who(&mut conn).await.starts_with("replica")
    })
    .await;
    // A token of the cluster before makes no request fail.
    let mut resumed = pool.get_with(&token).await.unwrap();
    assert_eq!(count(&mut resumed).await, 4);
    let told = async {
        loop {
            if let Some(Event::ClusterReplaced { from, to, .. }) = events.next().await {
                return (from, to);
            }
        }
    };
    assert_eq!(told.await, (old, new));
}

// DNS, Consul, Kubernetes: a second name of the primary's server is given to a replica, while that server goes on. From
// then on the name is a node of its own, and whatever ran over it before ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_name_that_is_given_to_another_server_is_a_node_of_its_own() {
    let local = own_cluster().await;
    let pool = one_and_two(
        local.primary().url("app"),
        local.primary().proxied_url("app").unwrap(),
    )
    .await;
    eventually("two names are one server", || async {
        standing(&pool, "two").contains("the same server as `one`")
    })
    .await;
    on(&local, |local| {
        let port = local.replicas()[0].port();
        local.primary().proxy().unwrap().lead_to(port);
    })
    .await;
    eventually("the second name serves reads as a replica", || async {
        let state = pool.status();
        let two = state.node("two").unwrap();
        two.kind == Some(NodeKind::Replica) && two.serves_reads
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().node, "one");
}

/// The URL of database `app` behind a port.
fn at(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/app")
}

async fn the_second_replica_stands_still(local: &Arc<LocalCluster>) {
    on(local, |local| {
        local.wait_caught_up().unwrap();
        local.replicas()[1].pause_replay().unwrap();
    })
    .await;
}

// CloudNativePG's and Aurora's read-only endpoints, HAProxy, MySqlConnector #1201 and #1648, npgsql #5807, proxysql #4212,
// redisson #2485, ClickHouse #5383: one name leads to several servers, or leads elsewhere while old connections go on. What
// one of them reports says nothing of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_moves_while_its_old_server_lives_shows_no_session_less_than_it_wrote() {
    let local = own_cluster().await;
    let [one, two] = [0, 1].map(|n| local.replicas()[n].port());
    let (port, to) = balancer(&[one]).await;
    let pool = over_a_balancer(&local, port).await;
    // The pool watches the first server, and its connections lead to the second, which stands still.
    *to.lock().unwrap() = vec![two];
    the_second_replica_stands_still(&local).await;
    reads_its_writes(&pool).await;
    on(&local, |local| local.replicas()[1].resume_replay().unwrap()).await;
    eventually("the name serves again", || async {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        conn.last_route().unwrap().node == "ro"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_over_several_replicas_shows_no_session_less_than_it_wrote_and_is_told() {
    let local = own_cluster().await;
    let ports = [0, 1].map(|n| local.replicas()[n].port());
    let (port, _to) = balancer(&ports).await;
    let pool = over_a_balancer(&local, port).await;
    the_second_replica_stands_still(&local).await;
    reads_its_writes(&pool).await;
    on(&local, |local| local.replicas()[1].resume_replay().unwrap()).await;
    // Each keeps the connection that it read on, so that new ones are opened.
    let held = Mutex::new(Vec::new());
    eventually("it is told", || async {
        if held.lock().unwrap().len() == 38 {
            held.lock().unwrap().clear();
        }
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        held.lock().unwrap().push(conn);
        let told = pool.status().degraded;
        told.iter()
            .any(|it| it.reason == Degradation::SeveralServers)
    })
    .await;
    drop(held);
    the_second_replica_stands_still(&local).await;
    reads_its_writes(&pool).await;
    // Who asks for nothing is served there.
    let mut conn = pool.get().await.unwrap();
    conn.set_consistency(Consistency::Eventual);
    eventually("it serves what may be old", || async {
        let mut conn = pool.get().await.unwrap();
        conn.set_consistency(Consistency::Eventual);
        count(&mut conn).await;
        conn.last_route().unwrap().node == "ro"
    })
    .await;
}

// A Kubernetes service over all pods, beside the name of the primary: it leads to the primary, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_over_all_servers_shows_no_session_less_than_it_wrote() {
    let local = own_cluster().await;
    let mut ports = vec![local.primary().port()];
    ports.extend(local.replicas().iter().map(LocalNode::port));
    let (port, _to) = balancer(&ports[1..]).await;
    let pool = over_a_balancer(&local, port).await;
    let (all, _to) = balancer(&ports).await;
    let name = NodeConfig::new(at(all)).name("all");
    pool.add_replica(name).await.unwrap();
    the_second_replica_stands_still(&local).await;
    for _ in 0..4 {
        reads_its_writes(&pool).await;
    }
    assert_eq!(pool.status().primary.as_deref(), Some("rw"));
}

// A Kubernetes service over all pods as the only name, because it was that before there were replicas. Half of its
// connections lead to standbys. No write is lost or done twice. One that is under way when the name is found to lead to a
// standby may be in doubt, as the guide says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_name_over_all_servers_loses_no_write() {
    let local = own_cluster().await;
    let [one, two] = [0, 1].map(|n| local.replicas()[n].port());
    // The monitor meets the primary.
    let ports = [one, local.primary().port(), two];
    let (all, _to) = balancer(&ports).await;
    let pool = Builder::from_url(&at(all))
        .unwrap()
        .failover_wait(Duration::from_millis(500))
        .build_unchecked()
        .unwrap();
    let (mut done, mut in_doubt) = (0, 0);
    for n in 0..8 {
        let mut conn = pool.get().await.unwrap();
        match insert(&format!("n{n}")).execute(&mut conn).await {
            Ok(_) => done += 1,
            Err(error) if error.outcome() == Outcome::Unknown => in_doubt += 1,
            Err(error) => assert_eq!(error.outcome(), Outcome::NotRun, "{error}"),
        }
    }
    let direct = ReplicatedPool::connect(&local.primary().url("app"))
        .await
        .unwrap();
    let there = count(&mut direct.get().await.unwrap()).await;
    let fits = done + 3..=done + in_doubt + 3;
    assert!(
        fits.contains(&there),
        "{there} of {done}, {in_doubt} in doubt"
    );
}

/// A pool whose only name leads to the primary, and may be led elsewhere.
async fn of_one_name(port: u16) -> ReplicatedPool {
    ReplicatedPool::builder()
        .primary(NodeConfig::new(at(port)).name("rw"))
        .failover_wait(Duration::from_secs(20))
        .build()
        .await
        .unwrap()
}

// Aurora's and CloudNativePG's writer endpoints: the name of the primary is led to a replica that was promoted, and the old
// primary lives. Who had its connection writes there no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_the_primary_moves_to_a_promoted_replica_for_all_sessions() {
    let local = own_cluster().await;
    let (port, to) = balancer(&[local.primary().port()]).await;
    let pool = of_one_name(port).await;
    let mut old = pool.get().await.unwrap();
    insert("first").execute(&mut old).await.unwrap();
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    *to.lock().unwrap() = vec![local.replicas()[0].port()];
    let mut held = Vec::new();
    for n in 0..3 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("new{n}")).execute(&mut conn).await.unwrap();
        held.push(conn);
    }
    eventually("the pool knows of the next primary", || async {
        pool.status().timeline == 2
    })
    .await;
    assert_eq!(count(&mut old).await, 7);
    insert("late").execute(&mut old).await.unwrap();
    let there = ReplicatedPool::connect(&local.replicas()[0].url("app"))
        .await
        .unwrap();
    assert_eq!(count(&mut there.get().await.unwrap()).await, 8);
}

// The same endpoint leads to a standby for a while, as in a switchover before it follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_the_primary_comes_back_from_a_standby_that_lives() {
    let local = own_cluster().await;
    let (port, to) = balancer(&[local.primary().port()]).await;
    let pool = of_one_name(port).await;
    let mut conn = pool.get().await.unwrap();
    insert("before").execute(&mut conn).await.unwrap();
    drop(conn);
    *to.lock().unwrap() = vec![local.replicas()[0].port()];
    eventually("the pool has no primary", || async {
        // The second needs a new connection.
        let mut conns = [pool.get().await.unwrap(), pool.get().await.unwrap()];
        for conn in &mut conns {
            let reading = conn.primary_connection();
            let _ = tokio::time::timeout(Duration::from_millis(100), reading).await;
        }
        !pool.status().takes_writes
    })
    .await;
    *to.lock().unwrap() = vec![local.primary().port()];
    let mut conn = pool.get().await.unwrap();
    insert("after").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 5);
}

// A read is under way when its node's name is led to a replica that is behind. What it saw is not what that one shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_never_sees_less_after_the_name_of_its_replica_has_moved() {
    let local = own_cluster().await;
    let [one, two] = [0, 1].map(|n| local.replicas()[n].port());
    let (port, to) = balancer(&[one]).await;
    let causal = ConsistencyConfig::from(Consistency::Causal).write_scope(WriteScope::Session);
    let pool = over_a_balancer_with(&local, port, causal).await;
    let stands: Lsn = on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.replicas()[1].pause_replay().unwrap();
        let others = "INSERT INTO users (name) VALUES ('of another process')";
        local.primary().sql("app", others).unwrap();
        let place = "SELECT pg_last_wal_replay_lsn()";
        let rows = local.replicas()[1].sql("app", place).unwrap();
        rows[0][0].as_ref().unwrap().parse().unwrap()
    })
    .await;
    let mut reader = pool.get().await.unwrap();
    eventually("the replica shows it", || async {
        let replica = &mut pool.get().await.unwrap();
        count(&mut replica.replica()).await == 4
    })
    .await;
    let shows = || pool.status().node("ro").unwrap().position.map(|it| it.lsn);
    eventually("the pool knows that", || async { shows() > Some(stands) }).await;
    let slow = async {
        let slow = "SELECT 1 FROM users, (SELECT pg_sleep(2)) AS pause";
        run(&mut reader, slow).await.unwrap();
    };
    let moved = async {
        *to.lock().unwrap() = vec![two];
        // Each keeps its connection, so that new ones are opened.
        let held = Mutex::new(Vec::new());
        eventually("the pool watches the other replica", || async {
            if held.lock().unwrap().len() < 20 {
                let mut conn = pool.get().await.unwrap();
                count(&mut conn).await;
                held.lock().unwrap().push(conn);
            }
            shows().is_some() && shows() <= Some(stands)
        })
        .await;
    };
    tokio::join!(slow, moved);
    assert_eq!(reader.last_route().unwrap().node, "ro");
    let token = reader.session_token().await;
    let mut next = pool.get_with(&token).await.unwrap();
    assert_eq!(count(&mut next).await, 4, "{:?}", next.last_route());
    assert_eq!(count(&mut reader).await, 4, "{:?}", reader.last_route());
}

// The right to ask for the start of the server is granted while the pool runs: new connections ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_granted_later_shows_where_names_lead() {
    let local = own_cluster().await;
    let [one, two] = [0, 1].map(|n| local.replicas()[n].port());
    let setup = "REVOKE EXECUTE ON FUNCTION pg_postmaster_start_time() FROM PUBLIC; \
                 CREATE ROLE little LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO little; \
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO little";
    on(&local, move |local| {
        local.primary().sql("app", setup).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let (port, to) = balancer(&[one]).await;
    let little = |port| at(port).replace("postgres@", "little@");
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(little(local.primary().port())).name("rw"))
        .replica(NodeConfig::new(little(port)).name("ro"))
        .max_size(40)
        .build()
        .await
        .unwrap();
    let lacking = || {
        let state = pool.status();
        let limited = state.nodes.iter().flat_map(|node| &node.limited);
        limited
            .filter(|limit| limit.right.contains("start_time"))
            .count()
    };
    eventually("the right is missing on both", || async { lacking() == 2 }).await;
    on(&local, |local| {
        let grant = "GRANT EXECUTE ON FUNCTION pg_postmaster_start_time() TO little";
        local.primary().sql("app", grant).unwrap();
    })
    .await;
    eventually("the right is there", || async { lacking() == 0 }).await;
    *to.lock().unwrap() = vec![two];
    the_second_replica_stands_still(&local).await;
    reads_its_writes(&pool).await;
}

async fn over_a_balancer(local: &LocalCluster, port: u16) -> ReplicatedPool {
    over_a_balancer_with(local, port, ConsistencyConfig::default()).await
}

async fn over_a_balancer_with(
    local: &LocalCluster,
    port: u16,
    consistency: ConsistencyConfig,
) -> ReplicatedPool {
    let pool = ReplicatedPool::builder()
        .consistency(consistency)
        .primary(NodeConfig::new(local.primary().url("app")).name("rw"))
        .replica(NodeConfig::new(at(port)).name("ro"))
        .max_size(80)
        .build()
        .await
        .unwrap();
    eventually("the endpoint serves reads", || async {
        pool.status().node("ro").unwrap().serves_reads
    })
    .await;
    pool
}

/// Whatever one connection has written, others of the pool read, also over connections that are opened for it.
async fn reads_its_writes(pool: &ReplicatedPool) {
    let mut conn = pool.get().await.unwrap();
    let mut before = count(&mut conn.primary()).await;
    // Each keeps the connection that it read on, so that new ones are opened.
    let mut held = Vec::new();
    for _ in 0..6 {
        insert(&format!("user {before}"))
            .execute(&mut conn)
            .await
            .unwrap();
        before += 1;
        for _ in 0..3 {
            let mut fresh = pool.get().await.unwrap();
            assert_eq!(count(&mut fresh).await, before, "{:?}", fresh.last_route());
            held.push(fresh);
        }
    }
}

// The lock of a promotion is taken over a connection to another database (`PromotionConfig::database`). What the
// promoted server says there is not taken for the database that the pool is connected to; else its connections would
// end, and a write on one of them would be in doubt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_over_another_database_leaves_the_node_where_it_is() {
    let local = own_cluster().await;
    let pool = named(&local)
        .promotion(PromotionConfig::automatic())
        .build()
        .await
        .unwrap();
    let mut events = pool.subscribe();
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
    })
    .await;
    let promoted = |event: &Event| matches!(event, Event::Promoted { .. });
    let mut all = Vec::new();
    while !all.iter().any(promoted) {
        all.push(events.next().await.unwrap());
    }
    eventually("the promoted replica takes writes", || async {
        let state = pool.status();
        state.takes_writes && state.primary.is_some_and(|name| name != "primary")
    })
    .await;
    pool.close(Duration::ZERO).await;
    all.extend(events.collect::<Vec<_>>().await);
    let strays = all.iter().filter(|event| {
        matches!(event, Event::StandingChanged { standing, .. } if standing.contains("connected to database"))
    });
    assert_eq!(strays.count(), 0, "{all:?}");
    assert_eq!(all.iter().filter(|event| promoted(event)).count(), 1);
}

// CloudNativePG, Patroni on Kubernetes: a name that always leads to the primary, beside the names of the nodes. It is no
// node of its own, before a failover and after it, and counts in no majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_follows_the_primary_is_no_node_of_its_own() {
    let local = own_cluster().await;
    let node = |node: &LocalNode| NodeConfig::new(node.url("app")).name(node.name());
    // A port of its own, which leads to whoever is the primary.
    let endpoint = local.primary().proxied_url("app").unwrap();
    let replicas = local.replicas().iter();
    let builder = ReplicatedPool::builder()
        .primary(NodeConfig::new(endpoint).name("rw"))
        .replica(node(local.primary()));
    let builder = replicas.fold(builder, |builder, replica| builder.replica(node(replica)));
    let pool = builder
        .promotion(PromotionConfig::automatic())
        .failover_wait(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("Barbara").execute(&mut conn).await.unwrap();
    let first = pool.status();
    assert_eq!(first.nodes.iter().filter(|node| unused(node)).count(), 1);
    // Two of three servers are a majority; of four names they would be none.
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
    })
    .await;
    // What is sent before the death is known, by either name, would be in doubt.
    eventually("its death is known", || async {
        let state = pool.status();
        let dead = |name| state.node(name).unwrap().health == NodeHealth::Down;
        dead("rw") && dead("primary")
    })
    .await;
    // A connection through the name may hear of the end a moment later.
    eventually("the next one takes writes", async || {
        let mut conn = pool.get().await.unwrap();
        insert("Edith").execute(&mut conn).await.is_ok()
    })
    .await;
    drop(conn);
    let mut conn = pool.get().await.unwrap();
    let promoted = pool.status().primary.unwrap();
    assert!(promoted.starts_with("replica"), "{promoted}");
    on(&local, move |local| {
        let port = local.node(&promoted).unwrap().port();
        local.primary().proxy().unwrap().lead_to(port);
    })
    .await;
    eventually("the name is one of the new primary", || async {
        let state = pool.status();
        let twins = state
            .nodes
            .iter()
            .filter(|node| node.standing.contains("the same server"));
        state.takes_writes && twins.count() == 1
    })
    .await;
    for n in 0..20 {
        insert(&format!("n{n}")).execute(&mut conn).await.unwrap();
    }
    assert_eq!(count(&mut conn).await, 25);
    assert_eq!(pool.status().timeline, 2);
}
