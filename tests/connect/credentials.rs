//! Users and passwords that change while the pool runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use diesel_async::RunQueryDsl;
use diesel_replicated::config::HealthConfig;
use diesel_replicated::credentials::{Credential, PassFile, from_fn};
use diesel_replicated::status::{Degradation, NodeHealth};
use diesel_replicated::testing::LocalCluster;
use diesel_replicated::{Builder, ReplicatedPool};
use parking_lot::Mutex;

use crate::support::{Shared, blocking, count, eventually, fill, insert, on, run};
use crate::tls::Folder;

/// A cluster whose user `app` needs a password: `one`.
pub async fn guarded() -> Arc<LocalCluster> {
    blocking(|| {
        let local = LocalCluster::builder()
            .replicas(1)
            .rule("host all app,other 127.0.0.1/32 scram-sha-256")
            .start()
            .unwrap();
        fill(&local, "app");
        let roles = "CREATE ROLE app LOGIN PASSWORD 'one'; CREATE ROLE other LOGIN PASSWORD 'one'; \
            GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC";
        local.primary().sql("app", roles).unwrap();
        local.wait_caught_up().unwrap();
        Arc::new(local)
    })
    .await
}

async fn change_password(local: &Arc<LocalCluster>, password: &'static str) {
    on(local, move |local| {
        let change = format!("ALTER ROLE app PASSWORD '{password}'");
        local.primary().sql("app", &change).unwrap();
        local.wait_caught_up().unwrap();
    })
    .await;
}

/// Ends every server connection of the user, as a restart would.
async fn end_all(local: &Arc<LocalCluster>) {
    on(local, |local| {
        for node in local.nodes() {
            let end =
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
            node.sql("app", end).unwrap();
        }
    })
    .await;
}

fn builder(local: &LocalCluster) -> Builder {
    let url = local.url("app").replace("postgres@", "app@");
    let health = HealthConfig::default().interval(Duration::from_millis(200));
    Builder::from_url(&url).unwrap().health(health).max_size(4)
}

/// A password that a test changes, and how often it was asked for.
#[derive(Clone)]
struct Secret {
    password: Arc<Mutex<&'static str>>,
    asked: Shared,
}

impl Secret {
    fn new(password: &'static str) -> Self {
        Self {
            password: Arc::new(Mutex::new(password)),
            asked: Shared::default(),
        }
    }

    fn set(&self, password: &'static str) {
        *self.password.lock() = password;
    }

    fn source(
        &self,
        valid: Option<Duration>,
    ) -> impl diesel_replicated::credentials::Credentials + use<> {
        let secret = self.clone();
        from_fn(move |_| {
            secret.asked.add(1);
            let credential = Credential::new(*secret.password.lock());
            async move {
                Ok(match valid {
                    Some(valid) => credential.expires_in(valid),
                    None => credential,
                })
            }
        })
    }
}

/// Takes a connection of the server and holds it.
async fn held(pool: &ReplicatedPool) -> diesel_replicated::ReplicatedConnection {
    let mut conn = pool.get().await.unwrap();
    run(&mut conn, "BEGIN").await.unwrap();
    conn
}

// formae 720, sqlx 1500, 445, 3117; datafusion-table-providers 548: a rotation under load fails no statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_rotated_under_load() {
    let local = guarded().await;
    let secret = Secret::new("one");
    let pool = builder(&local)
        .credentials(secret.source(None))
        .max_size(8)
        .build()
        .await
        .unwrap();
    let (over, done) = (Shared::default(), Shared::default());
    let task = |name: String| {
        let (pool, over, done) = (pool.clone(), over.clone(), done.clone());
        tokio::spawn(async move {
            for number in 0.. {
                if over.get() > 0 {
                    return;
                }
                let mut conn = pool.get().await.unwrap();
                let name = format!("{name}-{number}");
                insert(&name).execute(&mut conn).await.unwrap();
                assert!(count(&mut conn).await > 0);
                done.add(1);
            }
        })
    };
    let mut tasks = vec![task("first".to_owned())];
    let more = async |what| {
        let before = done.get();
        eventually(what, async || done.get() > before + 20).await;
    };
    more("it works").await;
    for password in ["two", "three", "four"] {
        change_password(&local, password).await;
        // More connections are needed now, and the old password is still given.
        tasks.push(task(format!("{password}-a")));
        tasks.push(task(format!("{password}-b")));
        more("statements go on over what is open").await;
        secret.set(password);
        more("statements go on").await;
        let grown = async || {
            let status = pool.status();
            let refused =
                |what: &diesel_replicated::status::Degraded| what.reason == Degradation::CannotGrow;
            !status.degraded.iter().any(refused)
        };
        eventually("the pool can grow again", grown).await;
        end_idle(&local).await;
    }
    over.add(1);
    for task in tasks {
        task.await.unwrap();
    }
}

/// Ends connections on which nothing runs, so that new ones are opened.
async fn end_idle(local: &Arc<LocalCluster>) {
    on(local, |local| {
        for node in local.nodes() {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND state = 'idle' \
                AND state_change < now() - interval '1 second'";
            node.sql("app", end).unwrap();
        }
    })
    .await;
}

// efcore.pg 3807, npgsql 5720, 5163: a kept answer that the server refuses is asked for once more, and only once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_password_that_is_refused_is_asked_for_again() {
    let local = guarded().await;
    let secret = Secret::new("one");
    let kept = Duration::from_secs(3600);
    let pool = builder(&local)
        .credentials(secret.source(Some(kept)))
        .build()
        .await
        .unwrap();
    let first = secret.asked.get();
    assert!(first <= 2, "once for each node: {first}");
    let conns = [held(&pool).await, held(&pool).await, held(&pool).await];
    assert_eq!(secret.asked.get(), first, "it is kept");
    drop(conns);
    secret.set("two");
    change_password(&local, "two").await;
    end_all(&local).await;
    eventually("the pool is whole", async || {
        let Ok(mut conn) = pool.get().await else {
            return false;
        };
        insert_any(&mut conn).await.is_ok()
            && pool
                .status()
                .nodes
                .iter()
                .all(|node| node.health == NodeHealth::Up)
    })
    .await;
    assert_eq!(secret.asked.get(), first + 2, "once more for each node");
}

async fn insert_any(conn: &mut diesel_replicated::ReplicatedConnection) -> diesel::QueryResult<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("any-{}", NUMBER.fetch_add(1, Ordering::AcqRel));
    insert(&name).execute(conn).await.map(drop)
}

// F6: while a password is refused, what is open goes on serving, and the pool says why it cannot grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_whose_password_is_refused_serves_over_what_is_open() {
    let local = guarded().await;
    let secret = Secret::new("one");
    let pool = builder(&local)
        .credentials(secret.source(None))
        .build()
        .await
        .unwrap();
    // Each node has open connections.
    let mut conn = held(&pool).await;
    run(&mut conn, "COMMIT").await.unwrap();
    eventually("a replica serves", async || {
        let mut conn = pool.get().await.unwrap();
        count(&mut conn).await;
        pool.status().nodes.iter().all(|node| node.connections > 0)
    })
    .await;
    drop(conn);
    change_password(&local, "two").await;
    let mut first = held(&pool).await;
    // Others would need new connections, and are served by what is open in turn.
    let waiting: Vec<_> = (0..6)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut conn = pool.get().await.unwrap();
                run(&mut conn, "BEGIN").await.unwrap();
                insert_any(&mut conn).await.unwrap();
                run(&mut conn, "COMMIT").await.unwrap();
            })
        })
        .collect();
    eventually("the pool says that it cannot grow", async || {
        let degraded = pool.status().degraded;
        degraded.iter().any(|what| {
            what.reason == Degradation::CannotGrow
                && what.detail.contains("password authentication failed")
        })
    })
    .await;
    assert!(
        pool.status()
            .nodes
            .iter()
            .all(|node| node.health == NodeHealth::Up),
        "{:?}",
        pool.status()
    );
    run(&mut first, "COMMIT").await.unwrap();
    drop(first);
    for task in waiting {
        task.await.unwrap();
    }
    secret.set("two");
    eventually("it can grow again", async || {
        let held = [held(&pool).await, held(&pool).await, held(&pool).await];
        drop(held);
        !pool
            .status()
            .degraded
            .iter()
            .any(|what| what.reason == Degradation::CannotGrow)
    })
    .await;
}

// postgres 881, MySqlConnector 1270, TablePro 2500: user and password change together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_gives_another_user() {
    let local = guarded().await;
    let source = from_fn(|login| async move {
        assert_eq!(
            (
                login.user.as_str(),
                login.dbname.as_str(),
                login.host.as_str()
            ),
            ("app", "app", "127.0.0.1")
        );
        Ok(Credential::new("one").user("other"))
    });
    let pool = builder(&local).credentials(source).build().await.unwrap();
    let mut conn = held(&pool).await;
    let user: String = diesel::select(diesel::dsl::sql::<diesel::sql_types::Text>(
        "current_user::text",
    ))
    .get_result(&mut conn)
    .await
    .unwrap();
    assert_eq!(user, "other");
}

// mssql-jdbc 3003, aiomysql 285: a source that fails or hangs costs connections, and nothing for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_is_asked_again() {
    let local = guarded().await;
    let state = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&state);
    let source = from_fn(move |_| {
        let state = *seen.lock();
        async move {
            match state {
                0 => Err("the vault is sealed".into()),
                1 => std::future::pending().await,
                2 => panic!("the source panics"),
                _ => Ok(Credential::new("one")),
            }
        }
    });
    let builder = || builder(&local).connect_timeout(Duration::from_millis(500));
    let shared = Arc::new(source);
    let with = |source| {
        let source: Arc<dyn diesel_replicated::credentials::Credentials> = source;
        builder().credentials(Through(source))
    };
    let said = with(shared.clone()).build().await.unwrap_err().to_string();
    assert!(
        said.contains("nothing to log in with: the vault is sealed"),
        "{said}"
    );
    *state.lock() = 1;
    let said = with(shared.clone()).build().await.unwrap_err().to_string();
    assert!(said.contains("no answer in time"), "{said}");
    *state.lock() = 2;
    let said = with(shared.clone()).build().await.unwrap_err().to_string();
    assert!(said.contains("panicked"), "{said}");
    let pool = with(shared).build_unchecked().unwrap();
    *state.lock() = 3;
    eventually("the pool serves", async || {
        let Ok(mut conn) = pool.get().await else {
            return false;
        };
        insert_any(&mut conn).await.is_ok()
    })
    .await;
    // And while the pool runs.
    *state.lock() = 2;
    end_all(&local).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    *state.lock() = 3;
    eventually("the pool serves again", async || {
        let Ok(mut conn) = pool.get().await else {
            return false;
        };
        insert_any(&mut conn).await.is_ok()
    })
    .await;
}

/// A source that several pools share.
struct Through(Arc<dyn diesel_replicated::credentials::Credentials>);

#[async_trait::async_trait]
impl diesel_replicated::credentials::Credentials for Through {
    async fn credential(
        &self,
        login: &diesel_replicated::credentials::LoginRequest,
    ) -> Result<Credential, diesel_replicated::credentials::CredentialsError> {
        self.0.credential(login).await
    }
}

// sqlx 3993, asyncpg 1249, check_postgres 133: the file of passwords, which is written anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_passwords_is_read_for_each_connection() {
    use std::os::unix::fs::PermissionsExt;

    let local = guarded().await;
    let folder = Folder::new("passfile");
    let write = |text: &str| {
        let path = folder.write("pgpass", text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let path = write("127.0.0.1:*:app:app:one\n");
    let url = format!(
        "{}?passfile={path}",
        local.url("app").replace("postgres@", "app@")
    );
    let pool = Builder::from_url(&url)
        .unwrap()
        .max_size(4)
        .build()
        .await
        .unwrap();
    let first = held(&pool).await;
    change_password(&local, "t:w\\o").await;
    write("127.0.0.1:*:app:app:t\\:w\\\\o\n");
    let second = held(&pool).await;
    drop((first, second));
    let from_code = builder(&local)
        .credentials(PassFile::new(&path))
        .build()
        .await;
    assert!(from_code.is_ok());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = ReplicatedPool::connect(&url).await.unwrap_err().to_string();
    assert!(
        said.contains("may be read by others") && !said.contains("t:w"),
        "{said}"
    );
    write("127.0.0.1:*:other:app:x\n");
    let said = ReplicatedPool::connect(&url).await.unwrap_err().to_string();
    assert!(said.contains("has no line for this login"), "{said}");
}
