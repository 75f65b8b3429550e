//! A statement's error says nothing of its node.

use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_query;
use diesel_async::{AsyncConnection, RunQueryDsl};
use diesel_replicated::status::{NodeHealth, RouteReason};
use diesel_replicated::testing::{LocalCluster, LocalNode, StopMode};
use diesel_replicated::{Builder, ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool};

use crate::support::{
    Number, all_up, blocking, builder, builder_for, cluster, count, database, eventually, insert,
    on, own_cluster, own_cluster_of, run, shut_out, users, who,
};

/// Nothing was ever held against a node.
fn assert_never_down(pool: &ReplicatedPool) {
    for node in pool.status().nodes {
        let down = |to| to == NodeHealth::Down || to == NodeHealth::Suspect;
        let fell = node
            .transitions
            .iter()
            .any(|transition| down(transition.to));
        assert!(!fell, "{}: {:?}", node.name, node.transitions);
    }
}

async fn sql(database: &str, sql: &'static str) {
    let database = database.to_owned();
    blocking(move || {
        cluster().primary().sql(&database, sql).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
}

fn cause(pool: &ReplicatedPool, node: &str) -> String {
    pool.status()
        .node(node)
        .unwrap()
        .cause
        .clone()
        .unwrap_or_default()
}

async fn ten_reads_on_replicas(pool: &ReplicatedPool) {
    for _ in 0..10 {
        let mut conn = pool.get().await.unwrap();
        assert!(count(&mut conn).await >= 3);
        assert_eq!(conn.last_route().unwrap().reason, RouteReason::PlainSelect);
    }
}

/// pgdog #496, mattermost #22888: a statement's error takes the server out for everybody.
#[tokio::test]
async fn a_foreign_table_whose_file_is_missing_puts_no_node_down() {
    let database = database().await;
    let foreign = "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
        CREATE FOREIGN TABLE lost (number integer) SERVER files OPTIONS (filename '/nonexistent')";
    sql(&database, foreign).await;
    let pool = builder(&database).build().await.unwrap();
    for _ in 0..3 {
        let mut conn = pool.get().await.unwrap();
        let lost = sql_query("SELECT number FROM lost");
        let error = lost.get_result::<Number>(&mut conn).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::Failed, "{error}");
        ten_reads_on_replicas(&pool).await;
    }
    assert_never_down(&pool);
}

/// A page that one replica's disk has lost is read elsewhere, and all else still there.
#[tokio::test]
async fn a_damaged_page_takes_no_replica_out() {
    let local = own_cluster().await;
    on(&local, |local| {
        let make = "CREATE TABLE pages AS SELECT 7 AS number";
        local.primary().sql("app", make).unwrap();
        // A restartpoint, after which the replica does not write the page anew.
        local.primary().sql("app", "CHECKPOINT").unwrap();
        local.wait_caught_up().unwrap();
        let replica = &local.replicas()[0];
        replica.sql("app", "CHECKPOINT").unwrap();
        let path = replica
            .sql("app", "SELECT pg_relation_filepath('pages')")
            .unwrap();
        let path = replica.data_dir().join(path[0][0].as_deref().unwrap());
        replica.stop(StopMode::Fast).unwrap();
        damage(&path);
        replica.start().unwrap();
        let read = replica.sql("app", "SELECT number FROM pages").unwrap_err();
        assert!(read.to_string().contains("XX001"), "{read}");
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let mut by = Vec::new();
    for _ in 0..20 {
        let mut conn = pool.get().await.unwrap();
        let page: Number = sql_query("SELECT number FROM pages")
            .get_result(&mut conn)
            .await
            .unwrap();
        assert_eq!(page.number, 7);
        assert_eq!(conn.last_route().unwrap().node, "replica-2");
        let mut conn = pool.get().await.unwrap();
        by.push(who(&mut conn).await);
    }
    assert_never_down(&pool);
    assert!(by.iter().any(|server| server == "replica-1"), "{by:?}");
    assert!(by.iter().all(|server| server != "primary"), "{by:?}");
}

fn damage(file: &std::path::Path) {
    let mut page = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    page.seek(SeekFrom::Start(8)).unwrap();
    page.write_all(&[0xA5; 16]).unwrap();
}

const RAISES: &str = "
    CREATE FUNCTION raise(code text) RETURNS integer LANGUAGE plpgsql STABLE AS
        $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = code; END $$;
    CREATE FUNCTION warn(code text) RETURNS integer LANGUAGE plpgsql STABLE AS
        $$ BEGIN RAISE WARNING 'as if' USING ERRCODE = code; RETURN 1; END $$;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = NEW.code; END $$;
    CREATE TABLE refused (code text);
    CREATE TRIGGER refuse BEFORE INSERT ON refused FOR EACH ROW EXECUTE FUNCTION refuse();";

/// Codes by which a server speaks of itself, raised by code that it runs.
const CODES: [&str; 14] = [
    "57P01", "57P02", "57P03", "57P04", "57P05", "53100", "53300", "58000", "58030", "58P01",
    "XX000", "XX001", "XX002", "08006",
];

#[tokio::test]
async fn a_code_that_user_code_raises_is_the_statements() {
    let database = database().await;
    sql(&database, RAISES).await;
    let pool = builder(&database).build().await.unwrap();
    for code in CODES {
        let mut conn = pool.get().await.unwrap();
        let read = sql_query(format!("SELECT raise('{code}') AS number"));
        let error = read.get_result::<Number>(&mut conn).await.unwrap_err();
        assert_eq!(error.to_string(), "as if", "{code}");
        assert_eq!(error.outcome(), Outcome::Failed, "{code}");
        let write = sql_query(format!("INSERT INTO refused VALUES ('{code}')"));
        let error = write.execute(&mut conn).await.unwrap_err();
        assert_eq!(error.to_string(), "as if", "{code}");
        assert_eq!(error.outcome(), Outcome::Failed, "{code}");
        // A part of a transaction that was undone is undone, and the rest is kept.
        conn.transaction(async |conn| {
            insert(code).execute(conn).await?;
            let part = async |conn: &mut ReplicatedConnection| {
                sql_query(format!("INSERT INTO refused VALUES ('{code}')"))
                    .execute(conn)
                    .await
            };
            let error = conn.transaction(part).await.unwrap_err();
            assert_eq!(error.outcome(), Outcome::Failed, "{code}");
            QueryResult::Ok(())
        })
        .await
        .unwrap_or_else(|error| panic!("{code}: {error}"));
    }
    let mut conn = pool.get().await.unwrap();
    assert_eq!(
        usize::try_from(count(&mut conn).await).unwrap(),
        3 + CODES.len()
    );
    assert_never_down(&pool);
    assert!(pool.status().nodes.iter().all(|node| node.cause.is_none()));
}

#[tokio::test]
async fn a_warning_that_user_code_raises_ends_no_transaction() {
    let database = database().await;
    sql(&database, RAISES).await;
    let pool = builder(&database).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    for code in ["57P01", "57P02", "57P04"] {
        conn.transaction(async |conn| {
            insert(code).execute(conn).await?;
            let warning = sql_query(format!("SELECT warn('{code}') AS number"));
            let one: Number = warning.get_result(conn).await?;
            assert_eq!(one.number, 1);
            insert(&format!("after {code}")).execute(conn).await
        })
        .await
        .unwrap_or_else(|error| panic!("{code}: {error}"));
        let mut reader = pool.get().await.unwrap();
        let warning = sql_query(format!("SELECT warn('{code}') AS number"));
        let _: Number = warning.get_result(&mut reader).await.unwrap();
    }
    assert_eq!(count(&mut conn).await, 9);
    assert_never_down(&pool);
}

/// npgsql #5073: whoever ends one backend says nothing of the server.
#[tokio::test]
async fn one_terminated_backend_puts_no_node_down() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    for n in 0..3 {
        let mut conn = pool.get().await.unwrap();
        let slow = tokio::spawn(async move {
            let slow = sql_query(format!(
                "INSERT INTO users (name) SELECT 'slow {n}' FROM pg_sleep(30)"
            ));
            slow.execute(&mut conn).await
        });
        eventually("the statement was ended", || async {
            on(&local, |local| {
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE query LIKE 'INSERT INTO users%pg_sleep(30)' AND state = 'active' AND wait_event = 'PgSleep'";
                !local.primary().sql("postgres", end).unwrap().is_empty()
            })
            .await
        })
        .await;
        assert_eq!(slow.await.unwrap().unwrap_err().outcome(), Outcome::Unknown);
        insert(&format!("next {n}"))
            .execute(&mut pool.get().await.unwrap())
            .await
            .unwrap();
    }
    let down = |node: &diesel_replicated::status::NodeStatus| {
        node.transitions
            .iter()
            .any(|transition| transition.to == NodeHealth::Down)
    };
    assert!(!pool.status().nodes.iter().any(down));
    eventually("it is up again", || async { all_up(&pool) }).await;
}

fn as_role(local: &LocalCluster, role: &str) -> Builder {
    let node = |node: &LocalNode| {
        let url = node.url("app").replace("postgres@", &format!("{role}@"));
        diesel_replicated::NodeConfig::new(url).name(node.name())
    };
    let builder = ReplicatedPool::builder().primary(node(local.primary()));
    local
        .replicas()
        .iter()
        .fold(builder, |builder, replica| builder.replica(node(replica)))
}

/// A role of its own, without privileges but on the table.
async fn with_role(options: &'static str) -> Arc<LocalCluster> {
    let local = own_cluster().await;
    on(&local, move |local| {
        let make = format!("CREATE ROLE app LOGIN {options}; GRANT ALL ON users TO app");
        local.primary().sql("app", &make).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    local
}

/// Writes on `held` connections that are open, while others ask for more than can be had.
async fn goes_on(
    pool: &ReplicatedPool,
    held: &mut [ReplicatedConnection],
    more: usize,
    from: &str,
) {
    let asking: Vec<_> = (0..more)
        .map(|n| {
            let (pool, name) = (pool.clone(), format!("{from} {n}"));
            tokio::spawn(async move {
                let mut conn = pool.get().await.unwrap();
                insert(&name).execute(&mut conn).await
            })
        })
        .collect();
    for round in 0..20 {
        for (n, conn) in held.iter_mut().enumerate() {
            insert(&format!("{from} held {round} {n}"))
                .execute(conn)
                .await
                .unwrap();
        }
        assert_never_down(pool);
    }
    for asked in asking {
        // Nothing could be had, which is told, and nothing of it ran.
        if let Err(error) = asked.await.unwrap() {
            assert_eq!(error.outcome(), Outcome::NotRun, "{error}");
        }
    }
    assert_never_down(pool);
}

/// stolon #691, proxysql #4171: a full server is taken for a dead one, and a failover begins.
#[tokio::test]
async fn a_full_connection_limit_puts_no_node_down() {
    let local = with_role("CONNECTION LIMIT 4").await;
    let wait = std::time::Duration::from_secs(2);
    let pool = as_role(&local, "app")
        .max_size(8)
        .connection_timeout(wait)
        .build()
        .await
        .unwrap();
    let mut held = Vec::new();
    for n in 0..2 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("first {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
        held.push(conn);
    }
    goes_on(&pool, &mut held, 4, "full").await;
    assert!(
        cause(&pool, "primary").contains("too many connections"),
        "{}",
        cause(&pool, "primary")
    );
}

/// As `ALTER ROLE … CONNECTION LIMIT 0` of an operator who wants the clients gone: the pool said for half a minute and more
/// that its own size was too small.
#[tokio::test]
async fn a_role_that_may_open_no_connection_is_told_at_once() {
    let local = with_role("").await;
    let pool = as_role(&local, "app").build().await.unwrap();
    let mut held = Vec::new();
    for n in 0..5 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("{n}")).execute(&mut conn).await.unwrap();
        held.push(conn);
    }
    drop(held);
    shut_out(&local, "app").await;
    let reads = (0..10).map(|_| async {
        let started = std::time::Instant::now();
        let mut conn = pool.get().await.unwrap();
        let found = users::table
            .count()
            .get_result::<i64>(&mut conn.primary())
            .await;
        (found.unwrap_err().to_string(), started.elapsed())
    });
    for (error, took) in futures_util::future::join_all(reads).await {
        assert!(error.contains("too many connections for role"), "{error}");
        assert!(!error.contains("in use"), "{error}");
        assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    }
}

/// The same while one connection is in use: it may come back, so it is waited for.
#[tokio::test]
async fn a_pool_that_cannot_grow_does_not_say_that_it_is_too_small() {
    let local = with_role("").await;
    let wait = std::time::Duration::from_millis(500);
    let pool = as_role(&local, "app").connection_timeout(wait);
    let pool = pool.build().await.unwrap();
    let mut holder = pool.get().await.unwrap();
    insert("Holder").execute(&mut holder).await.unwrap();
    on(&local, |local| {
        let limit = "ALTER ROLE app CONNECTION LIMIT 0";
        local.primary().sql("app", limit).unwrap();
    })
    .await;
    // What is open and free is taken first.
    let mut held = Vec::new();
    let error = loop {
        let mut conn = pool.get().await.unwrap();
        let asked = run(&mut conn.primary(), "SELECT 1").await;
        match asked {
            Ok(()) => held.push(conn),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("too many connections for role"), "{error}");
    assert!(error.contains("no more could be opened"), "{error}");
    assert!(!error.contains("max_size"), "{error}");
}

/// npgsql #5720, psycopg #743, formae #733: while credentials change, what is open works.
#[tokio::test]
async fn a_refused_login_puts_no_node_down_while_connections_live() {
    let local = with_role("").await;
    let wait = std::time::Duration::from_secs(2);
    let pool = as_role(&local, "app")
        .max_size(8)
        .connection_timeout(wait)
        .build()
        .await
        .unwrap();
    let mut held = Vec::new();
    for n in 0..2 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("first {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
        held.push(conn);
    }
    let role = |sql: &'static str| {
        on(&local, move |local| {
            drop(local.primary().sql("app", sql).unwrap())
        })
    };
    role("ALTER ROLE app NOLOGIN").await;
    goes_on(&pool, &mut held, 4, "refused").await;
    assert!(
        cause(&pool, "primary").contains("does not let this user in"),
        "{}",
        cause(&pool, "primary")
    );
    role("ALTER ROLE app LOGIN").await;
    eventually("logins are known to work again", || async {
        pool.status().node("primary").unwrap().cause.is_none()
    })
    .await;
    assert_never_down(&pool);
}

#[tokio::test]
async fn a_set_up_that_fails_puts_no_node_down_while_connections_live() {
    let local = own_cluster().await;
    on(&local, |local| {
        let make = "CREATE FUNCTION ready() RETURNS integer LANGUAGE sql AS 'SELECT 1'";
        local.primary().sql("app", make).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let wait = std::time::Duration::from_secs(2);
    let builder = builder_for(&local, "app")
        .max_size(8)
        .connection_timeout(wait);
    let pool = builder.setup_sql("SELECT ready()").build().await.unwrap();
    let mut held = Vec::new();
    for n in 0..2 {
        let mut conn = pool.get().await.unwrap();
        insert(&format!("first {n}"))
            .execute(&mut conn)
            .await
            .unwrap();
        held.push(conn);
    }
    on(&local, |local| {
        drop(local.primary().sql("app", "DROP FUNCTION ready()").unwrap())
    })
    .await;
    goes_on(&pool, &mut held, 4, "set up").await;
    assert!(
        cause(&pool, "primary").contains("set-up"),
        "{}",
        cause(&pool, "primary")
    );
}

/// A cluster of one replica whose replay is paused, after `before` arrived there and before `after` does.
async fn behind(before: &'static str, after: &'static str) -> Arc<LocalCluster> {
    let local = own_cluster_of(1).await;
    on(&local, move |local| {
        local.primary().sql("app", before).unwrap();
        local.wait_caught_up().unwrap();
        local.replicas()[0].pause_replay().unwrap();
        local.primary().sql("app", after).unwrap();
    })
    .await;
    local
}

async fn catch_up(local: &Arc<LocalCluster>) {
    on(local, |local| {
        local.replicas()[0].resume_replay().unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
}

/// What the primary has and a replica that is behind has not: each with what is asked of it.
#[tokio::test]
async fn what_has_not_arrived_on_a_replica_is_asked_of_the_primary() {
    let before = "
        CREATE ROLE app LOGIN;
        CREATE TABLE granted AS SELECT 1 AS number;
        CREATE TYPE mood AS ENUM ('sad');
        CREATE TABLE moods (mood mood);
        CREATE TABLE narrow AS SELECT 1::int AS number, 1::int AS wide;
        CREATE MATERIALIZED VIEW later AS SELECT 1 AS number WITH NO DATA;
        GRANT SELECT ON moods, narrow, later TO app";
    let after = "
        GRANT SELECT ON granted TO app;
        ALTER TYPE mood ADD VALUE 'happy';
        ALTER TABLE narrow ALTER wide TYPE text USING wide::text;
        CREATE TABLE new AS SELECT 1 AS number; GRANT SELECT ON new TO app;
        REFRESH MATERIALIZED VIEW later";
    // An enum's label must be committed before it is used; each statement of a text is not.
    let local = behind(before, "SELECT 1").await;
    on(&local, move |local| {
        for statement in after.split(';') {
            local.primary().sql("app", statement).unwrap();
        }
    })
    .await;
    let pool = as_role(&local, "app").build().await.unwrap();
    let asked = [
        "SELECT number FROM granted",
        "SELECT count(*)::int AS number FROM moods WHERE mood = 'happy'",
        "SELECT number FROM narrow WHERE wide = 'x' OR true",
        "SELECT number FROM new",
        "SELECT number FROM later",
    ];
    for sql in asked {
        for _ in 0..2 {
            let mut conn = pool.get().await.unwrap();
            let _: Number = sql_query(sql)
                .get_result(&mut conn)
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error}"));
            assert_eq!(
                conn.last_route().unwrap().reason,
                RouteReason::ReplicaFailed,
                "{sql}"
            );
        }
    }
    // Nor is it held against the statement when the replica has caught up.
    catch_up(&local).await;
    for sql in asked {
        let mut conn = pool.get().await.unwrap();
        let _: Number = sql_query(sql).get_result(&mut conn).await.unwrap();
        assert_eq!(
            conn.last_route().unwrap().reason,
            RouteReason::PlainSelect,
            "{sql}"
        );
    }
    assert_never_down(&pool);
    assert_eq!(pool.status().learned, []);
}

/// ubicloud #5433, algorand/indexer #391, datanucleus #336: a standby refuses every statement under
/// this setting, the monitors' too.
#[tokio::test]
async fn replicas_serve_under_a_serializable_default() {
    let local = own_cluster().await;
    on(&local, |local| {
        let strict = "ALTER DATABASE app SET default_transaction_isolation = serializable";
        local.primary().sql("postgres", strict).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    ten_reads_on_replicas(&pool).await;
    let level = || sql_query("SELECT current_setting('transaction_isolation') AS level");
    #[derive(QueryableByName)]
    struct Level {
        #[diesel(sql_type = diesel::sql_types::Text)]
        level: String,
    }
    let mut conn = pool.get().await.unwrap();
    let there: Level = level().get_result(&mut conn.replica()).await.unwrap();
    assert_eq!(
        there.level, "repeatable read",
        "the strongest that a standby has"
    );
    // The monitors ask, so a session's reads come back to the replicas after its write.
    insert("Written").execute(&mut conn).await.unwrap();
    let mut on_a_replica = false;
    for _ in 0..3000 {
        assert_eq!(count(&mut conn).await, 4);
        on_a_replica = conn.last_route().unwrap().node != "primary";
        if on_a_replica {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(on_a_replica, "{}", conn.last_route().unwrap());
    let there: Level = level().get_result(&mut conn.primary()).await.unwrap();
    assert_eq!(there.level, "serializable", "as the operator wants it");
    // A replica that becomes the primary has the operator's level again.
    on(&local, |local| {
        local.primary().kill().unwrap();
        local.replicas()[0].promote().unwrap();
    })
    .await;
    eventually("the next primary takes writes", || async {
        let mut conn = pool.get().await.unwrap();
        insert("After").execute(&mut conn).await.is_ok()
    })
    .await;
    for _ in 0..5 {
        let mut conn = pool.get().await.unwrap();
        let there: Level = level().get_result(&mut conn.primary()).await.unwrap();
        assert_eq!(there.level, "serializable");
    }
}

/// The setting comes while the pool runs, to sessions that are open.
#[tokio::test]
async fn replicas_serve_on_when_serializable_becomes_the_default() {
    let local = own_cluster().await;
    let pool = builder_for(&local, "app").build().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut conn = pool.get().await.unwrap();
        assert_eq!(count(&mut conn).await, 3);
        held.push(conn);
    }
    on(&local, |local| {
        for node in local.nodes() {
            let strict = "ALTER SYSTEM SET default_transaction_isolation = 'serializable'";
            node.sql("postgres", strict).unwrap();
            node.sql(
                "postgres",
                "SET default_transaction_isolation = 'read committed'; SELECT pg_reload_conf()",
            )
            .unwrap();
        }
    })
    .await;
    eventually("the setting has arrived", || async {
        on(&local, |local| {
            let level = local.replicas()[1].sql("app", "SHOW default_transaction_isolation");
            level.is_ok_and(|level| level[0][0].as_deref() == Some("serializable"))
        })
        .await
    })
    .await;
    for conn in &mut held {
        assert_eq!(count(conn).await, 3);
    }
    ten_reads_on_replicas(&pool).await;
    assert_eq!(pool.status().learned, []);
}

/// A role that may log in nowhere but on the primary, and connections to the replicas that are open.
#[tokio::test]
async fn a_replica_that_lets_no_more_in_serves_on_and_the_others_serve_the_rest() {
    let local = with_role("").await;
    let pool = as_role(&local, "app").max_size(2).build().await.unwrap();
    let mut held = Vec::new();
    let mut by = std::collections::HashSet::new();
    while by.len() < 2 {
        let mut conn = pool.get().await.unwrap();
        let _: Vec<i32> = users::table
            .select(users::id)
            .load(&mut conn)
            .await
            .unwrap();
        by.insert(conn.last_route().unwrap().node);
        held.push(conn);
    }
    drop(held);
    on(&local, |local| {
        drop(
            local
                .primary()
                .sql("app", "ALTER ROLE app NOLOGIN")
                .unwrap(),
        )
    })
    .await;
    on(&local, |local| local.wait_caught_up().unwrap()).await;
    let reading = (0..8).map(|_| async {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await
    });
    for seen in futures_util::future::join_all(reading).await {
        assert_eq!(seen, 3);
    }
    assert_never_down(&pool);
}

/// What was learned is told, with the text that it is about and without values.
#[tokio::test]
async fn what_was_learned_is_shown() {
    let database = database().await;
    // It makes a large object, and the operator says that it is fit for a replica.
    let hidden = "CREATE FUNCTION hidden(integer) RETURNS oid LANGUAGE internal STABLE AS 'be_lo_creat';
        CREATE FUNCTION innocent() RETURNS integer LANGUAGE sql STABLE AS 'SELECT (hidden(-1) > 0::oid)::int'";
    sql(&database, hidden).await;
    let pool = builder(&database).allow_function("hidden");
    let pool = pool.build().await.unwrap();

    assert_eq!(pool.status().learned, []);
    let mut conn = pool.get().await.unwrap();
    let _: Number = sql_query("SELECT innocent() AS number")
        .get_result(&mut conn)
        .await
        .unwrap();
    let learned = pool.status().learned;
    assert_eq!(learned.len(), 1);
    assert_eq!(learned[0].sql, "SELECT innocent() AS number");
}

/// A function that was declared STABLE, and for which the operator vouches, acts on another server and then fails
/// with a code that says "try again". Whoever acts elsewhere is not to be repeated by us.
#[tokio::test]
async fn what_acts_elsewhere_and_fails_is_not_repeated() {
    let database = database().await;
    let port = cluster().primary().port();
    let acts = format!(
        "CREATE EXTENSION dblink; CREATE TABLE acted (at timestamptz DEFAULT now());
         CREATE FUNCTION acts() RETURNS integer STABLE LANGUAGE plpgsql AS $$ BEGIN
           PERFORM dblink_exec('host=127.0.0.1 port={port} user=postgres dbname={database}',
             'INSERT INTO acted DEFAULT VALUES');
           RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END $$"
    );
    sql(&database, acts.leak()).await;
    let pool = builder(&database).allow_function("acts");
    let pool = pool.build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let error = sql_query("SELECT acts() AS number")
        .get_result::<Number>(&mut conn)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("could not serialize"), "{error}");
    assert_ne!(conn.last_route().unwrap().node, "primary");
    let acted: Number = sql_query("SELECT count(*)::int AS number FROM acted")
        .get_result(&mut conn.primary())
        .await
        .unwrap();
    assert_eq!(acted.number, 1);
}
