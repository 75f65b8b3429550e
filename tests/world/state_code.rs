//! Code that runs without being named: it leaves as much in a session as code that is called.
//!
//! Found by programs that tried the pool; the reports on the same kinds elsewhere are named where there are any.

use std::time::Duration;

use diesel::sql_query;
use diesel::sql_types::{Nullable, Text};
use diesel::{QueryResult, QueryableByName};
use diesel_async::RunQueryDsl;
use diesel_replicated::status::RouteReason;
use diesel_replicated::{Builder, ReplicatedConnection, ReplicatedPool};

use crate::support::{blocking, builder, cluster, database, eventually, run};

/// What the situations have in common: functions that set the tenant and answer with what is asked of them.
const LEAK: &str = "
    CREATE FUNCTION leak() RETURNS text LANGUAGE plpgsql
      AS $$ BEGIN RETURN set_config('app.tenant', 'a', false); END $$;
    CREATE FUNCTION leak(n integer) RETURNS boolean IMMUTABLE LANGUAGE plpgsql
      AS $$ BEGIN PERFORM set_config('app.tenant', 'a', false); RETURN n IS NULL OR n > 0; END $$;
    CREATE FUNCTION keyed(n integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql
      AS $$ BEGIN PERFORM set_config('app.tenant', 'a', false); RETURN n; END $$;
    CREATE FUNCTION on_change() RETURNS trigger LANGUAGE plpgsql
      AS $$ BEGIN PERFORM leak(); RETURN NULL; END $$;
";

#[derive(Debug, QueryableByName)]
struct Value {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

async fn tenant(conn: &mut ReplicatedConnection) -> String {
    let sql = "SELECT current_setting('app.tenant', true) AS value";
    let value: QueryResult<Value> = sql_query(sql).get_result(conn).await;
    value.unwrap().value.unwrap_or_default()
}

/// A database with `schema` in it, known to the replicas, and a builder for one connection a node.
async fn with(schema: &str) -> Builder {
    let database = database().await;
    let (name, schema) = (database.clone(), format!("{LEAK}{schema}"));
    blocking(move || {
        cluster().primary().sql(&name, &schema).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
    builder(&database).max_size(1)
}

/// Nobody finds a tenant, on no node.
async fn assert_clean(pool: &ReplicatedPool, what: &str) {
    let mut next = pool.get().await.unwrap();
    assert_eq!(tenant(&mut next.primary()).await, "", "{what}: the primary");
    drop(next);
    for node in ["replica-1", "replica-2"] {
        loop {
            let mut next = pool.get().await.unwrap();
            let found = tenant(&mut next.replica()).await;
            let route = next.last_route().unwrap();
            assert_eq!(found, "", "{what}: {}", route.node);
            if route.node == node {
                break;
            }
        }
    }
}

/// Each statement may leave the tenant in its own session, and in no other.
async fn stays(schema: &str, statements: &[&str]) {
    let pool = with(schema).await.build().await.unwrap();
    for sql in statements {
        let mut conn = pool.get().await.unwrap();
        let ran = run(&mut conn, sql).await;
        assert!(ran.is_ok(), "{sql}: {ran:?}");
        drop(conn);
        assert_clean(&pool, sql).await;
    }
}

#[tokio::test]
async fn an_event_trigger_runs_with_any_change_of_the_catalog() {
    let schema = "
        CREATE MATERIALIZED VIEW kept AS SELECT 1 AS one;
        CREATE FUNCTION on_command() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM leak(); END $$;
        CREATE FUNCTION makes() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TABLE made_by_function (); END $$;
        CREATE EVENT TRIGGER noted ON ddl_command_end EXECUTE FUNCTION on_command();";
    for sql in [
        "GRANT SELECT ON users TO public",
        "REVOKE SELECT ON users FROM public",
        "COMMENT ON TABLE users IS 'people'",
        "REFRESH MATERIALIZED VIEW kept",
        "SELECT 1 AS one INTO made_by_query",
        "CREATE TABLE made ()",
        "DO $$ BEGIN CREATE TABLE made_by_block (); END $$",
        "SELECT makes()",
        "REINDEX TABLE users",
    ] {
        // A database each: for a moment after such a command the pool trusts nothing there.
        stays(schema, &[sql]).await;
    }
}

#[tokio::test]
async fn a_domain_checks_and_makes_its_values() {
    let schema = "
        CREATE DOMAIN named AS text DEFAULT leak();
        CREATE TABLE names (id integer, name named);
        CREATE DOMAIN counted AS integer CHECK (leak(VALUE));
        CREATE DOMAIN recounted AS counted;
        CREATE TYPE pair AS (a counted, b integer);
        CREATE DOMAIN checked_pair AS pair;
        CREATE TYPE span AS RANGE (subtype = counted);
        CREATE TABLE outers (id recounted);
        CREATE TABLE pairs (pair pair);
        CREATE TABLE many (ids counted[]);
        CREATE TABLE spans (span span);
        CREATE VIEW all_outers AS SELECT * FROM outers;
        CREATE FUNCTION takes(n counted) RETURNS integer LANGUAGE sql STABLE AS 'SELECT 1';";
    stays(
        schema,
        &[
            "INSERT INTO names (id) VALUES (1)",
            "INSERT INTO outers VALUES (1)",
            "INSERT INTO all_outers VALUES (1)",
            "INSERT INTO pairs VALUES (ROW(1, 2))",
            "INSERT INTO pairs SELECT jsonb_populate_record(NULL::pair, '{\"a\": 1}')",
            "INSERT INTO many VALUES ('{1}')",
            "INSERT INTO spans VALUES ('[1,2)')",
            "SELECT 1::counted",
            "SELECT '(1,2)'::pair",
            "SELECT CAST('{1}' AS counted[])",
            "SELECT '[1,2)'::span",
            "SELECT json_populate_record(null::pair, '{\"a\": 1}')",
            "SELECT json_populate_record(p, '{\"a\": 3}') FROM pairs p",
            "SELECT json_populate_recordset(null::checked_pair, '[{\"a\": 1}]')",
            "SELECT * FROM jsonb_to_record('{\"a\": 1}') AS x (a counted)",
            "SELECT * FROM jsonb_to_recordset('[{\"a\": 1}]') AS x (a recounted)",
            "SELECT json_populate_record(NULL::outers, '{\"id\": 1}')",
            "SELECT takes(1)",
        ],
    )
    .await;
}

#[tokio::test]
async fn expressions_of_indexes_partitions_and_statistics_run_with_writes_and_maintenance() {
    let schema = "
        CREATE TABLE parts (id integer) PARTITION BY RANGE (keyed(id));
        CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE loose (id integer);
        CREATE TABLE rest PARTITION OF parts DEFAULT;
        CREATE TABLE indexed (id integer);
        CREATE INDEX indexed_id ON indexed (keyed(id));
        CREATE TABLE partial (id integer);
        CREATE INDEX partial_id ON partial (id) WHERE leak(id);
        CREATE TABLE counted (id integer, n integer);
        CREATE STATISTICS counts ON (keyed(id)), n FROM counted;
        CREATE TABLE computed (id integer, twice integer GENERATED ALWAYS AS (keyed(id)) STORED);
        CREATE MATERIALIZED VIEW kept AS SELECT keyed(1) AS one;
        INSERT INTO counted SELECT n, n FROM generate_series(1, 100) n;
        INSERT INTO loose VALUES (11);
        INSERT INTO indexed VALUES (1);
        INSERT INTO rest VALUES (50);";
    for statements in [
        &[
            "INSERT INTO parts VALUES (1)",
            "UPDATE parts SET id = id + 1",
        ][..],
        &["INSERT INTO indexed VALUES (2)"],
        &["INSERT INTO partial VALUES (2)"],
        &["INSERT INTO computed (id) VALUES (2)"],
        &["ANALYZE counted"],
        &["ANALYZE"],
        &["REINDEX TABLE indexed"],
        &["VACUUM FULL indexed"],
        &["CLUSTER indexed USING indexed_id"],
        &["REFRESH MATERIALIZED VIEW kept"],
        &["ALTER TABLE parts ATTACH PARTITION loose FOR VALUES FROM (11) TO (12)"],
        &["CREATE TABLE more PARTITION OF parts FOR VALUES FROM (20) TO (30)"],
        &["ALTER TABLE loose ALTER id TYPE bigint USING keyed(id)"],
        &["DO $$ BEGIN ANALYZE counted; END $$"],
    ] {
        stays(schema, statements).await;
    }
}

#[tokio::test]
async fn the_functions_of_an_operator_class_run_with_its_index() {
    let schema = "
        CREATE FUNCTION compares(a integer, b integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql
          AS $$ BEGIN PERFORM leak(1); RETURN sign(a - b); END $$;
        CREATE OPERATOR CLASS loud FOR TYPE integer USING btree AS
          OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 compares(integer, integer);
        CREATE TABLE sorted (id integer);
        CREATE INDEX sorted_id ON sorted (id loud);
        CREATE FUNCTION apart(a double precision, b double precision) RETURNS double precision IMMUTABLE LANGUAGE plpgsql
          AS $$ BEGIN PERFORM leak(1); RETURN a - b; END $$;
        CREATE TYPE extent AS RANGE (subtype = double precision, subtype_diff = apart);
        CREATE TABLE extents (extent extent);
        CREATE INDEX extents_extent ON extents USING gist (extent);
        INSERT INTO sorted VALUES (1);";
    stays(
        schema,
        &[
            "INSERT INTO sorted VALUES (2)",
            "SET enable_seqscan = off; SELECT * FROM sorted WHERE id = 2",
            "INSERT INTO extents SELECT extent(n, n + 1) FROM generate_series(1, 2000) n",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_truncation_fires_triggers_of_tables_that_it_does_not_name() {
    let schema = "
        CREATE TABLE parents (id integer PRIMARY KEY);
        CREATE TABLE children (id integer REFERENCES parents);
        CREATE TRIGGER emptied AFTER TRUNCATE ON children EXECUTE FUNCTION on_change();
        CREATE FUNCTION empty() RETURNS void LANGUAGE plpgsql AS $$ BEGIN TRUNCATE parents CASCADE; END $$;";
    for sql in [
        "TRUNCATE children",
        "TRUNCATE parents CASCADE",
        "SELECT empty()",
        "DO $$ BEGIN TRUNCATE parents CASCADE; END $$",
    ] {
        stays(schema, &[sql]).await;
    }
}

#[tokio::test]
async fn foreign_keys_inheritance_and_rules_reach_other_tables() {
    let schema = "
        CREATE TABLE parents (id integer PRIMARY KEY);
        CREATE TABLE children (id integer REFERENCES parents ON DELETE SET NULL ON UPDATE CASCADE);
        CREATE TRIGGER changed AFTER UPDATE ON children FOR EACH ROW EXECUTE FUNCTION on_change();
        CREATE TABLE base (id integer);
        CREATE TABLE derived () INHERITS (base);
        CREATE TRIGGER changed AFTER UPDATE ON derived FOR EACH ROW EXECUTE FUNCTION on_change();
        CREATE TABLE ruled (id integer);
        CREATE RULE also AS ON INSERT TO ruled DO ALSO UPDATE base SET id = 3;
        INSERT INTO parents VALUES (1), (2);
        INSERT INTO children VALUES (1), (2);
        INSERT INTO derived VALUES (1);";
    stays(
        schema,
        &[
            "UPDATE parents SET id = 3 WHERE id = 1",
            "DELETE FROM parents WHERE id = 2",
            "UPDATE base SET id = 2",
            "INSERT INTO ruled VALUES (1)",
            "MERGE INTO base USING (SELECT 1) AS one ON true WHEN MATCHED THEN UPDATE SET id = 5",
        ],
    )
    .await;
}

#[tokio::test]
async fn casts_and_operators_run_that_no_word_shows() {
    let schema = "
        CREATE TYPE coin AS (cents integer);
        CREATE FUNCTION cents(coin) RETURNS integer STABLE LANGUAGE plpgsql
          AS $$ BEGIN PERFORM leak(1); RETURN ($1).cents; END $$;
        CREATE CAST (coin AS integer) WITH FUNCTION cents(coin) AS IMPLICIT;
        CREATE TABLE purse (coin coin);
        INSERT INTO purse VALUES (ROW(1));";
    let operators = "
        CREATE FUNCTION same(point, point) RETURNS boolean STABLE LANGUAGE plpgsql
          AS $$ BEGIN PERFORM leak(1); RETURN $1 ~= $2; END $$;
        CREATE OPERATOR = (leftarg = point, rightarg = point, function = same);
        CREATE TABLE here (place point);
        CREATE TABLE there (place point);
        INSERT INTO here VALUES ('(1,2)');
        INSERT INTO there VALUES ('(1,2)');";
    let between = "
        CREATE FUNCTION x_of(point) RETURNS integer STABLE LANGUAGE plpgsql
          AS $$ BEGIN PERFORM leak(1); RETURN ($1)[0]; END $$;
        CREATE CAST (point AS integer) WITH FUNCTION x_of(point) AS IMPLICIT;
        CREATE TABLE here (place point);
        CREATE TABLE numbers (n integer);
        INSERT INTO here VALUES ('(1,2)');";
    stays(
        schema,
        &[
            "SELECT 64 + coin FROM purse",
            "SELECT * FROM purse WHERE coin = 1",
            "UPDATE users SET visits = purse.coin FROM purse",
        ],
    )
    .await;
    stays(
        operators,
        &[
            "SELECT count(*) FROM here NATURAL JOIN there",
            "SELECT count(*) FROM here JOIN there USING (place)",
            "SELECT count(*) FROM here WHERE place IN (SELECT place FROM there)",
            "DELETE FROM here USING there WHERE here.place = there.place",
        ],
    )
    .await;
    stays(
        between,
        &[
            "SELECT 64 + place FROM here",
            "INSERT INTO numbers SELECT place FROM here",
        ],
    )
    .await;
}

#[tokio::test]
async fn another_name_for_a_built_in_function_is_the_same_function() {
    let schema = "
        CREATE FUNCTION sets(text, text, boolean) RETURNS text STABLE LANGUAGE internal AS 'set_config_by_name';
        CREATE FUNCTION sets_too(text, text, boolean) RETURNS text STABLE LANGUAGE sql AS 'SELECT sets($1, $2, $3)';";
    stays(
        schema,
        &[
            "SELECT sets('app.tenant', 'a', false)",
            "SELECT sets_too('app.tenant', 'a', false)",
            "INSERT INTO users (id, name) VALUES (100, sets('app.tenant', 'a', false))",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_lock_taken_by_another_name_or_in_an_index_is_free_afterwards() {
    let pool = with(
        "
        CREATE FUNCTION locks(bigint) RETURNS void LANGUAGE internal AS 'pg_advisory_lock_int8';
        CREATE FUNCTION locked(n integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql
          AS $$ BEGIN PERFORM pg_advisory_lock(4713); RETURN n; END $$;
        CREATE TABLE indexed (id integer);
        CREATE INDEX indexed_id ON indexed (locked(id));",
    )
    .await
    .build()
    .await
    .unwrap();
    let held = "SELECT count(*)::text AS value FROM pg_locks
        WHERE locktype = 'advisory' AND objid = 4713 AND pid = pg_backend_pid()";
    for sql in [
        "SELECT locks(4713)",
        "INSERT INTO indexed VALUES (1)",
        "REINDEX TABLE indexed",
    ] {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, sql).await.unwrap();
        drop(conn);
        let mut next = pool.get().await.unwrap();
        let found: Value = sql_query(held)
            .get_result(&mut *next.primary())
            .await
            .unwrap();
        assert_eq!(found.value.as_deref(), Some("0"), "{sql}");
    }
}

/// The server takes an `UPDATE` of this view for a `SET`.
#[tokio::test]
async fn an_update_of_the_view_of_settings_is_a_setting() {
    let pool = with("").await.build().await.unwrap();
    let shown = "SELECT current_setting('work_mem') AS value";
    let mut conn = pool.get().await.unwrap();
    let before: Value = sql_query(shown)
        .get_result(&mut *conn.primary())
        .await
        .unwrap();
    run(
        &mut conn,
        "UPDATE pg_settings SET setting = '12345' WHERE name = 'work_mem'",
    )
    .await
    .unwrap();
    drop(conn);
    let mut next = pool.get().await.unwrap();
    let after: Value = sql_query(shown)
        .get_result(&mut *next.primary())
        .await
        .unwrap();
    assert_eq!(after.value, before.value);
}

/// `pg_backup_start` and temporary slots belong to the session, and no command undoes them.
#[tokio::test]
async fn a_backup_and_a_temporary_slot_end_with_their_session() {
    let pool = with("").await.build().await.unwrap();
    let version = cluster()
        .primary()
        .sql("postgres", "SHOW server_version_num");
    let version: u32 = version.unwrap()[0][0].as_ref().unwrap().parse().unwrap();
    let start = if version < 150_000 {
        "SELECT pg_start_backup('x', true, false)"
    } else {
        "SELECT pg_backup_start('x', true)"
    };
    let slot = "SELECT pg_create_physical_replication_slot('world_code', false, true)";
    for sql in [start, slot, start, slot] {
        let mut conn = pool.get().await.unwrap();
        let ran = run(&mut conn, sql).await;
        assert!(ran.is_ok(), "{sql}: {ran:?}");
    }
}

/// The other half of it: what leaves nothing costs nothing.
#[tokio::test]
async fn code_that_leaves_nothing_pins_nothing() {
    let schema = "
        CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
        CREATE TYPE pair AS (a positive, b integer);
        CREATE FUNCTION doubled(n integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT n * 2';
        CREATE TABLE plain (id integer PRIMARY KEY, n positive, pair pair, twice integer GENERATED ALWAYS AS (doubled(id)) STORED);
        CREATE INDEX plain_twice ON plain (doubled(id));
        CREATE TABLE parts (id integer) PARTITION BY RANGE (doubled(id));
        CREATE TABLE part PARTITION OF parts DEFAULT;
        CREATE TABLE leaky (id integer CHECK (leak(id)));";
    let pool = with(schema).await.build().await.unwrap();
    for sql in [
        "INSERT INTO plain (id, n, pair) VALUES (1, 1, ROW(1, 2)) ON CONFLICT DO NOTHING",
        "UPDATE plain SET n = 2",
        "INSERT INTO parts VALUES (1)",
        "SELECT jsonb_populate_record(NULL::pair, '{\"a\": 1}')",
        "SELECT '(1,2)'::pair, 1::positive FROM plain NATURAL JOIN parts",
        "SELECT count(*) FROM leaky",
        "DELETE FROM plain USING parts",
    ] {
        // The server counts what the schema has changed a moment late. Until the pool has looked at it again, it knows no code.
        eventually(&format!("nothing is left by {sql}"), async || {
            let mut conn = pool.get().await.unwrap();
            run(&mut conn, sql).await.unwrap();
            tenant(&mut conn).await;
            conn.last_route().unwrap().reason != RouteReason::SessionState
        })
        .await;
    }
}

/// After a failover, or a migration of somebody else, nobody knows for a moment what code there is. Workers that hold one
/// connection for days would otherwise read on the primary for days, and lose their session with its next failover.
#[tokio::test]
async fn who_writes_while_code_changes_is_free_again_once_it_is_known_what_ran() {
    let schema = "CREATE TABLE plain (id integer); CREATE TABLE noted (id integer)";
    let pool = with(schema).await.max_size(8).build().await.unwrap();
    let mut migrates = pool.get().await.unwrap();
    let trigger =
        "CREATE TRIGGER on_noted AFTER INSERT ON noted FOR EACH ROW EXECUTE FUNCTION on_change()";
    let (mut one, mut other) = (pool.get().await.unwrap(), pool.get().await.unwrap());
    run(&mut migrates, trigger).await.unwrap();
    run(&mut one, "INSERT INTO plain VALUES (1)").await.unwrap();
    assert!(!format!("{one:?}").contains("INTO plain"));
    run(&mut other, "INSERT INTO noted VALUES (1)")
        .await
        .unwrap();
    // Who changes the catalog is one of them.
    let mut migrates = pool.get().await.unwrap();
    for sql in [
        "BEGIN",
        "CREATE TABLE mine (id integer)",
        "INSERT INTO mine VALUES (1)",
        "COMMIT",
    ] {
        run(&mut migrates, sql).await.unwrap();
    }
    for conn in [&mut one, &mut migrates] {
        loop {
            assert_eq!(tenant(conn).await, "");
            if conn.last_route().unwrap().reason != RouteReason::SessionState {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for _ in 0..3 {
        assert_eq!(tenant(&mut other).await, "a");
        assert_eq!(
            other.last_route().unwrap().reason,
            RouteReason::SessionState
        );
    }
}
