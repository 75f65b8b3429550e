//! Starting with nodes missing, changing the nodes, and closing.

use std::time::{Duration, Instant};

use diesel::sql_query;
use diesel::sql_types::Integer;
use diesel_async::RunQueryDsl;
use diesel_replicated::error::ConnectErrorKind;
use diesel_replicated::status::{NodeHealth, NodeKind, RouteReason};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Error, NodeConfig, ReplicatedPool};

use crate::support::{
    Number, Shared, all_up, blocking, builder, builder_for, cluster, count, database, eventually,
    fill, insert, pool, who,
};

#[tokio::test]
async fn roles_are_found_by_asking() {
    let database = database().await;
    let pool = ReplicatedPool::connect(&cluster().url(&database))
        .await
        .unwrap();
    let state = pool.status();
    let port = cluster().primary().port();
    assert_eq!(state.primary, Some(format!("127.0.0.1:{port}")));
    let kinds: Vec<_> = state.nodes.iter().map(|node| node.kind).collect();
    let replica = Some(NodeKind::Replica);
    assert_eq!(kinds, [Some(NodeKind::Primary), replica, replica]);
    let mut conn = pool.get().await.unwrap();
    assert_ne!(who(&mut conn).await, "primary");
    insert("Found").execute(&mut conn).await.unwrap();
}

#[tokio::test]
async fn the_servers_word_counts_more_than_the_declaration() {
    let database = database().await;
    let [one, two] = cluster().replicas() else {
        panic!("two replicas");
    };
    // As after a failover that the configuration does not know of.
    let swapped = ReplicatedPool::builder()
        .primary(one.url(&database))
        .replica(cluster().primary().url(&database))
        .build()
        .await
        .unwrap();
    let mut conn = swapped.get().await.unwrap();
    insert("Found").execute(&mut conn).await.unwrap();
    assert_eq!(who(&mut conn.replica()).await, "replica-1");
    // With nothing to write to, the declaration is named as what may be wrong.
    let none = ReplicatedPool::builder()
        .primary(one.url(&database))
        .replica(two.url(&database))
        .build()
        .await;
    let Err(Error::NoPrimary { nodes, .. }) = none else {
        panic!("{none:?}");
    };
    assert!(
        nodes[0].contains("declared the primary, but is a standby"),
        "{nodes:?}"
    );
}

#[tokio::test]
async fn two_primaries_are_refused() {
    let other = blocking(|| LocalCluster::builder().replicas(0).start().unwrap()).await;
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres",
        cluster().primary().port(),
        other.primary().port()
    );
    let refused = ReplicatedPool::connect(&url).await;
    assert!(
        matches!(&refused, Err(Error::TwoPrimaries { nodes }) if nodes.len() == 2),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_unreachable_primary_is_an_error_with_its_cause_unless_reads_suffice() {
    let local = blocking(|| {
        let local = LocalCluster::start().unwrap();
        fill(&local, "app");
        local.primary().kill().unwrap();
        local
    })
    .await;
    let started = Instant::now();
    let refused = builder_for(&local, "app").build().await;
    let Err(Error::NoPrimary { nodes, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(nodes[0].contains("nothing listens there"), "{nodes:?}");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "fails within the connect timeout"
    );

    let pool = builder_for(&local, "app")
        .start_read_only(true)
        .failover_wait(Duration::from_secs(1))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    let error = insert("Never").execute(&mut conn).await.unwrap_err();
    assert!(
        error.to_string().contains("nothing listens there"),
        "{error}"
    );

    let local = blocking(|| {
        local.primary().start().unwrap();
        local
    })
    .await;
    eventually("the primary takes writes", || async {
        let mut conn = pool.get().await.unwrap();
        insert("Later").execute(&mut conn).await.is_ok()
    })
    .await;
    blocking(|| drop(local)).await;
}

#[tokio::test]
async fn a_replica_that_is_down_comes_in_when_it_comes_up() {
    let local = blocking(|| {
        let local = LocalCluster::builder().replicas(1).start().unwrap();
        fill(&local, "app");
        local.replicas()[0].kill().unwrap();
        local
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let state = pool.status();
    let replica = state.node("replica-1").unwrap();
    assert_eq!(replica.health, NodeHealth::Down);
    assert!(
        replica
            .cause
            .as_ref()
            .unwrap()
            .contains("nothing listens there")
    );
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "primary");
    assert_eq!(
        conn.last_route().unwrap().reason,
        RouteReason::NoUsableReplica
    );

    let local = blocking(|| {
        local.replicas()[0].start().unwrap();
        local
    })
    .await;
    eventually("the replica serves", || async {
        let mut conn = pool.get().await.unwrap();
        who(&mut conn).await == "replica-1"
    })
    .await;
    blocking(|| drop(local)).await;
}

#[tokio::test]
async fn replicas_are_added_removed_and_drained_while_statements_run() {
    let database = database().await;
    let replica = |place: usize| {
        let node = &cluster().replicas()[place];
        NodeConfig::new(node.url(&database)).name(node.name())
    };
    let pool = ReplicatedPool::builder()
        .primary(cluster().primary().url(&database))
        .replica(replica(0))
        .build()
        .await
        .unwrap();
    let mut reader = pool.get().await.unwrap();
    let running = tokio::spawn(async move {
        let slow = sql_query("SELECT 7 AS number FROM pg_sleep(0.5)");
        let number: Number = slow.get_result(&mut reader).await.unwrap();
        (number.number, reader)
    });
    eventually("the statement runs", || async {
        pool.status().node("replica-1").unwrap().in_flight == 1
    })
    .await;
    pool.add_replica(replica(1)).await.unwrap();
    assert!(matches!(
        pool.add_replica(replica(1)).await,
        Err(Error::DuplicateNode { .. })
    ));
    eventually("the new replica is up", || async { all_up(&pool) }).await;
    pool.remove_replica("replica-1").await.unwrap();
    // It returned because the statement had ended.
    let (number, mut reader) = running.await.unwrap();
    assert_eq!(number, 7);
    assert!(pool.status().node("replica-1").is_none());
    assert_eq!(
        who(&mut reader).await,
        "replica-2",
        "a held connection moves on"
    );
    assert!(matches!(
        pool.remove_replica("replica-1").await,
        Err(Error::UnknownNode { .. })
    ));
    let primary = pool.status().primary.unwrap();
    assert!(matches!(
        pool.remove_replica(&primary).await,
        Err(Error::IsPrimary { .. })
    ));
    assert!(matches!(
        pool.set_weight("replica-2", -1).await,
        Err(Error::Config(_))
    ));
}

#[tokio::test]
async fn close_waits_for_what_is_out_and_hands_out_nothing_more() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close(Duration::from_secs(30)).await }
    });
    eventually("closed", || async { pool.is_closed() }).await;
    assert!(matches!(pool.get().await, Err(Error::Closed)));
    assert_eq!(count(&mut conn).await, 3, "what is out goes on");
    assert!(!closing.is_finished());
    drop(conn);
    assert_eq!(closing.await.unwrap(), 0);
}

#[tokio::test]
async fn close_ends_every_server_connection_at_its_deadline() {
    let database = database().await;
    let pool = builder(&database)
        .setup_sql("SET application_name = 'to be closed'")
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("Out").execute(&mut conn).await.unwrap();
    assert_eq!(pool.close(Duration::from_millis(50)).await, 1);
    let error = insert("More").execute(&mut conn).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    eventually("no server connection is left", || async {
        blocking(|| {
            let count =
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'to be closed'";
            cluster()
                .nodes()
                .all(|node| node.sql("postgres", count).unwrap()[0][0].as_deref() == Some("0"))
        })
        .await
    })
    .await;
}

#[tokio::test]
async fn an_exhausted_pool_says_so() {
    let database = database().await;
    let pool = builder(&database)
        .max_size(1)
        .connection_timeout(Duration::from_millis(100))
        .build()
        .await
        .unwrap();
    let mut holder = pool.get().await.unwrap();
    insert("Holder").execute(&mut holder).await.unwrap();
    let mut waiter = pool.get().await.unwrap();
    let error = insert("Waiter").execute(&mut waiter).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`primary`") && text.contains("max_size"),
        "{text}"
    );
    drop(holder);
    insert("Waiter").execute(&mut waiter).await.unwrap();
}

#[tokio::test]
async fn failures_to_connect_are_told_at_once_with_their_cause() {
    let database = database().await;
    let expect = |url: String, kind: ConnectErrorKind| async move {
        let started = Instant::now();
        let pool = ReplicatedPool::builder()
            .primary(url)
            .connection_timeout(Duration::from_secs(60))
            .build_unchecked()
            .unwrap();
        let mut conn = pool.get().await.unwrap();
        let query = diesel::select(diesel::dsl::sql::<Integer>("1"));
        let error = query
            .get_result::<i32>(&mut conn.primary())
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&kind.to_string()), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(20));
    };
    let port = cluster().primary().port();
    expect(
        format!("postgres://postgres:hunter2@127.0.0.1:{port}/no_such_database"),
        ConnectErrorKind::NoDatabase,
    )
    .await;
    expect(
        format!("postgres://nobody_here:hunter2@127.0.0.1:{port}/{database}"),
        ConnectErrorKind::Authentication,
    )
    .await;
    expect(
        "postgres://postgres:hunter2@127.0.0.1:9/app".to_owned(),
        ConnectErrorKind::Refused,
    )
    .await;
}

#[tokio::test]
async fn a_set_up_that_panics_is_a_failure_to_connect_and_mends_itself() {
    let database = database().await;
    let calls = Shared::default();
    let set_up = calls.clone();
    let pool = builder(&database)
        .start_read_only(true)
        .on_connect(move |_| {
            let first = set_up.get() == 0;
            set_up.add(1);
            Box::pin(async move {
                assert!(!first, "a mistake in the set-up");
                Ok(())
            })
        })
        .build()
        .await
        .unwrap();
    eventually("all nodes are up", || async { all_up(&pool) }).await;
    assert!(calls.get() > 3, "one of the nodes was asked again");
    let mut conn = pool.get().await.unwrap();
    assert_eq!(count(&mut conn).await, 3);
}
