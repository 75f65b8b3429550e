//! A replica is asked only for what it answers as the primary would.

use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};
use diesel::{QueryResult, QueryableByName};
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode};
use diesel_replicated::{Consistency, ReplicatedConnection};

use crate::support::{blocking, builder_for, eventually, run};

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Nullable<Text>)]
    answer: Option<String>,
}

async fn answer(conn: &mut ReplicatedConnection, sql: &str) -> QueryResult<Option<String>> {
    let answer: Answer = sql_query(sql).get_result(conn).await?;
    Ok(answer.answer)
}

/// What a server says itself to each statement of the list; nothing to those that fail.
fn says(node: &LocalNode, list: &str) -> Vec<Vec<Option<String>>> {
    let sql = format!("SELECT sql, ask(sql) FROM ({list}) AS list (sql)");
    node.sql("app", &sql).unwrap()
}

/// Tables with something in them, so that functions find what they ask for.
const SCHEMA: &str = "
    CREATE SEQUENCE tickets;
    CREATE TABLE items (id integer PRIMARY KEY, name text NOT NULL DEFAULT 'x', price numeric CHECK (price > 0));
    INSERT INTO items (id, price) SELECT n, n FROM generate_series(1, 100) n;
    CREATE INDEX ON items (lower(name));
    CREATE VIEW cheap AS SELECT * FROM items WHERE price < 10;
    ANALYZE items;
    CREATE FUNCTION ask(sql text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE answer text;
      BEGIN EXECUTE sql INTO answer; RETURN answer; EXCEPTION WHEN OTHERS THEN RETURN NULL; END $$;";

/// Each relation of the system's own, read as a whole.
const RELATIONS: &str = "
    SELECT format('SELECT md5(string_agg(t::text, '','' ORDER BY t::text)) AS answer FROM %s t', c.oid::regclass)
    FROM pg_class c
    WHERE c.relkind IN ('r', 'v')
      AND c.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    ORDER BY 1";

/// Each function of the system's own that can be called with a value of each type, but for volatile ones that
/// do not only look.
const FUNCTIONS: &str = "
    WITH samples (type, value) AS (VALUES
      ('oid', '''items''::regclass::oid'), ('regclass', '''items''::regclass'), ('text', '''a'''), ('int2', '1::int2'),
      ('int4', '1'), ('int8', '1::int8'), ('bool', 'true'), ('name', '''items''::name'), ('float8', '1.5::float8'),
      ('numeric', '1.5'), ('timestamptz', '''2020-01-01''::timestamptz'), ('timestamp', '''2020-01-01''::timestamp'),
      ('date', '''2020-01-01''::date'), ('interval', '''1 day''::interval'), ('pg_lsn', '''0/1''::pg_lsn'),
      ('xid', '''700''::xid'), ('xid8', '''700''::xid8'), ('json', '''{}''::json'), ('jsonb', '''{}''::jsonb'),
      ('_text', '''{a}''::text[]'), ('_int4', '''{1}''::int4[]'), ('char', '''r''::\"char\"'), ('bytea', '''a''::bytea'),
      ('regtype', '''int''::regtype'), ('anyelement', '1'), ('any', '1'))
    SELECT format('SELECT md5(string_agg(x::text, '','' ORDER BY x::text)) AS answer FROM pg_catalog.%I(%s) AS x',
      p.proname, coalesce(a.list, ''))
    FROM pg_proc p
    CROSS JOIN LATERAL (
      SELECT string_agg(s.value, ', ' ORDER BY u.place) AS list, bool_and(s.value IS NOT NULL) AS known
      FROM unnest(p.proargtypes) WITH ORDINALITY AS u (type, place)
      JOIN pg_type t ON t.oid = u.type
      LEFT JOIN samples s ON s.type = t.typname) AS a
    WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND a.known IS NOT false
      AND p.prorettype::regtype::text NOT IN ('trigger', 'event_trigger', 'internal', 'language_handler',
        'index_am_handler', 'fdw_handler', 'table_am_handler', 'tsm_handler')
      AND (p.provolatile <> 'v' OR p.proname ~ '^pg_(.*_size|is_.*|lock_status|sequence_last_value|last_.*|partition_.*)$')
    ORDER BY 1";

/// neondatabase/postgres #736: monitoring and drivers ask such things, and mean the primary.
#[tokio::test]
async fn what_a_standby_answers_otherwise_is_asked_of_the_primary() {
    let local = blocking(|| {
        let local = LocalCluster::builder().replicas(1).start().unwrap();
        local
            .primary()
            .sql("postgres", "CREATE DATABASE app")
            .unwrap();
        local.primary().sql("app", SCHEMA).unwrap();
        local.wait_caught_up().unwrap();
        std::sync::Arc::new(local)
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let cluster = std::sync::Arc::clone(&local);
    let (asked, differ) = blocking(move || {
        let (primary, replica) = (cluster.primary(), &cluster.replicas()[0]);
        let mut asked = 0;
        let mut differ = Vec::new();
        for list in [RELATIONS, FUNCTIONS] {
            let (here, there) = (says(primary, list), says(replica, list));
            asked += here.len();
            let pairs = here.into_iter().zip(there);
            differ.extend(
                pairs.filter_map(|(here, there)| (here != there).then(|| here[0].clone().unwrap())),
            );
        }
        (asked, differ)
    })
    .await;
    assert!(asked > 1000, "{asked}");
    // The time, and how many transactions ago something was, which nobody answers twice alike.
    let known = [
        "age",
        "clock_timestamp",
        "now",
        "statement_timestamp",
        "timeofday",
        "transaction_timestamp",
    ];
    let mut wrong = Vec::new();
    for sql in &differ {
        let mut conn = pool.get().await.unwrap();
        drop(answer(&mut conn, sql).await);
        let plain = conn
            .last_route()
            .is_some_and(|route| route.kind == NodeKind::Replica);
        if plain && !known.iter().any(|name| sql.contains(&format!(".{name}("))) {
            wrong.push(sql);
        }
    }
    assert!(differ.len() > 30, "{}", differ.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A standby knows of a sequence only what was drawn for stock: 33 where 1 was given out.
#[tokio::test]
async fn a_sequence_is_read_where_it_is_drawn() {
    let pool = crate::support::pool().await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "CREATE SEQUENCE tickets").await.unwrap();
    run(
        &mut conn,
        "CREATE VIEW last_ticket AS SELECT last_value FROM tickets",
    )
    .await
    .unwrap();
    run(&mut conn, "SELECT nextval('tickets')").await.unwrap();
    drop(conn);
    for sql in [
        "SELECT last_value::text AS answer FROM tickets",
        "SELECT last_value::text AS answer FROM pg_sequences WHERE sequencename = 'tickets'",
        "SELECT pg_sequence_last_value('tickets')::text AS answer",
        "SELECT last_value::text AS answer FROM last_ticket",
    ] {
        // Until the catalog is loaded, anything may count as a read of a table.
        eventually(sql, || async {
            let mut conn = pool.get().await.unwrap();
            let answer = answer(&mut conn, sql).await.unwrap();
            let route = conn.last_route().unwrap();
            route.reason == RouteReason::ServerState && answer.as_deref() == Some("1")
        })
        .await;
    }
}

/// A rollback does not give numbers back, so that it leaves something to be read.
#[tokio::test]
async fn what_was_drawn_in_a_transaction_that_was_rolled_back_is_read() {
    let pool = crate::support::pool().await;
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "CREATE SEQUENCE tickets").await.unwrap();
    let last = "SELECT last_value::text AS answer FROM tickets";
    for (draw, expected) in [
        ("SELECT setval('tickets', 100)", "100"),
        ("SELECT nextval('tickets')", "101"),
        ("SELECT setval('tickets', 500)", "500"),
    ] {
        let undone: Result<(), _> = conn
            .transaction(async |conn| {
                run(conn, draw).await?;
                Err(diesel::result::Error::RollbackTransaction)
            })
            .await;
        undone.unwrap_err();
        assert_eq!(
            answer(&mut conn, last).await.unwrap().as_deref(),
            Some(expected),
            "{draw}"
        );
    }
    let refused = "INSERT INTO users (id, name) SELECT setval('tickets', 700), NULL";
    run(&mut conn, refused).await.unwrap_err();
    assert_eq!(
        answer(&mut conn, last).await.unwrap().as_deref(),
        Some("700")
    );
}

/// devopam/MCPg #213, neondatabase/postgres #704: a replica's process number, cancelled elsewhere, hits a stranger.
#[tokio::test]
async fn a_backend_that_is_to_be_cancelled_is_the_primarys() {
    let pool = crate::support::builder(&crate::support::database().await)
        .max_size(1)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let pid = answer(&mut conn, "SELECT pg_backend_pid()::text AS answer")
        .await
        .unwrap()
        .unwrap();
    let mut primary = conn.primary();
    let here = answer(&mut primary, "SELECT pg_backend_pid()::text AS answer")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(pid, here);
}

/// Health checks and migrations ask whether they may write.
#[tokio::test]
async fn the_pool_says_of_itself_what_its_primary_is() {
    let pool = crate::support::pool().await;
    let mut conn = pool.get().await.unwrap();
    for (sql, expected) in [
        ("SELECT pg_is_in_recovery()::text AS answer", "false"),
        (
            "SELECT current_setting('transaction_read_only') AS answer",
            "off",
        ),
        (
            "SELECT setting AS answer FROM pg_settings WHERE name = 'transaction_read_only'",
            "off",
        ),
    ] {
        let mut eventual = conn.with_consistency(Consistency::Eventual);
        assert_eq!(
            answer(&mut eventual, sql).await.unwrap().as_deref(),
            Some(expected),
            "{sql}"
        );
    }
}

/// crates.io's `canon_crate_name()`: two of three reads stayed on the primary, for want of a word in a declaration.
#[tokio::test]
async fn a_function_that_is_volatile_by_declaration_alone_is_told_once_by_name() {
    let log = crate::history::Log::listen();
    let database = crate::support::database().await;
    let name = database.clone();
    blocking(move || {
        let schema = "
            CREATE FUNCTION canon_name_told(text) RETURNS text LANGUAGE sql AS 'SELECT lower(replace($1, ''-'', ''_''))';
            CREATE FUNCTION notes_told(text) RETURNS text LANGUAGE sql AS 'INSERT INTO users (name) VALUES ($1) RETURNING name'";
        let primary = crate::support::cluster().primary();
        primary.sql(&name, schema).unwrap();
    })
    .await;
    let pool = crate::support::builder(&database).build().await.unwrap();
    for name in ["a", "b"] {
        for function in ["canon_name_told", "notes_told"] {
            let mut conn = pool.get().await.unwrap();
            let sql = format!("SELECT {function}('{name}') AS answer");
            assert_eq!(
                answer(&mut conn, &sql).await.unwrap().as_deref(),
                Some(name)
            );
            let reason = conn.last_route().unwrap().reason;
            assert_eq!(reason, RouteReason::VolatileFunction);
        }
    }
    let event = "function_keeps_reads_on_the_primary";
    assert_eq!(log.of(event, "canon_name_told").len(), 1);
    assert_eq!(log.of(event, "notes_told").len(), 0, "it writes");
    let pool = crate::support::builder(&database)
        .allow_function("canon_name_told")
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    answer(&mut conn, "SELECT canon_name_told('c') AS answer")
        .await
        .unwrap();
    assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
}

/// A temporary table for each request is no change of the catalog for anybody else.
#[tokio::test]
async fn temporary_tables_and_nonsense_do_not_have_the_catalog_loaded_anew() {
    let pool = crate::support::pool().await;
    let mut conn = pool.get().await.unwrap();
    run(
        &mut conn,
        "CREATE FUNCTION quiet() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$",
    )
    .await
    .unwrap();
    // What is not trusted for a moment pins the session.
    eventually("the catalog is loaded", || async {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, "SELECT quiet()").await.unwrap();
        let mut conn = conn.with_consistency(Consistency::Eventual);
        answer(&mut conn, "SELECT 'x' AS answer").await.unwrap();
        conn.last_route().unwrap().reason != RouteReason::SessionState
    })
    .await;
    for sql in [
        "CREATE TEMP TABLE cart (id integer)",
        "CREATE TEMPORARY TABLE IF NOT EXISTS cart AS SELECT 1 AS id",
        "SELECT 'nothing' \\ that can be read",
    ] {
        let mut conn = pool.get().await.unwrap();
        drop(run(&mut conn, sql).await);
        let mut other = pool.get().await.unwrap();
        run(&mut other, "SELECT quiet()").await.unwrap();
        let mut other = other.with_consistency(Consistency::Eventual);
        answer(&mut other, "SELECT 'x' AS answer").await.unwrap();
        let reason = other.last_route().unwrap().reason;
        assert_ne!(reason, RouteReason::SessionState, "{sql}");
    }
}
