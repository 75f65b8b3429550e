//! Poolers in between: PgBouncer of two versions and Odyssey, for sessions and for transactions.

use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::*;
use diesel::sql_types::{Integer, Text};
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use diesel_replicated::config::{HealthConfig, Pooler as Kind};
use diesel_replicated::status::{Degradation, NodeHealth};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{
    Builder, Consistency, Durability, ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool,
};

use crate::pooler::{Mode, Pooler, odyssey, pgbouncer};
use crate::support::{
    Shared, blocking, count, eventually, insert, on, own_cluster, run, users, who,
};

/// A cluster behind a pooler.
async fn pooled(
    make: impl FnOnce(&LocalCluster) -> Pooler + Send + 'static,
) -> (Arc<LocalCluster>, Pooler) {
    let local = own_cluster().await;
    let pooler = on(&local, make).await;
    (local, pooler)
}

fn quick(builder: Builder) -> Builder {
    let health = HealthConfig::default()
        .interval(Duration::from_millis(200))
        .timeout(Duration::from_secs(5));
    builder.health(health).max_size(8)
}

#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    value: String,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Integer)]
    number: i32,
}

async fn is_there(conn: &mut ReplicatedConnection, name: &str) -> bool {
    let found = users::table.filter(users::name.eq(name.to_owned())).count();
    found.get_result::<i64>(conn).await.unwrap() == 1
}

/// Reads, writes and transactions of several tasks at once. Each statement has a value of its own, which must come back.
async fn works(pool: &ReplicatedPool) {
    let tasks: Vec<_> = (0..8)
        .map(|task: i32| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for round in 0..10 {
                    let mut conn = pool.get().await.unwrap();
                    let own = task * 1000 + round;
                    let asked = diesel::sql_query("SELECT $1 AS number").bind::<Integer, _>(own);
                    let row: Number = asked.get_result(&mut conn).await.unwrap();
                    assert_eq!(row.number, own);
                    let unique = std::time::Instant::now();
                    let (one, two) = (format!("{own}-{unique:?}-1"), format!("{own}-{unique:?}-2"));
                    insert(&one).execute(&mut conn).await.unwrap();
                    assert!(is_there(&mut conn, &one).await);
                    conn.transaction(async |conn| {
                        insert(&two).execute(conn).await?;
                        assert!(is_there(conn, &one).await && is_there(conn, &two).await);
                        Ok::<_, diesel::result::Error>(())
                    })
                    .await
                    .unwrap();
                    assert!(is_there(&mut conn, &two).await);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Whether a read of what was just written comes from a replica, sooner or later.
async fn replicas_serve_own_writes(pool: &ReplicatedPool) {
    eventually("a replica serves a read of the own write", async || {
        let mut conn = pool.get().await.unwrap();
        let rows = count(&mut conn).await;
        let name = format!("{:?}", std::time::Instant::now());
        insert(&name).execute(&mut conn).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(count(&mut conn).await > rows);
        conn.last_route().unwrap().node.starts_with("replica")
    })
    .await;
}

async fn session_state(conn: &mut ReplicatedConnection) -> Vec<(&'static str, QueryResult<()>)> {
    let mut results = Vec::new();
    for sql in [
        "SET statement_timeout = '7654ms'",
        "SELECT set_config('application_name', 'mine', false)",
        "CREATE TEMPORARY TABLE own (x int)",
        "LISTEN news",
        "SELECT pg_advisory_lock(7)",
        "PREPARE own AS SELECT 1",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    ] {
        let result = conn.batch_execute(sql).await;
        results.push((sql, result));
    }
    results
}

// postgres-operator 1928, npgsql 1636, F3: with a pooler for sessions all works as without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_for_sessions_changes_nothing() {
    let local = own_cluster().await;
    for version in ["pgbouncer_1_18", "pgbouncer"] {
        let pooler = on(&local, move |local| {
            pgbouncer(version, local, Mode::Session, 20)
        })
        .await;
        let pool = quick(pooler.builder(&local, "pooler=session", false))
            .setup_sql("SET statement_timeout = '9s'")
            .build()
            .await
            .unwrap();
        works(&pool).await;
        replicas_serve_own_writes(&pool).await;
        let mut conn = pool.get().await.unwrap();
        for (sql, result) in session_state(&mut conn).await {
            assert!(result.is_ok(), "{version}: {sql}: {result:?}");
        }
        assert!(
            !pool
                .status()
                .degraded
                .iter()
                .any(|what| what.reason == Degradation::Pooler)
        );
    }
}

// F3, zalando/postgres-operator 1928: after a promotion writes go on, though PgBouncer tells an old role for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_behind_a_pooler_is_followed() {
    for (version, mode) in [
        ("pgbouncer_1_18", Mode::Session),
        ("pgbouncer", Mode::Session),
        ("pgbouncer_1_18", Mode::Transaction),
        ("pgbouncer", Mode::Transaction),
    ] {
        let (local, pooler) = pooled(move |local| pgbouncer(version, local, mode, 20)).await;
        let parameters = format!("pooler={}", mode.as_str());
        let around = mode == Mode::Transaction;
        let pool = quick(pooler.builder(&local, &parameters, around))
            .build()
            .await
            .unwrap();
        let mut conn = pool.get().await.unwrap();
        insert("before").execute(&mut conn).await.unwrap();
        count(&mut conn).await;
        on(&local, |local| {
            local.wait_caught_up().unwrap();
            local.primary().kill().unwrap();
            local.replicas()[0].promote().unwrap();
            local.replicas()[1].follow(&local.replicas()[0]).unwrap();
        })
        .await;
        let mut after = pool.get().await.unwrap();
        insert("after").execute(&mut after).await.unwrap();
        assert_eq!(
            after.last_route().unwrap().node,
            "replica-1",
            "{version} {mode:?}"
        );
        assert_eq!(count(&mut after).await, 5);
    }
}

// rust-postgres 959, 1054, sqlx 67, 1740, asyncpg 339, diesel 1028: prepared statements behind a pooler for transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_for_transactions_runs_diesels_statements() {
    let local = own_cluster().await;
    for version in ["pgbouncer_1_18", "pgbouncer", "odyssey"] {
        let pooler = on(&local, move |local| match version {
            "odyssey" => odyssey(local, Mode::Transaction, 2),
            version => pgbouncer(version, local, Mode::Transaction, 2),
        })
        .await;
        let pool = quick(pooler.builder(&local, "pooler=transaction", true))
            .build()
            .await
            .unwrap();
        works(&pool).await;
        replicas_serve_own_writes(&pool).await;
        let mut conn = pool.get().await.unwrap();
        for (sql, result) in session_state(&mut conn).await {
            let error = result.unwrap_err();
            let refused = error
                .to_string()
                .contains("gives each transaction another connection");
            assert!(refused, "{version}: {sql}: {error}");
            assert_eq!(error.outcome(), Outcome::NotRun);
        }
        // What ends with its transaction is allowed.
        conn.transaction(async |conn| {
            conn.batch_execute("SET LOCAL statement_timeout = '7654ms'")
                .await?;
            conn.batch_execute("SELECT pg_advisory_xact_lock(7)")
                .await?;
            let shown: Setting =
                diesel::sql_query("SELECT current_setting('statement_timeout') AS value")
                    .get_result(conn)
                    .await?;
            assert_eq!(shown.value, "7654ms");
            Ok::<_, diesel::result::Error>(())
        })
        .await
        .unwrap();
    }
}

// teachanything 450, pgbouncer 1567, 396, commafeed 559: nobody else finds what this pool has set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_ours_is_left_on_shared_servers() {
    let (local, pooler) =
        pooled(|local| pgbouncer("pgbouncer_1_18", local, Mode::Transaction, 1)).await;
    let pool = quick(pooler.builder(&local, "pooler=transaction", false))
        .build()
        .await
        .unwrap();
    works(&pool).await;
    // The monitors have asked a few times.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for node in ["primary", "replica-1"] {
        let url = pooler.url(node, "");
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
            .await
            .unwrap();
        let driver = tokio::spawn(connection);
        let look = "SELECT string_agg(name || '=' || setting, ', ') FROM pg_settings WHERE source = 'session' \
            AND name NOT IN ('TimeZone', 'client_encoding', 'application_name')";
        let messages = client.simple_query(look).await.unwrap();
        let left = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        assert_eq!(left, None, "{node}");
        driver.abort();
    }
}

// A deferred trigger runs at COMMIT, and notes what the commit will wait for. The next client of the server finds nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_behind_a_pooler_commits_as_durably_as_it_was_told() {
    let (local, pooler) =
        pooled(|local| pgbouncer("pgbouncer_1_18", local, Mode::Transaction, 1)).await;
    on(&local, |local| {
        let notes = "CREATE TABLE notes (id serial PRIMARY KEY, note text); \
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            INSERT INTO notes (note) VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$; \
            CREATE CONSTRAINT TRIGGER note AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED \
            FOR EACH ROW EXECUTE FUNCTION note()";
        local.primary().sql("app", notes).unwrap();
    })
    .await;
    let pool = quick(pooler.builder(&local, "pooler=transaction", false))
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    let mut told = pool.get().await.unwrap();
    told.set_durability(Durability::Local);
    for round in 0..3 {
        conn.transaction(async |conn| insert(&format!("plain {round}")).execute(conn).await)
            .await
            .unwrap();
        told.transaction(async |conn| {
            insert(&format!("outer {round}")).execute(conn).await?;
            // What a savepoint takes back does not take this back.
            let inner = conn.transaction(async |conn| {
                insert(&format!("inner {round}")).execute(conn).await?;
                Err::<(), _>(diesel::result::Error::RollbackTransaction)
            });
            assert!(inner.await.is_err());
            Ok::<_, diesel::result::Error>(())
        })
        .await
        .unwrap();
    }
    // One that has failed ends as it does without.
    let mut ends = Vec::new();
    for conn in [&mut conn, &mut told] {
        let failed = conn.transaction(async |conn| {
            insert("lost").execute(conn).await?;
            assert!(run(conn, "SELECT 1/0").await.is_err());
            Ok::<_, diesel::result::Error>(())
        });
        ends.push(format!("{:?}", failed.await));
        assert!(!is_there(conn, "lost").await);
    }
    assert_eq!(ends[0], ends[1]);
    // Outside of a transaction nothing can be told.
    let error = insert("alone").execute(&mut told).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotRun);
    assert!(error.to_string().contains("pooler"), "{error}");
    let look = diesel::sql_query("SELECT string_agg(note, ' ' ORDER BY id) AS value FROM notes");
    let noted: Setting = look.get_result(&mut conn.primary()).await.unwrap();
    assert_eq!(noted.value, "on local on local on local");
}

// PgBouncer 1.26 tells its mode; before that it is seen, and said to be unknown. Prisma's and Supabase's `pgbouncer=true`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_nobody_named_is_seen() {
    let local = own_cluster().await;
    for (version, mode, known) in [
        ("pgbouncer_1_18", Mode::Transaction, false),
        ("pgbouncer_1_18", Mode::Session, false),
        ("pgbouncer", Mode::Transaction, true),
        ("pgbouncer", Mode::Session, true),
    ] {
        let pooler = on(&local, move |local| pgbouncer(version, local, mode, 20)).await;
        let pool = quick(pooler.builder(&local, "", false))
            .build()
            .await
            .unwrap();
        works(&pool).await;
        let degraded = pool.status().degraded;
        let told: Vec<_> = degraded
            .iter()
            .filter(|what| what.reason == Degradation::Pooler)
            .collect();
        let mut conn = pool.get().await.unwrap();
        let set = conn.batch_execute("SET statement_timeout = '7s'").await;
        match (known, mode) {
            (true, Mode::Session) => assert!(told.is_empty() && set.is_ok(), "{told:?} {set:?}"),
            (true, Mode::Transaction) => {
                assert!(
                    told.iter().all(|what| what.detail.contains("monitor`")) && told.len() == 3,
                    "{told:?}"
                );
                assert!(
                    set.unwrap_err()
                        .to_string()
                        .contains("gives each transaction another")
                );
            }
            (false, _) => {
                assert!(
                    told.iter()
                        .all(|what| what.detail.contains("`pooler=session`"))
                        && told.len() == 3,
                    "{told:?}"
                );
                assert!(set.unwrap_err().to_string().contains("`pooler=session`"));
            }
        }
        // Without a way around it, what must be seen is read on the primary, and the rest on replicas.
        if (known, mode) != (true, Mode::Session) {
            let mut conn = pool.get().await.unwrap();
            assert_eq!(who(&mut conn).await, "primary");
            conn.set_consistency(Consistency::Eventual);
            eventually("a replica serves what may be old", async || {
                let mut conn = pool.get().await.unwrap();
                conn.set_consistency(Consistency::Eventual);
                who(&mut conn).await.starts_with("replica")
            })
            .await;
        }
    }
    let pooler = on(&local, |local| {
        pgbouncer("pgbouncer_1_18", local, Mode::Transaction, 2)
    })
    .await;
    let pool = quick(pooler.builder(&local, "pgbouncer=true", true))
        .build()
        .await
        .unwrap();
    works(&pool).await;
    replicas_serve_own_writes(&pool).await;
}

// pgbouncer 801, 329: a request to cancel waits for its end; else PgBouncer 1.18 dies of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_behind_a_pooler_is_cancelled() {
    let local = own_cluster().await;
    for (version, mode) in [
        ("pgbouncer_1_18", Mode::Session),
        ("pgbouncer_1_18", Mode::Transaction),
        ("pgbouncer", Mode::Transaction),
    ] {
        let pooler = on(&local, move |local| pgbouncer(version, local, mode, 4)).await;
        let parameters = format!("pooler={}", mode.as_str());
        let pool = quick(pooler.builder(&local, &parameters, mode == Mode::Transaction))
            .build()
            .await
            .unwrap();
        for _ in 0..5 {
            let mut conn = pool.get().await.unwrap();
            run(&mut conn, "BEGIN").await.unwrap();
            let token = conn.cancel_token();
            let sleep =
                tokio::spawn(async move { conn.batch_execute("SELECT pg_sleep(60)").await });
            let node = Arc::clone(&local);
            eventually("it runs", async || {
                let node = Arc::clone(&node);
                let look = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND state = 'active' AND pid <> pg_backend_pid()";
                let rows = blocking(move || node.primary().sql("app", look).unwrap()).await;
                rows[0][0].as_deref() != Some("0")
            })
            .await;
            token.cancel().await.unwrap();
            let ended = sleep.await.unwrap().unwrap_err();
            assert!(
                ended.to_string().contains("canceling statement"),
                "{version} {mode:?}: {ended}"
            );
        }
        works(&pool).await;
    }
}

// F8, pgbouncer 46, 724, elastic 13874: a pooler that is full is no dead server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pooler_is_no_dead_server() {
    let (local, pooler) =
        pooled(|local| pgbouncer("pgbouncer_1_18", local, Mode::Transaction, 2)).await;
    let health = HealthConfig::default()
        .interval(Duration::from_millis(200))
        .timeout(Duration::from_millis(500));
    let pool = pooler
        .builder(&local, "pooler=transaction&connect_timeout=1", true)
        .health(health)
        .max_size(4)
        .build()
        .await
        .unwrap();
    let mut conn = pool.get().await.unwrap();
    insert("warm").execute(&mut conn).await.unwrap();
    // Somebody else takes all server connections of the primary for three seconds.
    let url = pooler.url("primary", "");
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
                    .await
                    .unwrap();
                let driver = tokio::spawn(connection);
                client.batch_execute("SELECT pg_sleep(3)").await.unwrap();
                drop(client);
                let _ = driver.await;
            })
        })
        .collect();
    let node = Arc::clone(&local);
    eventually("the pooler is full", async || {
        let node = Arc::clone(&node);
        let look = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3)%' AND state = 'active' AND pid <> pg_backend_pid()";
        let rows = blocking(move || node.primary().sql("app", look).unwrap()).await;
        rows[0][0].as_deref() == Some("2")
    })
    .await;
    let done = Shared::default();
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let (pool, done) = (pool.clone(), done.clone());
            tokio::spawn(async move {
                let mut conn = pool.get().await.unwrap();
                insert(&format!("queued {task}"))
                    .execute(&mut conn)
                    .await
                    .unwrap();
                done.add(1);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for task in busy {
        task.await.unwrap();
    }
    assert_eq!(done.get(), 4);
    assert_ne!(
        pool.status().node("primary").unwrap().health,
        NodeHealth::Down
    );
}

// pgbouncer 482, 525, 907, neon 6291: a parameter that the pooler refuses is told with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parameter_that_a_pooler_refuses_is_told() {
    let (local, pooler) =
        pooled(|local| pgbouncer("pgbouncer_1_18", local, Mode::Session, 5)).await;
    let said = pooler
        .builder(&local, "options=-c%20statement_timeout%3D1s", false)
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("unsupported startup parameter")
            && said.contains("a pooler is in between; remove `options`"),
        "{said}"
    );
    let said = pooler
        .builder(&local, "", false)
        .setup_sql("SET statement_timeout = '1s'")
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("`setup_sql`") && said.contains("`pooler=session`"),
        "{said}"
    );
    let declared = ReplicatedPool::builder()
        .primary(
            diesel_replicated::NodeConfig::new(pooler.url("primary", "")).pooler(Kind::Transaction),
        )
        .setup_sql("SET statement_timeout = '1s'")
        .build()
        .await
        .unwrap_err()
        .to_string();
    assert!(declared.contains("ALTER ROLE"), "{declared}");
}

// Two processes were given one session lock at once: no promotion over a pooler for transactions, unless around it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_promoted_over_a_pooler_for_transactions() {
    let (local, pooler) =
        pooled(|local| pgbouncer("pgbouncer_1_18", local, Mode::Transaction, 20)).await;
    let over = quick(pooler.builder(&local, "pooler=transaction", false))
        .build()
        .await
        .unwrap();
    let around = quick(pooler.builder(&local, "pooler=transaction", true))
        .build()
        .await
        .unwrap();
    on(&local, |local| {
        local.wait_caught_up().unwrap();
        local.primary().kill().unwrap();
    })
    .await;
    eventually("it is refused for its pooler", async || {
        let refused = over.promote("replica-1").await.unwrap_err().to_string();
        refused.contains("monitor`")
    })
    .await;
    eventually("it is promoted around the pooler", async || {
        around.promote("replica-1").await.is_ok()
    })
    .await;
}
