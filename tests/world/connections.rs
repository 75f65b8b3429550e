//! Connections as the world has them: odd addresses and passwords, servers that end them, pools that are full, replaced
//! or dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::HealthConfig;
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{ErrorExt, NodeConfig, Outcome, ReplicatedConnection, ReplicatedPool};

use crate::support::{
    all_up, always, blocking, builder, builder_for, cluster, count, database, eventually, fill,
    insert, on, own_cluster, run, users, who,
};

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

async fn text(conn: &mut ReplicatedConnection, sql: &str) -> String {
    let row: Name = sql_query(sql).get_result(conn).await.unwrap();
    row.name
}

// node-postgres #133: a password with a `%` breaks the connection string.
#[tokio::test]
async fn a_password_may_be_of_any_characters() {
    let local = own_cluster().await;
    on(&local, |local| {
        local
            .primary()
            .sql(
                "app",
                "CREATE ROLE odd LOGIN PASSWORD 'p@ss/w:rd#?%&=é '; GRANT ALL ON users TO odd",
            )
            .unwrap();
        local.wait_caught_up().unwrap();
        for node in local.nodes() {
            let hba = node.data_dir().join("pg_hba.conf");
            let trusted = std::fs::read_to_string(&hba).unwrap();
            let asked = "host all odd 127.0.0.1/32 scram-sha-256\n";
            std::fs::write(&hba, format!("{asked}{trusted}")).unwrap();
            node.sql("app", "SELECT pg_reload_conf()").unwrap();
        }
    })
    .await;
    let url = |password: &str| {
        let hosts: Vec<String> = local
            .nodes()
            .map(|node| format!("127.0.0.1:{}", node.port()))
            .collect();
        format!("postgres://odd:{password}@{}/app", hosts.join(","))
    };
    let wrong = ReplicatedPool::connect(&url("hunter2")).await.unwrap_err();
    let said = wrong.to_string();
    assert!(said.contains("password authentication failed"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let right = url("p%40ss%2Fw%3Ard%23%3F%25%26%3D%C3%A9%20");
    let pool = ReplicatedPool::connect(&right).await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    assert_eq!(conn.last_route().unwrap().kind, NodeKind::Replica);
}

// supavisor #206: `options=-c search_path=…` is ignored on the way.
#[tokio::test]
async fn options_of_the_url_hold_on_every_node() {
    let database = database().await;
    let url = |node: &diesel_replicated::testing::LocalNode| {
        format!(
            "{}?options=-c%20search_path%3Dpg_temp%2Cpublic%20-c%20work_mem%3D7MB",
            node.url(&database)
        )
    };
    let pool = cluster().replicas().iter().fold(
        ReplicatedPool::builder()
            .primary(NodeConfig::new(url(cluster().primary())).name("primary")),
        |builder, node| builder.replica(NodeConfig::new(url(node)).name(node.name())),
    );
    let pool = pool.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let look =
        "SELECT current_setting('search_path') || ' ' || current_setting('work_mem') AS name";
    for _ in 0..2 {
        assert_eq!(text(&mut conn.replica(), look).await, "pg_temp,public 7MB");
        assert_eq!(text(&mut conn.primary(), look).await, "pg_temp,public 7MB");
        // What a session changes goes back to that.
        run(&mut conn, "SET work_mem = '9MB'").await.unwrap();
        assert_eq!(text(&mut conn.replica(), look).await, "pg_temp,public 9MB");
        drop(std::mem::replace(&mut conn, pool.get().await.unwrap()));
    }
}

// asyncpg #838: an address in brackets is not read.
#[tokio::test]
async fn an_address_of_the_newer_kind_is_one() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        // This machine has none.
        return;
    }
    let local = blocking(|| {
        let builder = LocalCluster::builder().replicas(1);
        let local = builder
            .setting("listen_addresses", "127.0.0.1,::1")
            .start()
            .unwrap();
        fill(&local, "app");
        for node in local.nodes() {
            let hba = node.data_dir().join("pg_hba.conf");
            let trusted = std::fs::read_to_string(&hba).unwrap();
            std::fs::write(&hba, format!("{trusted}\nhost all all ::1/128 trust\n")).unwrap();
            node.sql("app", "SELECT pg_reload_conf()").unwrap();
        }
        local
    })
    .await;
    let (one, two) = (local.primary().port(), local.replicas()[0].port());
    let pool = ReplicatedPool::builder()
        .primary(format!("postgres://postgres@[::1]:{one}/app"))
        .replica(format!("host=::1 port={two} user=postgres dbname=app"))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "replica-1");
    assert_eq!(conn.last_route().unwrap().node, format!("[::1]:{two}"));
}

// porsager/postgres #1057: the folder of a socket, percent-encoded as a host, is not decoded.
#[tokio::test]
async fn a_socket_of_the_machine_is_an_address_too() {
    let folder = std::env::temp_dir().join(format!("dr-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&folder, mode).unwrap();
    let sockets = folder.to_str().unwrap().to_owned();
    let local = blocking(move || {
        let builder = LocalCluster::builder().replicas(1);
        let local = builder
            .setting("unix_socket_directories", sockets)
            .start()
            .unwrap();
        fill(&local, "app");
        local
    })
    .await;
    let host = folder.to_str().unwrap().replace('/', "%2F");
    let of = |port: u16| format!("postgres://postgres@{host}:{port}/app");
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(of(local.primary().port())).name("primary"))
        .replica(format!(
            "host={} port={} user=postgres dbname=app",
            folder.display(),
            local.replicas()[0].port()
        ))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "replica-1");
    insert("by socket").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    pool.close(Duration::from_secs(5)).await;
    drop(local);
    let _ = std::fs::remove_dir_all(&folder);
}

// node-postgres #2112: after ten idle minutes the next query fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_server_ends_for_being_idle_fail_nobody() {
    let local = own_cluster().await;
    on(&local, |local| {
        local
            .primary()
            .sql(
                "postgres",
                "ALTER DATABASE app SET idle_session_timeout = '150ms'",
            )
            .unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = builder_for(&local, "app")
        .max_size(4)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    for n in 0..6 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("idle {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
        assert_eq!(count(&mut conn).await, 4 + n);
        // Idle in whoever's hands, and in the pool.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(count(&mut conn).await, 4 + n);
        insert("kept").execute(&mut conn.primary()).await.unwrap();
        run(&mut conn, "DELETE FROM users WHERE name = 'kept'")
            .await
            .unwrap();
        drop(conn);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Whoever ended a connection unasked is looked at, and serves meanwhile.
    let serves = |pool: &ReplicatedPool| pool.status().nodes.iter().all(|node| node.serves_reads);
    always("every node serves", Duration::from_millis(300), || async {
        serves(&pool)
    })
    .await;
}

// porsager/postgres #1155: what comes after the end of its connection runs outside of the transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_was_ended_for_being_idle_is_lost_as_a_whole() {
    let pool = builder(&database().await)
        .max_size(2)
        .build()
        .await
        .unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    let done = conn
        .transaction(async |conn| {
            run(
                conn,
                "SET LOCAL idle_in_transaction_session_timeout = '50ms'",
            )
            .await?;
            insert("first").execute(conn).await?;
            tokio::time::sleep(Duration::from_millis(400)).await;
            insert("second").execute(conn).await
        })
        .await;
    let error = done.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
    assert_eq!(count(&mut conn).await, 3);
    insert("after").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    assert!(all_up(&pool));
}

// pgcat #622: a server is banned because a query on it took too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_too_long_fails_once_and_says_nothing_of_its_node() {
    let pool = builder(&database().await).build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "SET statement_timeout = '100ms'")
        .await
        .unwrap();
    let started = Instant::now();
    let slow = "SELECT count(*) FROM generate_series(1, 1000000000)";
    let error = run(&mut conn, slow).await.unwrap_err();
    assert!(error.to_string().contains("statement timeout"), "{error}");
    assert_eq!(error.outcome(), Outcome::Failed);
    assert!(started.elapsed() < Duration::from_secs(20));
    always("every node serves", Duration::from_millis(500), || async {
        all_up(&pool)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lets_nobody_read_yet_serves_nothing() {
    let local = own_cluster().await;
    on(&local, |local| {
        let node = &local.replicas()[1];
        node.sql("postgres", "ALTER SYSTEM SET hot_standby = off")
            .unwrap();
        node.stop(diesel_replicated::testing::StopMode::Fast)
            .unwrap();
    })
    .await;
    let starting = {
        let local = Arc::clone(&local);
        // It does not come up as far as `start` waits for.
        tokio::task::spawn_blocking(move || local.replicas()[1].start())
    };
    let builder = builder_for(&local, "app").start_read_only(true);
    let pool = builder.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    for n in 0..10 {
        insert(&format!("hot {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
        assert_eq!(count(&mut conn).await, 4 + n);
        assert_ne!(conn.last_route().unwrap().node, "replica-2");
    }
    let cold = pool.status().node("replica-2").unwrap().clone();
    assert!(!cold.serves_reads);
    // Who started it waits until it can be connected to.
    let file = local.replicas()[1].data_dir().join("postmaster.pid");
    let pid = || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.lines().next().map(str::to_owned)
    };
    eventually("its process has begun", || async { pid().is_some() }).await;
    let pid = pid().unwrap();
    let ended = std::process::Command::new("kill")
        .args(["-9", &pid])
        .status();
    assert!(ended.unwrap().success());
    assert!(starting.await.unwrap().is_err());
}

// sqlx #83: futures that are dropped while they wait for a connection take its place with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stops_waiting_for_a_connection_leaves_its_place() {
    let pool = builder(&database().await)
        .max_size(1)
        .build()
        .await
        .unwrap();
    let mut holder = pool.get().await.unwrap();
    run(&mut holder, "BEGIN").await.unwrap();
    for _ in 0..200 {
        let mut waiting = pool.get().await.unwrap();
        let write = insert("never").execute(&mut waiting);
        let waited = tokio::time::timeout(Duration::from_millis(1), write).await;
        assert!(waited.is_err());
    }
    run(&mut holder, "COMMIT").await.unwrap();
    drop(holder);
    for n in 0..5 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("after {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
    }
    assert_eq!(count(&mut pool.get().await.unwrap()).await, 8);
    assert_eq!(pool.status().connections_out, 0);
}

// sqlx #3292: all connections reach their age at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_old_are_replaced_without_a_word() {
    let builder = builder(&database().await).max_size(3);
    let builder = builder.max_lifetime(Duration::from_millis(60));
    let pool = builder.build().await.unwrap();
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for n in 0..30 {
                    let mut conn = pool.get().await.unwrap();
                    insert(&format!("{task} {n}"))
                        .execute(&mut conn)
                        .await
                        .unwrap();
                    count(&mut conn).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(count(&mut pool.get().await.unwrap()).await, 183);
}

// raml-module-builder #1095: a name that does not resolve is a bare "Timeout".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_nobody_knows_is_named() {
    let database = database().await;
    let started = Instant::now();
    let pool = ReplicatedPool::builder()
        .primary(NodeConfig::new(cluster().primary().url(&database)).name("known"))
        .replica(
            NodeConfig::new(format!(
                "postgres://postgres@no-such-host.invalid/{database}"
            ))
            .name("typo"),
        )
        .build()
        .await
        .unwrap();
    assert!(started.elapsed() < Duration::from_secs(30));
    let cause = pool.status().node("typo").unwrap().cause.clone().unwrap();
    assert!(cause.contains("typo"), "{cause}");
    assert_eq!(count(&mut pool.get().await.unwrap()).await, 3);
    let alone = ReplicatedPool::connect("postgres://postgres@no-such-host.invalid/x").await;
    let said = alone.unwrap_err().to_string();
    assert!(said.contains("no-such-host.invalid"), "{said}");
}

// sqlx #1389: a pool or listener that is dropped after its runtime panics.
#[test]
fn a_pool_may_outlive_its_runtime() {
    let pool = {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let pool = runtime.block_on(async {
            let pool = builder(&database().await).build().await.unwrap();
            count(&mut pool.get().await.unwrap()).await;
            pool
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        pool
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let refused = runtime.block_on(async {
        match pool.get().await {
            Ok(mut conn) => run(&mut conn, "SELECT 1")
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    });
    let said = refused.unwrap_err();
    assert!(said.contains("closed"), "{said}");
    drop(pool);
}

// asyncpg #1247: of a hundred workers that wait for ten connections some wait too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_longest_is_served_first() {
    let pool = builder(&database().await)
        .max_size(1)
        .build()
        .await
        .unwrap();
    let mut holder = pool.get().await.unwrap();
    run(&mut holder, "BEGIN").await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for n in 0..12 {
        let (pool, order) = (pool.clone(), Arc::clone(&order));
        tasks.push(tokio::spawn(async move {
            let mut conn = pool.get().await.unwrap();
            insert(&format!("w{n}")).execute(&mut conn).await.unwrap();
            order.lock().unwrap().push(n);
        }));
        // It is waiting before the next one comes.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    run(&mut holder, "COMMIT").await.unwrap();
    drop(holder);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..12).collect::<Vec<_>>());
}

// pgpool2 #137: replicas that are back get no reads until somebody attaches them by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_back_to_the_replicas_when_these_are_back() {
    let local = own_cluster().await;
    let health = HealthConfig::default().slow_start(Duration::from_millis(100));
    let pool = builder_for(&local, "app")
        .fallback_share(1.0)
        .health(health);
    let pool = pool.build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    let mut held = pool.get().await.unwrap();
    assert_eq!(count(&mut held).await, 3);
    on(&local, |local| {
        local
            .replicas()
            .iter()
            .for_each(|node| node.kill().unwrap())
    })
    .await;
    assert_eq!(count(&mut held).await, 3);
    let route = held.last_route().unwrap();
    // Whether it was tried on one of them first is a matter of moments.
    let reasons = [RouteReason::NoUsableReplica, RouteReason::ReplicaFailed];
    assert_eq!(route.kind, NodeKind::Primary);
    assert!(reasons.contains(&route.reason), "{route:?}");
    on(&local, |local| {
        local
            .replicas()
            .iter()
            .for_each(|node| node.start().unwrap())
    })
    .await;
    eventually("all are up", || async { all_up(&pool) }).await;
    // On the connection that was held all the time as well.
    for _ in 0..20 {
        assert_eq!(count(&mut held).await, 3);
        assert_eq!(held.last_route().unwrap().kind, NodeKind::Replica);
    }
}

// bitnami-docker-pgpool #1: nodes that came back after a failover are not used until the pooler is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_rebuilt_at_its_address_serves_again() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    eventually("all are up", || async { all_up(&pool) }).await;
    on(&local, |local| {
        let node = &local.replicas()[0];
        node.kill().unwrap();
        local.rebuild(node, local.primary()).unwrap();
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    insert("rebuilt").execute(&mut conn).await.unwrap();
    eventually("it serves", || async {
        let mut conn = pool.get().await.unwrap();
        let rows: i64 = users::table.count().get_result(&mut conn).await.unwrap();
        assert_eq!(rows, 4);
        who(&mut conn).await == "replica-1"
    })
    .await;
}
