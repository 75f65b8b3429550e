//! What no parser sees is learned from the replicas that refuse it.

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::ReplicatedPool;
use diesel_replicated::status::RouteReason;

use crate::support::{Number, blocking, builder, cluster, database};

/// What the operator says of a function may be wrong: here that `hidden` is fit for a replica, which makes
/// a large object.
const SCHEMA: &str = "
    CREATE TABLE log (at integer);
    CREATE FUNCTION note() RETURNS integer LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO log VALUES (1); RETURN 1; END $$;
    CREATE FUNCTION hidden(integer) RETURNS oid LANGUAGE internal STABLE AS 'be_lo_creat';
    CREATE FUNCTION innocent() RETURNS integer LANGUAGE sql STABLE AS 'SELECT (hidden(-1) > 0::oid)::int';
    CREATE FUNCTION harmless() RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT 1';
    CREATE VIEW tickets AS SELECT note() AS number;
    CREATE UNLOGGED TABLE scratch AS SELECT 1 AS number;
";

async fn pool_with(sql: &'static str) -> (String, ReplicatedPool) {
    let database = database().await;
    let name = database.clone();
    blocking(move || {
        cluster().primary().sql(&name, sql).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
    let pool = builder(&database).allow_function("hidden");
    let pool = pool.build().await.unwrap();
    (database, pool)
}

#[tokio::test]
async fn what_a_replica_refuses_runs_once_on_the_primary_and_is_remembered() {
    let (_, pool) = pool_with(SCHEMA).await;
    let innocent = || sql_query("SELECT innocent() AS number");
    let logged = async || {
        let mut conn = pool.get().await.unwrap();
        let count = sql_query("SELECT count(*)::int AS number FROM pg_largeobject_metadata");
        let count: Number = count.get_result(&mut conn.primary()).await.unwrap();
        count.number
    };
    let mut conn = pool.get().await.unwrap();
    let one: Number = innocent().get_result(&mut conn).await.unwrap();
    assert_eq!(one.number, 1);
    let route = conn.last_route().unwrap();
    assert_eq!(
        (route.node.as_str(), route.reason),
        ("primary", RouteReason::Learned)
    );
    assert_eq!(logged().await, 1);
    let seen = sql_query("SELECT count(*)::int AS number FROM pg_largeobject_metadata");
    let seen: Number = seen.get_result(&mut conn).await.unwrap();
    assert_eq!(seen.number, 1, "it wrote, and reads what it wrote");

    let mut other = pool.get().await.unwrap();
    let _: Number = innocent().get_result(&mut other).await.unwrap();
    assert_eq!(other.last_route().unwrap().reason, RouteReason::Learned);
    assert_eq!(logged().await, 2);
    let state = pool.status();
    let failed = state.nodes.iter().filter(|node| node.cause.is_some());
    assert_eq!(failed.count(), 0, "refusing is no failure");
}

#[tokio::test]
async fn the_catalog_tells_of_functions_views_and_tables() {
    let (_, pool) = pool_with(SCHEMA).await;
    for (sql, reason) in [
        ("SELECT note() AS number", RouteReason::VolatileFunction),
        ("SELECT harmless() AS number", RouteReason::VolatileFunction),
        ("SELECT number FROM tickets", RouteReason::VolatileFunction),
        ("SELECT number FROM scratch", RouteReason::VolatileFunction),
        (
            "SELECT unheard_of() AS number",
            RouteReason::UnknownStatement,
        ),
    ] {
        let mut conn = pool.get().await.unwrap();
        let _: QueryResult<Number> = sql_query(sql).get_result(&mut conn).await;
        assert_eq!(conn.last_route().unwrap().reason, reason, "{sql}");
        assert_eq!(conn.last_route().unwrap().node, "primary", "{sql}");
    }
}

#[tokio::test]
async fn the_users_word_on_functions_counts() {
    let (database, _) = pool_with(SCHEMA).await;
    let pool = builder(&database)
        .allow_function("harmless")
        .deny_function("innocent")
        .build()
        .await
        .unwrap();
    let reason = async |sql: &'static str| {
        let mut conn = pool.get().await.unwrap();
        let _: Number = sql_query(sql).get_result(&mut conn).await.unwrap();
        conn.last_route().unwrap().reason
    };
    assert_eq!(
        reason("SELECT harmless() AS number").await,
        RouteReason::PlainSelect
    );
    assert_eq!(
        reason("SELECT innocent() AS number").await,
        RouteReason::VolatileFunction
    );
}

#[tokio::test]
async fn a_new_function_is_known_soon_after_its_definition() {
    let (_, pool) = pool_with("CREATE TABLE nothing ()").await;
    let mut conn = pool.get().await.unwrap();
    crate::support::run(
        &mut conn,
        "CREATE FUNCTION two() RETURNS integer LANGUAGE sql STABLE AS 'SELECT 2'",
    )
    .await
    .unwrap();
    blocking(|| cluster().wait_caught_up().unwrap()).await;
    crate::support::eventually("replicas are trusted with it", || async {
        let mut conn = pool.get().await.unwrap();
        let two: Number = sql_query("SELECT two() AS number")
            .get_result(&mut conn)
            .await
            .unwrap();
        assert_eq!(two.number, 2);
        conn.last_route().unwrap().reason == RouteReason::PlainSelect
    })
    .await;
}

#[tokio::test]
async fn in_a_read_only_transaction_the_refusal_is_the_callers() {
    let (database, _) = pool_with(SCHEMA).await;
    let pool = builder(&database)
        .read_only_transactions_on_replicas(true)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let refused = conn
        .build_transaction()
        .read_only()
        .run(async |conn| {
            let query = sql_query("SELECT innocent() AS number");
            query
                .get_result::<Number>(conn)
                .await
                .map(|number| number.number)
        })
        .await;
    assert!(refused.is_err());
    let refused = sql_query("SELECT innocent() AS number")
        .get_result::<Number>(&mut *conn.replica())
        .await;
    assert!(refused.is_err(), "nor does a forced read move");
    // Nothing was learned from either.
    let mut conn = pool.get().await.unwrap();
    let one: Number = sql_query("SELECT innocent() AS number")
        .get_result(&mut conn)
        .await
        .unwrap();
    assert_eq!(one.number, 1);
}

#[tokio::test]
async fn a_replica_whose_catalog_is_behind_is_passed_over_once() {
    let local = blocking(|| {
        let local = diesel_replicated::testing::LocalCluster::builder()
            .replicas(1)
            .start()
            .unwrap();
        crate::support::fill(&local, "app");
        local
    })
    .await;
    let pool = crate::support::builder_for(&local, "app")
        .build()
        .await
        .unwrap();
    let local = blocking(|| {
        local.replicas()[0].pause_replay().unwrap();
        local
            .primary()
            .sql("app", "CREATE TABLE fresh AS SELECT 1 AS number")
            .unwrap();
        local
    })
    .await;
    let fresh = || sql_query("SELECT number FROM fresh");
    let mut conn = pool.get().await.unwrap();
    let one: Number = fresh().get_result(&mut conn).await.unwrap();
    assert_eq!(one.number, 1);
    assert_eq!(
        conn.last_route().unwrap().reason,
        RouteReason::ReplicaFailed
    );
    let missing = sql_query("SELECT number FROM no_such_table")
        .get_result::<Number>(&mut conn)
        .await;
    assert!(missing.is_err());
    let local = blocking(|| {
        local.replicas()[0].resume_replay().unwrap();
        local.wait_caught_up().unwrap();
        local
    })
    .await;
    let mut conn = pool.get().await.unwrap();
    let _: Number = fresh().get_result(&mut conn).await.unwrap();
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
    blocking(|| drop(local)).await;
}

#[tokio::test]
async fn a_changed_table_does_not_send_its_readers_to_the_primary() {
    let (_, pool) =
        pool_with("CREATE TABLE wide (number integer); INSERT INTO wide VALUES (1)").await;
    diesel::table! { wide (number) { number -> Integer, } }
    let all = || sql_query("SELECT * FROM wide");
    let mut conn = pool.get().await.unwrap();
    conn.set_prepared_statement_cache_size(diesel::connection::CacheSize::Unbounded);
    let star = || wide::table.select(diesel::dsl::sql::<diesel::sql_types::Integer>("wide.*"));
    for _ in 0..3 {
        let _: Vec<Number> = all().load(&mut conn).await.unwrap();
        let _: Vec<i32> = star().load(&mut conn).await.unwrap();
    }
    blocking(move || {
        let node = cluster().primary();
        let databases = node
            .sql("postgres", "SELECT datname FROM pg_database")
            .unwrap();
        for database in databases.into_iter().flatten().flatten() {
            let _ = node.sql(&database, "ALTER TABLE wide ADD COLUMN more integer");
        }
        cluster().wait_caught_up().unwrap();
    })
    .await;
    for _ in 0..3 {
        let rows: Vec<Number> = all().load(&mut conn).await.unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
    }
}
