//! What a session leaves on a connection reaches no other session.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Bool, Nullable, Text};
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::config::{ConsistencyConfig, WriteScope};
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::{Builder, Consistency, Error, ReplicatedConnection, ReplicatedPool};
use futures_util::StreamExt;

use crate::support::{Shared, blocking, builder, cluster, count, database, run, who};

#[derive(Debug, QueryableByName)]
struct Value {
    #[diesel(sql_type = Nullable<Text>)]
    value: Option<String>,
}

/// A text that the connection answers with.
async fn value(conn: &mut ReplicatedConnection, sql: &str) -> QueryResult<Option<String>> {
    let sql = format!("SELECT ({sql})::text AS value");
    let value: Value = sql_query(sql).get_result(conn).await?;
    Ok(value.value)
}

/// The tenant that the session has; a setting that was undone is empty.
async fn tenant(conn: &mut ReplicatedConnection) -> String {
    let value = value(conn, "current_setting('app.tenant', true)").await;
    value.unwrap().unwrap_or_default()
}

/// Reads of the session go to replicas: at once, or as soon as one has a connection free.
async fn assert_unpinned(conn: &mut ReplicatedConnection, what: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut eventual = conn.with_consistency(Consistency::Eventual);
    while who(&mut *eventual).await == "primary" {
        let reason = eventual.last_route().unwrap().reason;
        assert_eq!(reason, RouteReason::ReplicaBusy, "{what}");
        assert!(std::time::Instant::now() < deadline, "{what}");
    }
}

/// A database with `schema` in it, known to the replicas, and a builder for one connection a node.
async fn with(schema: &'static str) -> Builder {
    let database = database().await;
    let name = database.clone();
    blocking(move || {
        cluster().primary().sql(&name, schema).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
    builder(&database).max_size(1)
}

const TENANTS: &str = "
    CREATE FUNCTION set_tenant(t text) RETURNS void LANGUAGE plpgsql
      AS $$ BEGIN PERFORM set_config('app.tenant', t, false); END $$;
    CREATE FUNCTION set_by_text(t text) RETURNS void LANGUAGE plpgsql
      AS $$ BEGIN EXECUTE format('SET app.tenant = %L', t); END $$;
    CREATE FUNCTION set_on_the_quiet(t text) RETURNS text STABLE LANGUAGE sql
      AS $$ SELECT set_config('app.tenant', t, false) $$;
    CREATE PROCEDURE set_in_procedure(t text) LANGUAGE plpgsql
      AS $$ BEGIN PERFORM set_tenant(t); END $$;
    CREATE TABLE logins (tenant text);
    CREATE FUNCTION on_login() RETURNS trigger LANGUAGE plpgsql
      AS $$ BEGIN PERFORM set_tenant(NEW.tenant); RETURN NEW; END $$;
    CREATE TRIGGER on_login BEFORE INSERT ON logins FOR EACH ROW EXECUTE FUNCTION on_login();
    CREATE VIEW all_logins AS SELECT * FROM logins;
    CREATE FUNCTION quiet(n integer) RETURNS integer LANGUAGE plpgsql
      AS $$ BEGIN IF n > 0 THEN UPDATE users SET visits = visits + 1; END IF; RETURN n; END $$;
    CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql
      AS $$ BEGIN IF (NEW IS DISTINCT FROM OLD) THEN NEW.visits := 7; END IF; RETURN NEW; END $$;
    CREATE TABLE touched (id integer, visits integer);
    CREATE TRIGGER touch BEFORE UPDATE ON touched FOR EACH ROW EXECUTE FUNCTION touch();
";

/// node-mssql 1483, rustango 1224: what a function has set stays on the pooled connection.
#[tokio::test]
async fn what_code_in_the_database_sets_is_seen_by_its_session_and_by_no_other() {
    let pool = with(TENANTS).await.build().await.unwrap();
    for sql in [
        "SELECT set_tenant('a')",
        "SELECT * FROM set_tenant('a')",
        "SELECT set_by_text('a')",
        "SELECT set_on_the_quiet('a')",
        "CALL set_in_procedure('a')",
        "DO $$ BEGIN PERFORM set_tenant('a'); END $$",
        "DO $$ BEGIN SET app.tenant = 'a'; END $$",
        "INSERT INTO logins VALUES ('a')",
        "INSERT INTO all_logins (tenant) VALUES ('a')",
        "WITH new AS (INSERT INTO logins VALUES ('a') RETURNING tenant) SELECT tenant FROM new",
        "SELECT query_to_xml('SELECT set_tenant(''a'')', true, true, '')",
    ] {
        let mut conn = pool.get().await.unwrap();
        if run(&mut conn, sql).await.is_err() {
            assert!(sql.contains("xml"), "{sql}: only XML may be missing");
            continue;
        }
        // Its own next read sees it, so it is on the same connection.
        assert_eq!(tenant(&mut conn).await, "a", "{sql}");
        assert_eq!(
            conn.last_route().unwrap().reason,
            RouteReason::SessionState,
            "{sql}"
        );
        drop(conn);
        let mut next = pool.get().await.unwrap();
        assert_eq!(tenant(&mut next.primary()).await, "", "{sql}");
        assert_eq!(tenant(&mut next).await, "", "{sql}");
    }
}

/// The other half of it: what is known to leave nothing behind costs nothing.
#[tokio::test]
async fn functions_and_triggers_that_leave_nothing_pin_nothing() {
    let pool = with(TENANTS).await.build().await.unwrap();
    for sql in [
        "SELECT quiet(1)",
        "DO $$ BEGIN PERFORM quiet(1); END $$",
        "INSERT INTO touched (id, visits) VALUES (1, 1) ON CONFLICT DO NOTHING",
        "UPDATE touched SET visits = 2",
        "UPDATE touched SET visits = quiet(2)",
        "SELECT count(*) FROM logins",
    ] {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, sql).await.unwrap();
        assert_unpinned(&mut conn, sql).await;
    }
}

/// pgdog 1341, multigres 729: `RESET ALL` leaves the role, and the next session acts as another.
#[tokio::test]
async fn a_role_that_a_function_took_is_not_the_next_sessions() {
    let schema = "
        DO $$ BEGIN CREATE ROLE world_tenant; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        CREATE FUNCTION become() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET ROLE world_tenant; END $$;";
    let pool = with(schema).await.build().await.unwrap();
    for sql in [
        "SELECT become()",
        "SET ROLE world_tenant",
        "SET SESSION AUTHORIZATION world_tenant",
    ] {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn.primary(), sql).await.unwrap();
        let me = "current_user";
        assert_eq!(
            value(&mut conn.primary(), me).await.unwrap().unwrap(),
            "world_tenant",
            "{sql}"
        );
        drop(conn);
        let mut next = pool.get().await.unwrap();
        assert_eq!(
            value(&mut next.primary(), me).await.unwrap().unwrap(),
            "postgres",
            "{sql}"
        );
    }
}

/// asyncpg 1293: a temporary table of the session before is there, and swallows the rows.
#[tokio::test]
async fn a_temporary_table_made_by_a_function_takes_nobody_elses_rows() {
    let schema = "
        CREATE TABLE cart (id integer);
        CREATE FUNCTION scratch() RETURNS void LANGUAGE plpgsql
          AS $$ BEGIN CREATE TEMP TABLE cart (id integer); END $$;";
    let pool = with(schema).await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "SELECT scratch()").await.unwrap();
    run(&mut conn, "INSERT INTO cart VALUES (1)").await.unwrap();
    drop(conn);
    let mut next = pool.get().await.unwrap();
    run(&mut next, "INSERT INTO cart VALUES (2)").await.unwrap();
    let rows = value(&mut next, "SELECT array_agg(id) FROM public.cart")
        .await
        .unwrap();
    assert_eq!(rows.as_deref(), Some("{2}"));
}

/// npgsql 5592, pgdog 1407, `with_advisory_lock` 45: a lock outlives its session, and its heirs hold it.
#[tokio::test]
async fn a_lock_that_a_function_took_is_free_when_its_session_has_gone() {
    let schema =
        "CREATE FUNCTION lock_it() RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_lock(4712)';";
    let pool = with(schema).await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "SELECT lock_it()").await.unwrap();
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712";
    assert_eq!(
        value(&mut conn.primary(), held).await.unwrap().unwrap(),
        "1"
    );
    drop(conn);
    let mut next = pool.get().await.unwrap();
    assert_eq!(
        value(&mut next.primary(), held).await.unwrap().unwrap(),
        "0"
    );
}

/// pgx 95: a connection goes back while it listens.
#[tokio::test]
async fn notifications_reach_the_session_that_listens_and_no_later_one() {
    let schema =
        "CREATE FUNCTION hear() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LISTEN secrets; END $$;";
    let pool = with(schema).await.max_size(2).build().await.unwrap();
    let mut first = pool.get().await.unwrap();
    run(&mut first, "SELECT hear()").await.unwrap();
    let mut speaker = pool.get().await.unwrap();
    run(&mut speaker, "NOTIFY secrets, 'for the first'")
        .await
        .unwrap();
    // Unread when it goes.
    drop(first);
    run(&mut speaker, "NOTIFY secrets, 'for nobody'")
        .await
        .unwrap();
    let mut second = pool.get().await.unwrap();
    run(&mut second, "LISTEN news").await.unwrap();
    run(
        &mut speaker,
        "NOTIFY secrets, 'for nobody'; NOTIFY news, 'for the second'",
    )
    .await
    .unwrap();
    let mut news = std::pin::pin!(second.notifications_stream());
    let heard = news.next().await.unwrap().unwrap();
    assert_eq!(heard.payload, "for the second");
}

/// What nobody reads is bounded, and the loss is told.
#[tokio::test]
async fn unread_notifications_are_bounded_and_their_loss_is_told() {
    let pool = with("").await.max_size(2).build().await.unwrap();
    let mut listener = pool.get().await.unwrap();
    run(&mut listener, "LISTEN flood").await.unwrap();
    let mut speaker = pool.get().await.unwrap();
    let flood =
        "SELECT count(pg_notify('flood', n || repeat('x', 7000))) FROM generate_series(1, 2000) n";
    run(&mut speaker, flood).await.unwrap();
    run(&mut speaker, "NOTIFY flood, 'last'").await.unwrap();
    run(&mut listener, "SELECT 1").await.unwrap();
    let mut news = std::pin::pin!(listener.notifications_stream());
    let (mut lost, mut read) = (0, 0);
    loop {
        match news.next().await.unwrap() {
            Ok(notification) if notification.payload == "last" => break,
            Ok(_) => read += 1,
            Err(error) => {
                let text = error.to_string();
                lost += text.split(' ').next().unwrap().parse::<u32>().unwrap();
            }
        }
    }
    assert_eq!(lost + read, 2000);
    assert!((100..1500).contains(&read), "{read}");
}

/// The same on replicas: through their scope, in a snapshot, in a read-only transaction.
#[tokio::test]
async fn what_a_function_sets_on_a_replica_ends_with_its_statement_or_transaction() {
    let pool = with(TENANTS)
        .await
        .read_only_transactions_on_replicas(true)
        .build()
        .await
        .unwrap();
    let all = async |pool: &ReplicatedPool| {
        for _ in 0..6 {
            let mut next = pool.get().await.unwrap();
            assert_eq!(tenant(&mut next).await, "");
            assert_eq!(next.last_route().unwrap().kind, NodeKind::Replica);
        }
    };
    let mut conn = pool.get().await.unwrap();
    run(&mut conn.replica(), "SELECT set_tenant('a')")
        .await
        .unwrap();
    assert_eq!(tenant(&mut conn).await, "");
    drop(conn);
    all(&pool).await;

    let mut conn = pool.get().await.unwrap();
    conn.snapshot(async |conn| {
        run(conn, "SELECT set_tenant('a')").await?;
        assert_eq!(tenant(conn).await, "a");
        QueryResult::Ok(())
    })
    .await
    .unwrap();
    assert_eq!(tenant(&mut conn).await, "");
    drop(conn);
    all(&pool).await;

    let mut conn = pool.get().await.unwrap();
    let mut transaction = conn.build_transaction().read_only();
    transaction = transaction.repeatable_read();
    transaction
        .run(async |conn| run(conn, "SELECT set_tenant('a')").await)
        .await
        .unwrap();
    drop(conn);
    all(&pool).await;
}

/// typeorm 5857, slonik 441: `SET app.tenant` for each request. Reads stay on replicas.
#[tokio::test]
async fn a_tenants_setting_goes_along_to_whichever_node_serves() {
    let pool = with(TENANTS).await.max_size(2).build().await.unwrap();
    let typed = diesel::select(set_config("app.tenant", "a", false));
    let setters = [
        "SET app.tenant = 'a'",
        "SET SESSION app.tenant TO 'a'",
        "SELECT set_config('app.tenant', 'a', false)",
        "SET app.tenant = 'b'; SET app.tenant = 'a'",
    ];
    for sql in setters.iter().map(|sql| Some(*sql)).chain([None]) {
        let mut conn = pool.get().await.unwrap();
        match sql {
            Some(sql) => run(&mut conn, sql).await.unwrap(),
            None => {
                let set: String = typed.get_result(&mut conn).await.unwrap();
                assert_eq!(set, "a");
            }
        }
        assert_eq!(tenant(&mut conn).await, "a", "{sql:?}");
        let route = conn.last_route().unwrap();
        assert_eq!(
            (route.kind, route.reason),
            (NodeKind::Replica, RouteReason::PlainSelect),
            "{sql:?}"
        );
        assert_eq!(tenant(&mut conn.primary()).await, "a", "{sql:?}");
        assert_eq!(tenant(&mut conn.replica()).await, "a", "{sql:?}");
        let inside = conn
            .transaction(async |conn| QueryResult::Ok(tenant(conn).await))
            .await;
        assert_eq!(inside.unwrap(), "a", "{sql:?}");
        let inside = conn
            .snapshot(async |conn| QueryResult::Ok(tenant(conn).await))
            .await;
        assert_eq!(inside.unwrap(), "a", "{sql:?}");
        // A write with the wrong setting would be somebody else's.
        let wrote = "INSERT INTO users (name) VALUES (current_setting('app.tenant') || gen_random_uuid()) RETURNING name AS value";
        let wrote: Value = sql_query(wrote).get_result(&mut conn).await.unwrap();
        assert!(wrote.value.unwrap().starts_with('a'), "{sql:?}");
        drop(conn);
        for _ in 0..4 {
            let mut next = pool.get().await.unwrap();
            assert_eq!(tenant(&mut next).await, "");
            assert_eq!(tenant(&mut next.primary()).await, "");
        }
    }
}

diesel::define_sql_function! {
    fn set_config(name: Text, value: Text, is_local: Bool) -> Text;
}

/// multigres 1134, xtdb 5747: a setting made in a transaction is undone by its ROLLBACK, and the pool's
/// idea of it must be, too.
#[tokio::test]
async fn a_setting_is_rolled_back_with_its_transaction() {
    let pool = with("").await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "SET app.tenant = 'before'").await.unwrap();
    let failed: QueryResult<()> = conn
        .transaction(async |conn| {
            run(conn, "SET app.tenant = 'inside'").await?;
            run(conn, "SET app.other = 'x'").await?;
            assert_eq!(tenant(conn).await, "inside");
            Err(diesel::result::Error::RollbackTransaction)
        })
        .await;
    failed.unwrap_err();
    for _ in 0..2 {
        assert_eq!(tenant(&mut conn).await, "before");
        assert_eq!(tenant(&mut conn.primary()).await, "before");
    }
    conn.transaction(async |conn| run(conn, "SET app.tenant = 'inside'").await)
        .await
        .unwrap();
    assert_eq!(tenant(&mut conn).await, "inside");
    assert_unpinned(&mut conn, "a committed setting").await;
    assert_eq!(tenant(&mut conn).await, "inside");
    // The COMMIT of a failed transaction is a ROLLBACK.
    run(&mut conn, "BEGIN").await.unwrap();
    run(&mut conn, "SET app.tenant = 'never'").await.unwrap();
    run(&mut conn, "SELECT 1 / 0").await.unwrap_err();
    run(&mut conn, "COMMIT").await.unwrap();
    assert_eq!(tenant(&mut conn).await, "inside");
    assert_eq!(tenant(&mut conn.primary()).await, "inside");
    // A COMMIT that the server refuses is one, too.
    let deferred = "CREATE TABLE later (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)";
    run(&mut conn, deferred).await.unwrap();
    let refused = conn
        .transaction(async |conn| {
            run(conn, "SET app.tenant = 'never'").await?;
            run(conn, "INSERT INTO later VALUES (1), (1)").await
        })
        .await;
    refused.unwrap_err();
    assert_eq!(tenant(&mut conn).await, "inside");
    assert_eq!(tenant(&mut conn.primary()).await, "inside");
    // Back to a savepoint: only the connection knows.
    let partly: QueryResult<()> = conn
        .transaction(async |conn| {
            run(conn, "SET app.tenant = 'kept'").await?;
            let inner: QueryResult<()> = conn
                .transaction(async |conn| {
                    run(conn, "SET app.tenant = 'gone'").await?;
                    Err(diesel::result::Error::RollbackTransaction)
                })
                .await;
            inner.unwrap_err();
            Ok(())
        })
        .await;
    partly.unwrap();
    assert_eq!(tenant(&mut conn).await, "kept");
}

/// A role that a replica does not know yet: the read is not served as anybody else.
#[tokio::test]
async fn a_setting_that_a_node_refuses_has_nothing_read_without_it() {
    let pool = with("").await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let error = run(&mut conn, "SET ROLE nobody_knows").await.unwrap_err();
    assert!(error.to_string().contains("nobody_knows"), "{error}");
    // It was refused, so it is not in force.
    assert_eq!(
        value(&mut conn, "current_user").await.unwrap().unwrap(),
        "postgres"
    );
    run(&mut conn, "SET statement_timeout = 'nonsense'")
        .await
        .unwrap_err();
    run(&mut conn, "SET work_mem = '3MB'").await.unwrap();
    let mut primary = conn.primary();
    assert_eq!(
        value(&mut primary, "current_setting('work_mem')")
            .await
            .unwrap()
            .unwrap(),
        "3MB"
    );
}

/// npgsql 2517, rust-postgres 896: a schema for each tenant.
#[tokio::test]
async fn a_search_path_goes_along_and_comes_back() {
    let schema = "
        CREATE SCHEMA one; CREATE TABLE one.things (name text); INSERT INTO one.things VALUES ('of one');
        CREATE SCHEMA two; CREATE TABLE two.things (name text); INSERT INTO two.things VALUES ('of two');";
    let pool = with(schema).await.build().await.unwrap();
    for _ in 0..3 {
        for (path, expected) in [("one", "of one"), ("two", "of two")] {
            let mut conn = pool.get().await.unwrap();
            run(&mut conn, &format!("SET search_path TO {path}"))
                .await
                .unwrap();
            let things = "SELECT name FROM things";
            assert_eq!(value(&mut conn, things).await.unwrap().unwrap(), expected);
            assert_eq!(conn.last_route().unwrap().kind, NodeKind::Replica);
            assert_eq!(
                value(&mut conn.primary(), things).await.unwrap().unwrap(),
                expected
            );
        }
        let mut conn = pool.get().await.unwrap();
        value(&mut conn, "SELECT name FROM things")
            .await
            .unwrap_err();
        value(&mut conn.primary(), "SELECT name FROM things")
            .await
            .unwrap_err();
    }
}

/// Cursors end with their transaction, and may be used where it is.
#[tokio::test]
async fn a_cursor_pins_nothing_beyond_its_transaction() {
    // The next one's snapshot need not have what this one's COMMIT may have written.
    let of_sessions = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let builder = with("").await.consistency(of_sessions);
    let pool = builder.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    conn.transaction(async |conn| {
        run(conn, "DECLARE c CURSOR FOR SELECT id FROM users").await?;
        run(conn, "FETCH 2 FROM c; CLOSE c").await
    })
    .await
    .unwrap();
    assert_unpinned(&mut conn, "a cursor").await;
    drop(conn);
    let mut conn = pool.get().await.unwrap();
    let server = conn
        .snapshot(async |conn| {
            run(conn, "DECLARE c CURSOR FOR SELECT id FROM users").await?;
            run(conn, "FETCH 2 FROM c").await?;
            run(conn, "SET LOCAL work_mem = '2MB'").await?;
            QueryResult::Ok(who(conn).await)
        })
        .await
        .unwrap();
    assert_ne!(server, "primary");
    drop(conn);
    // One that is held is state of the session's.
    let mut holder = pool.get().await.unwrap();
    run(
        &mut holder,
        "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM users",
    )
    .await
    .unwrap();
    assert_eq!(who(&mut holder).await, "primary");
}

/// Locks of two standbys exclude nobody: six snapshots had two holders.
#[tokio::test]
async fn a_lock_is_not_taken_on_a_replica() {
    let schema = "CREATE FUNCTION lock_it() RETURNS boolean LANGUAGE sql AS 'SELECT pg_try_advisory_xact_lock(42)';";
    // The snapshots need not have what the transactions before may have written.
    let of_sessions = ConsistencyConfig::default().write_scope(WriteScope::Session);
    let builder = with(schema).await.consistency(of_sessions);
    let pool = builder.build().await.unwrap();
    for sql in [
        "SELECT pg_try_advisory_xact_lock(42)",
        "SELECT lock_it()",
        "SELECT pg_advisory_xact_lock_shared(42)",
    ] {
        let mut conn = pool.get().await.unwrap();
        let refused = conn
            .snapshot(async |conn| run(conn, sql).await)
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("exclude nobody"),
            "{sql}: {refused}"
        );
        let refused = run(&mut conn.replica(), sql).await.unwrap_err();
        assert!(
            refused.to_string().contains("exclude nobody"),
            "{sql}: {refused}"
        );
        conn.transaction(async |conn| run(conn, sql).await)
            .await
            .unwrap();
        assert_unpinned(&mut conn, sql).await;
    }
}

/// deadpool 201, hfs 285: a hook of the outer pool sets something on each new connection.
#[tokio::test]
async fn a_hook_of_a_pool_over_this_one_pins_nothing_and_lasts() {
    use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig};

    let url = cluster().url(&database().await);
    for keep in [true, false] {
        let ran = Shared::default();
        let counter = ran.clone();
        let mut config = ManagerConfig::<ReplicatedConnection>::default();
        config.custom_setup = Box::new(move |url| {
            let url = url.to_owned();
            let counter = counter.clone();
            Box::pin(async move {
                let mut conn = ReplicatedConnection::establish(&url).await?;
                counter.add(1);
                run(&mut conn, "SET app.tenant = 'of the hook'")
                    .await
                    .map_err(ConnectionError::CouldntSetupConfiguration)?;
                if keep {
                    conn.keep_settings();
                }
                Ok(conn)
            })
        });
        let manager = AsyncDieselConnectionManager::new_with_config(url.clone(), config);
        if !keep {
            let pool = diesel_async::pooled_connection::bb8::Pool::builder()
                .max_size(1)
                .build(manager)
                .await
                .unwrap();
            for _ in 0..20 {
                let mut conn = pool.get().await.unwrap();
                assert_eq!(tenant(&mut conn).await, "of the hook");
                assert_eq!(conn.last_route().unwrap().kind, NodeKind::Replica);
                run(&mut conn, "SET app.tenant = 'of the user'")
                    .await
                    .unwrap();
                assert_eq!(tenant(&mut conn.primary()).await, "of the user");
            }
        } else {
            let pool = diesel_async::pooled_connection::deadpool::Pool::builder(manager)
                .max_size(1)
                .build()
                .unwrap();
            for _ in 0..20 {
                let mut conn = pool.get().await.unwrap();
                assert_eq!(tenant(&mut conn).await, "of the hook");
                assert_eq!(conn.last_route().unwrap().kind, NodeKind::Replica);
                run(&mut conn, "SET app.tenant = 'of the user'")
                    .await
                    .unwrap();
                assert_eq!(tenant(&mut conn.primary()).await, "of the user");
            }
        }
        assert_eq!(ran.get(), 1, "{keep}");
    }
}

/// node-postgres 1584: a connection that dies takes the settings with it, and a new one gets them again.
#[tokio::test]
async fn settings_outlive_their_connection() {
    let pool = with("").await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "SET app.tenant = 'a'").await.unwrap();
    assert_eq!(tenant(&mut conn.primary()).await, "a");
    let pid = value(&mut conn.primary(), "pg_backend_pid()")
        .await
        .unwrap()
        .unwrap();
    blocking(move || {
        let end = format!("SELECT pg_terminate_backend({pid})");
        cluster().primary().sql("postgres", &end).unwrap();
    })
    .await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let found = value(&mut conn.primary(), "current_setting('app.tenant', true)").await;
        if let Ok(found) = found {
            assert_eq!(found.as_deref(), Some("a"));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "no new connection");
    }
    assert_eq!(count(&mut conn).await, 3);
}

/// State that cannot travel is refused where it would be lost, by name.
#[tokio::test]
async fn state_of_one_connection_is_refused_on_a_replica() {
    let pool = with("").await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    for sql in [
        "SELECT pg_advisory_lock(1)",
        "PREPARE p AS SELECT 1",
        "SET SESSION AUTHORIZATION postgres",
    ] {
        let refused = run(&mut conn.replica(), sql).await.unwrap_err();
        let typed = refused.to_string();
        let expected = Error::SessionStateOnReplica {
            node: conn.last_route().unwrap().node,
        }
        .to_string();
        assert_eq!(typed, expected, "{sql}");
    }
}

/// A migration changes what a function or a table does; until the pool has looked at it, nothing is trusted.
#[tokio::test]
async fn code_that_was_just_replaced_by_a_migration_is_not_trusted() {
    let pool = with(TENANTS).await.build().await.unwrap();
    let change = "CREATE OR REPLACE FUNCTION quiet(n integer) RETURNS integer LANGUAGE plpgsql
          AS $$ BEGIN PERFORM set_config('app.tenant', 'a', false); RETURN n; END $$;
        CREATE TRIGGER late BEFORE INSERT ON touched FOR EACH ROW EXECUTE FUNCTION touch_late()";
    let mut migration = pool.get().await.unwrap();
    let make = "CREATE FUNCTION touch_late() RETURNS trigger LANGUAGE plpgsql
          AS $$ BEGIN PERFORM set_config('app.tenant', 'a', false); RETURN NEW; END $$";
    run(&mut migration, make).await.unwrap();
    run(&mut migration, change).await.unwrap();
    drop(migration);
    for sql in ["SELECT quiet(1)", "INSERT INTO touched (id) VALUES (1)"] {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, sql).await.unwrap();
        assert_eq!(tenant(&mut conn).await, "a", "{sql}");
        drop(conn);
        let mut next = pool.get().await.unwrap();
        assert_eq!(tenant(&mut next.primary()).await, "", "{sql}");
    }
    // In the transaction that changes it.
    let mut conn = pool.get().await.unwrap();
    conn.transaction(async |conn| {
        run(conn, "CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET app.tenant = 'b'; RETURN NEW; END $$").await?;
        run(conn, "UPDATE touched SET visits = 3").await
    })
    .await
    .unwrap();
    drop(conn);
    let mut next = pool.get().await.unwrap();
    assert_eq!(tenant(&mut next.primary()).await, "");
}

/// npgsql 5997: a connection goes back as it was opened, its time zone and its role included.
#[tokio::test]
async fn a_connection_goes_back_as_it_was_opened() {
    let pool = with("").await.build().await.unwrap();
    let zone = "current_setting('TimeZone')";
    for sql in [
        "SET TIME ZONE 'Asia/Tokyo'",
        "SET timezone = 'Asia/Tokyo'; LISTEN x",
    ] {
        let mut conn = pool.get().await.unwrap();
        let before = value(&mut conn.primary(), zone).await.unwrap();
        run(&mut conn, sql).await.unwrap();
        assert_eq!(
            value(&mut conn.primary(), zone).await.unwrap().unwrap(),
            "Asia/Tokyo"
        );
        drop(conn);
        let mut next = pool.get().await.unwrap();
        assert_eq!(
            value(&mut next.primary(), zone).await.unwrap(),
            before,
            "{sql}"
        );
    }
}

/// What the bare connection is lent with is what the session has set.
#[tokio::test]
async fn the_bare_connection_has_the_settings_of_the_session() {
    let pool = with("").await.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "SET app.tenant = 'a'").await.unwrap();
    let bare = conn.primary_connection().await.unwrap();
    let found: Value = sql_query("SELECT current_setting('app.tenant', true) AS value")
        .get_result(bare)
        .await
        .unwrap();
    assert_eq!(found.value.as_deref(), Some("a"));
}

/// A migration of another process: the server counts changes of its catalogs, and the pool looks at that.
#[tokio::test]
async fn code_that_another_process_has_changed_is_noticed() {
    let schema = "CREATE TABLE audited (id integer);
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
          $$ BEGIN PERFORM set_config('app.tenant', 'a', false); RETURN NEW; END $$;";
    let database = database().await;
    let (one, other) = (database.clone(), database.clone());
    blocking(move || drop(cluster().primary().sql(&one, schema).unwrap())).await;
    let pool = builder(&database).max_size(1).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "INSERT INTO audited VALUES (1)")
        .await
        .unwrap();
    assert_unpinned(&mut conn, "nothing runs yet").await;
    drop(conn);
    let change =
        "CREATE TRIGGER audit BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION audit()";
    blocking(move || drop(cluster().primary().sql(&other, change).unwrap())).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let mut conn = pool.get().await.unwrap();
        run(&mut conn, "INSERT INTO audited VALUES (1)")
            .await
            .unwrap();
        who(&mut conn).await;
        if conn.last_route().unwrap().reason == RouteReason::SessionState {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "not noticed");
    }
    let mut next = pool.get().await.unwrap();
    assert_eq!(tenant(&mut next.primary()).await, "");
}
