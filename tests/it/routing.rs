//! Where statements go.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Integer, Text};
use diesel_async::RunQueryDsl;
use diesel_replicated::config::Policy;
use diesel_replicated::status::RouteReason;

use crate::support::{
    assert_route, builder, cluster, count, current_setting, database, insert, pool, run, users, who,
};

#[tokio::test]
async fn plain_selects_run_on_replicas_by_weight() {
    let database = database().await;
    let mut replicas = cluster().replicas().iter();
    let (one, two) = (replicas.next().unwrap(), replicas.next().unwrap());
    let pool = diesel_replicated::ReplicatedPool::builder()
        .primary(cluster().primary().url(&database))
        .replica(diesel_replicated::NodeConfig::new(one.url(&database)).weight(3))
        .replica(diesel_replicated::NodeConfig::new(two.url(&database)).weight(1))
        .policy(Policy::RoundRobin)
        .build()
        .await
        .unwrap();
    let mut served: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..80 {
        let mut conn = pool.get().await.unwrap();
        *served.entry(who(&mut conn).await).or_default() += 1;
    }
    let expected = [("replica-1".to_owned(), 60), ("replica-2".to_owned(), 20)];
    assert_eq!(served, BTreeMap::from(expected));
}

#[tokio::test]
async fn every_policy_uses_every_replica() {
    let database = database().await;
    for policy in [
        Policy::LatencyAware,
        Policy::WeightedRandom,
        Policy::LeastInFlight,
        Policy::RoundRobin,
    ] {
        let pool = builder(&database).policy(policy).build().await.unwrap();
        let mut served = BTreeMap::<String, usize>::new();
        for _ in 0..60 {
            let mut conn = pool.get().await.unwrap();
            *served.entry(who(&mut conn).await).or_default() += 1;
        }
        assert_eq!(
            served.keys().collect::<Vec<_>>(),
            ["replica-1", "replica-2"],
            "{policy:?}, {:#?}",
            pool.status()
        );
    }
}

#[tokio::test]
async fn one_connection_keeps_its_replica() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let first = who(&mut conn).await;
    for _ in 0..20 {
        assert_eq!(who(&mut conn).await, first);
    }
    assert_route(&conn, &first);
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
}

#[tokio::test]
async fn writes_run_on_the_primary_and_are_read_back() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    let (name, server): (String, String) = diesel::insert_into(users::table)
        .values(users::name.eq("Barbara"))
        .returning((users::name, current_setting("cluster_name")))
        .get_result(&mut conn)
        .await
        .unwrap();
    assert_eq!((name.as_str(), server.as_str()), ("Barbara", "primary"));
    assert_route(&conn, "primary");
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::Write);

    assert_eq!(count(&mut conn).await, 4);
}

#[tokio::test]
async fn nothing_is_checked_out_before_the_first_statement() {
    let pool = pool().await;
    let conns = futures_util::future::join_all((0..100).map(|_| pool.get())).await;
    assert_eq!(conns.len(), 100);
    assert_eq!(pool.status().connections_out, 100);
    assert!(conns.iter().all(Result::is_ok));
    let idle =
        |node: &diesel_replicated::status::NodeStatus| node.connections == node.idle_connections;
    assert!(pool.status().nodes.iter().all(idle));
}

#[tokio::test]
async fn locking_selects_and_volatile_functions_run_on_the_primary() {
    let pool = pool().await;
    let cases = [
        (
            "SELECT current_setting('cluster_name') AS server FROM users FOR UPDATE",
            RouteReason::LockingClause,
        ),
        (
            "WITH u AS (UPDATE users SET visits = 1 RETURNING 1) SELECT current_setting('cluster_name') AS server FROM u",
            RouteReason::Write,
        ),
        (
            "SELECT current_setting('cluster_name') AS server FROM (SELECT nextval('users_id_seq')) s",
            RouteReason::VolatileFunction,
        ),
        (
            "SELECT current_setting('cluster_name') AS server, pg_try_advisory_xact_lock(7)",
            RouteReason::VolatileFunction,
        ),
    ];
    for (sql, reason) in cases {
        let mut conn = pool.get().await.unwrap();
        let rows: Vec<Server> = sql_query(sql).load(&mut conn).await.unwrap();
        assert_eq!(rows[0].server, "primary", "{sql}");
        assert_eq!(conn.last_route().unwrap().reason, reason, "{sql}");
    }
}

#[derive(QueryableByName)]
pub struct Server {
    #[diesel(sql_type = Text)]
    pub server: String,
}

#[tokio::test]
async fn session_state_pins_the_rest_to_the_primary() {
    let pool = pool().await;
    for sql in [
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "CREATE TEMPORARY TABLE mine (id integer)",
        "LISTEN news",
        "PREPARE q AS SELECT 1",
        "SELECT set_config('app.tenant', name, false) FROM users",
        "SELECT pg_advisory_lock(4711)",
    ] {
        let mut conn = pool.get().await.unwrap();
        assert_ne!(who(&mut conn.replica()).await, "primary");
        run(&mut conn, sql).await.unwrap();
        assert_eq!(who(&mut conn).await, "primary", "{sql}");
        assert_eq!(
            conn.last_route().unwrap().reason,
            RouteReason::SessionState,
            "{sql}"
        );
    }
}

#[tokio::test]
async fn session_state_is_gone_for_the_next_session() {
    let database = database().await;
    let pool = builder(&database)
        .max_size(1)
        .setup_sql("SET statement_timeout = '7s'")
        .build()
        .await
        .unwrap();
    let setting = |name: &'static str| diesel::select(current_setting(name));
    let mut conn = pool.get().await.unwrap();
    run(
        &mut conn,
        "SET statement_timeout = '9s'; SET application_name = 'mine'",
    )
    .await
    .unwrap();
    run(&mut conn, "CREATE TEMPORARY TABLE mine (id integer)")
        .await
        .unwrap();
    run(&mut conn, "PREPARE mine AS SELECT 1").await.unwrap();
    let changed: String = setting("statement_timeout")
        .get_result(&mut conn)
        .await
        .unwrap();
    assert_eq!(changed, "9s");
    drop(conn);

    let mut conn = pool.get().await.unwrap();
    let restored: String = setting("statement_timeout")
        .get_result(&mut conn.primary())
        .await
        .unwrap();
    assert_eq!(restored, "7s");
    let name: String = setting("application_name")
        .get_result(&mut conn.primary())
        .await
        .unwrap();
    assert_ne!(name, "mine");
    assert!(run(&mut conn, "SELECT count(*) FROM mine").await.is_err());
    run(&mut conn, "PREPARE mine AS SELECT 1").await.unwrap();
    // Diesel's own prepared statements survive the reset.
    assert_eq!(count(&mut conn).await, 3);
}

#[tokio::test]
async fn set_up_runs_on_every_node_and_pins_nothing() {
    let database = database().await;
    let pool = builder(&database)
        .setup_sql("SET lock_timeout = '3s'")
        .on_connect(|connection| {
            Box::pin(async move {
                use diesel_async::SimpleAsyncConnection;
                connection
                    .batch_execute("SET statement_timeout = '11s'")
                    .await
            })
        })
        .build()
        .await
        .unwrap();
    for force_primary in [false, true] {
        let mut conn = pool.get().await.unwrap();
        let query = diesel::select((
            current_setting("lock_timeout"),
            current_setting("statement_timeout"),
            current_setting("cluster_name"),
        ));
        let (lock, statement, server): (String, String, String) = if force_primary {
            query.get_result(&mut conn.primary()).await.unwrap()
        } else {
            query.get_result(&mut conn).await.unwrap()
        };
        assert_eq!((lock.as_str(), statement.as_str()), ("3s", "11s"));
        assert_eq!(server == "primary", force_primary);
    }
}

#[tokio::test]
async fn scopes_force_the_kind_of_node() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn.primary()).await, "primary");
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::Forced);
    assert_ne!(
        who(&mut conn).await,
        "primary",
        "forcing a read is not a write"
    );

    insert("Tony").execute(&mut conn).await.unwrap();
    assert_eq!(count(&mut conn).await, 4);
    assert_ne!(who(&mut conn.replica()).await, "primary");
    {
        let mut replica = conn.replica();
        assert_eq!(who(&mut replica.primary()).await, "primary");
        assert_ne!(
            who(&mut replica).await,
            "primary",
            "the outer scope is back"
        );
    }
    let refused = insert("Leslie").execute(&mut *conn.replica()).await;
    assert!(matches!(
        refused,
        Err(diesel::result::Error::DatabaseError(
            diesel::result::DatabaseErrorKind::ReadOnlyTransaction,
            _
        ))
    ));
}

#[tokio::test]
async fn the_primary_takes_reads_by_its_weight() {
    let database = database().await;
    let pool = diesel_replicated::ReplicatedPool::builder()
        .primary(diesel_replicated::NodeConfig::new(cluster().primary().url(&database)).weight(1))
        .replica(cluster().replicas()[0].url(&database))
        .policy(Policy::RoundRobin)
        .build()
        .await
        .unwrap();
    let mut on_primary = 0;
    for _ in 0..40 {
        let mut conn = pool.get().await.unwrap();
        if who(&mut conn).await == "primary" {
            assert_eq!(
                conn.last_route().unwrap().reason,
                RouteReason::PrimaryWeight
            );
            on_primary += 1;
        }
    }
    assert_eq!(on_primary, 20);
}

#[tokio::test]
async fn weight_zero_serves_only_when_nothing_else_is_there() {
    let database = database().await;
    let pool = builder(&database).build().await.unwrap();
    pool.set_weight("replica-1", 0).await.unwrap();
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(who(&mut conn).await, "replica-2");
    }
    pool.remove_replica("replica-2").await.unwrap();
    let mut conn = pool.get().await.unwrap();
    assert_eq!(who(&mut conn).await, "replica-1");
}

#[tokio::test]
async fn the_primary_itself_can_be_borrowed() {
    let pool = pool().await;
    let mut conn = pool.get().await.unwrap();
    assert_ne!(who(&mut conn).await, "primary");
    let primary = conn.primary_connection().await.unwrap();
    assert_eq!(who(primary).await, "primary");
    assert_eq!(who(&mut conn).await, "primary", "what it did is not known");
}

#[tokio::test]
async fn shared_references_pipeline_on_the_primary_and_spread_on_replicas() {
    let pool = pool().await;
    let conn = pool.get().await.unwrap();
    let read = || diesel::select((current_setting("cluster_name"), 1.into_sql::<Integer>()));
    let mut ones = [&conn; 4];
    let [a, b, c, d] = &mut ones;
    let (a, b, c, d): ((String, i32), (String, i32), (String, i32), (String, i32)) =
        futures_util::try_join!(
            read().get_result(a),
            read().get_result(b),
            read().get_result(c),
            read().get_result(d)
        )
        .unwrap();
    for (server, _) in [&a, &b, &c, &d] {
        assert_ne!(server, "primary");
    }
    // A write that is polled first is seen by the read that is polled after it.
    let insert = diesel::insert_into(users::table).values(users::name.eq("Donald"));
    let (mut first, mut second) = (&conn, &conn);
    let (_, all): (usize, i64) = futures_util::try_join!(
        insert.execute(&mut first),
        users::table.count().get_result(&mut second)
    )
    .unwrap();
    assert_eq!(all, 4);
    assert_eq!(pool.status().node("primary").unwrap().connections, 1);
}
