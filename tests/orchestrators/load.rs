//! Work that goes on and on, and what it meets: this crate, a bare connection that tries again, and plain pools behind
//! HAProxy.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, PoolError, bb8};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_replicated::{Consistency, ErrorExt, Outcome, ReplicatedConnection, ReplicatedPool};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::balancer::Balancer;
use crate::cluster::{Cluster, Orchestrator};

diesel::table! {
    ledger (id) { id -> BigInt, by -> Text, }
}

/// The tables, without a key that would refuse what runs twice.
pub const TABLES: &str = "CREATE TABLE ledger (id bigint NOT NULL, by text NOT NULL); \
     CREATE INDEX ON ledger (id); INSERT INTO ledger VALUES (0, 'nobody')";

/// How long who has no pool of ours waits for an answer before he tries again.
const IMPATIENT: Duration = Duration::from_secs(2);

/// Longer than any orchestrator takes to promote another.
const FAILOVER_WAIT: Duration = Duration::from_secs(90);

/// Between two pieces of work of a task, and after one that failed.
const PACE: Duration = Duration::from_millis(2);
const AGAIN: Duration = Duration::from_millis(10);

/// A time without a success.
#[derive(Clone, Copy)]
pub struct Gap {
    pub from: Instant,
    pub to: Instant,
}

impl Gap {
    pub fn length(&self) -> Duration {
        self.to - self.from
    }
}

/// What the tasks of one kind have met.
#[derive(Clone, Default)]
pub struct Seen {
    pub longest: Option<Gap>,
    pub successes: u64,
    pub failures: BTreeMap<String, u64>,
}

impl Seen {
    pub fn pause(&self) -> Duration {
        self.longest.map_or(Duration::ZERO, |gap| gap.length())
    }

    fn succeeded(&mut self, gap: Gap) {
        self.successes += 1;
        self.note(gap);
    }

    fn count(&mut self, class: String) {
        *self.failures.entry(class).or_default() += 1;
    }

    fn note(&mut self, gap: Gap) {
        if gap.length() > self.pause() || self.longest.is_none() {
            self.longest = Some(gap);
        }
    }
}

/// What has become of the rows of one system.
#[derive(Default)]
pub struct Ledger {
    pub acknowledged: Vec<i64>,
    /// Of which an error said that nothing ran, or that it failed.
    pub refused: Vec<i64>,
}

/// One system under the load. One without an attempt was left out.
#[derive(Clone, Default)]
pub struct System {
    pub reads: Arc<Mutex<Seen>>,
    /// Reads that may show what is old: of this crate alone.
    pub eventual: Arc<Mutex<Seen>>,
    pub writes: Arc<Mutex<Seen>>,
    pub transactions: Arc<Mutex<Seen>>,
    pub ledger: Arc<Mutex<Ledger>>,
    /// Reads that did not show what the same session had just written.
    pub stale: Arc<Mutex<u64>>,
}

pub struct Load {
    pub ours: System,
    pub bare: System,
    pub balanced: System,
    pub pool: ReplicatedPool,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

fn next_number() -> i64 {
    static NUMBERS: AtomicI64 = AtomicI64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

impl Load {
    pub async fn start<O: Orchestrator>(cluster: &Cluster<O>, balancer: Option<&Balancer>) -> Self {
        let pool = O::pool(&cluster.members)
            .failover_wait(FAILOVER_WAIT)
            .connection_timeout(FAILOVER_WAIT)
            .build()
            .await
            .unwrap();
        let mut load = Self {
            ours: System::default(),
            bare: System::default(),
            balanced: System::default(),
            pool,
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        load.start_ours();
        load.start_bare(cluster);
        if let Some(balancer) = balancer {
            load.start_balanced(balancer).await;
        }
        load
    }

    /// Ends the load, and waits for it.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }

    /// A task that does the same again and again.
    fn repeat<Fut>(
        &mut self,
        seen: &Arc<Mutex<Seen>>,
        mut work: impl FnMut() -> Fut + Send + 'static,
    ) where
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let (stop, seen) = (self.stop.clone(), Arc::clone(seen));
        self.tasks.spawn(async move {
            let mut last = Instant::now();
            let gap = |last: Instant| Gap {
                from: last,
                to: Instant::now(),
            };
            while !stop.is_cancelled() {
                let pace = match work().await {
                    Ok(()) => {
                        seen.lock().unwrap().succeeded(gap(last));
                        last = Instant::now();
                        PACE
                    }
                    Err(class) => {
                        seen.lock().unwrap().count(class);
                        AGAIN
                    }
                };
                tokio::time::sleep(pace).await;
            }
            seen.lock().unwrap().note(gap(last));
        });
    }

    fn start_ours(&mut self) {
        let ours = self.ours.clone();
        let levels = [
            (&ours.reads, Consistency::default()),
            (&ours.eventual, Consistency::Eventual),
        ];
        for (seen, level) in levels {
            let pool = self.pool.clone();
            self.repeat(seen, move || {
                let pool = pool.clone();
                async move {
                    let mut conn = pool.get().await.map_err(|error| error.to_string())?;
                    conn.set_consistency(level);
                    let found = ledger::table
                        .find(0)
                        .count()
                        .get_result::<i64>(&mut conn)
                        .await;
                    found.map(|_| ()).map_err(|error| class(&error))
                }
            });
        }
        let (pool, system) = (self.pool.clone(), ours.clone());
        self.repeat(&ours.writes, move || {
            let (pool, system) = (pool.clone(), system.clone());
            async move {
                let mut conn = pool.get().await.map_err(|error| error.to_string())?;
                let number = next_number();
                let row = (ledger::id.eq(number), ledger::by.eq("ours"));
                let written = diesel::insert_into(ledger::table)
                    .values(row)
                    .execute(&mut conn);
                system.judged(number, written.await)?;
                // And the session reads it.
                let own = ledger::table
                    .find(number)
                    .count()
                    .get_result::<i64>(&mut conn)
                    .await;
                match own {
                    Ok(1) => {}
                    Ok(_) => *system.stale.lock().unwrap() += 1,
                    Err(error) => system.reads.lock().unwrap().count(class(&error)),
                }
                Ok(())
            }
        });
        let (pool, system) = (self.pool.clone(), ours.clone());
        self.repeat(&ours.transactions, move || {
            let (pool, system) = (pool.clone(), system.clone());
            async move {
                let mut conn = pool.get().await.map_err(|error| error.to_string())?;
                let number = next_number();
                let both = conn
                    .transaction(async |conn| pair(conn, number).await)
                    .await;
                system.judged(number, both)
            }
        });
    }

    fn start_bare<O>(&mut self, cluster: &Cluster<O>) {
        let mut config = tokio_postgres::Config::new();
        config
            .user("postgres")
            .dbname("app")
            .connect_timeout(Duration::from_secs(1));
        for member in &cluster.members {
            config.host("127.0.0.1").port(member.port);
        }
        let mut writable = config.clone();
        writable.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
        config.load_balance_hosts(tokio_postgres::config::LoadBalanceHosts::Random);
        let bare = self.bare.clone();
        let held = Arc::new(tokio::sync::Mutex::new(None));
        self.repeat(&bare.reads, move || {
            let (config, held) = (config.clone(), Arc::clone(&held));
            async move {
                let query = "SELECT count(*) FROM ledger WHERE id = 0";
                on_bare(&config, &held, query).await
            }
        });
        let (held, system) = (Arc::new(tokio::sync::Mutex::new(None)), bare.clone());
        self.repeat(&bare.writes, move || {
            let (config, held, system) = (writable.clone(), Arc::clone(&held), system.clone());
            async move {
                let number = next_number();
                let query = format!("INSERT INTO ledger VALUES ({number}, 'bare')");
                on_bare(&config, &held, &query).await?;
                system.ledger.lock().unwrap().acknowledged.push(number);
                Ok(())
            }
        });
    }

    async fn start_balanced(&mut self, balancer: &Balancer) {
        let pool = async |port: u16| {
            let url = format!("postgres://postgres@127.0.0.1:{port}/app");
            let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new(url);
            let builder = bb8::Pool::builder()
                .max_size(5)
                .connection_timeout(IMPATIENT);
            builder.build_unchecked(manager)
        };
        let (primary, replicas) = (pool(balancer.primary).await, pool(balancer.replicas).await);
        let balanced = self.balanced.clone();
        self.repeat(&balanced.reads, move || {
            let pool = replicas.clone();
            within(async move {
                let mut conn = pool.get().await.map_err(pool_class)?;
                let found = ledger::table
                    .find(0)
                    .count()
                    .get_result::<i64>(&mut *conn)
                    .await;
                found.map(|_| ()).map_err(|error| error.to_string())
            })
        });
        let system = balanced.clone();
        self.repeat(&balanced.writes, move || {
            let (pool, system) = (primary.clone(), system.clone());
            within(async move {
                let mut conn = pool.get().await.map_err(pool_class)?;
                let number = next_number();
                let row = (ledger::id.eq(number), ledger::by.eq("balanced"));
                let written = diesel::insert_into(ledger::table)
                    .values(row)
                    .execute(&mut *conn);
                written.await.map_err(|error| error.to_string())?;
                system.ledger.lock().unwrap().acknowledged.push(number);
                Ok(())
            })
        });
    }
}

impl System {
    /// Notes what became of a row.
    fn judged<T>(&self, number: i64, result: QueryResult<T>) -> Result<(), String> {
        let mut ledger = self.ledger.lock().unwrap();
        match result {
            Ok(_) => {
                ledger.acknowledged.push(number);
                Ok(())
            }
            Err(error) => {
                if error.outcome() != Outcome::Unknown {
                    ledger.refused.push(number);
                }
                Err(class(&error))
            }
        }
    }
}

/// Two rows that are there together or not at all.
async fn pair(conn: &mut ReplicatedConnection, number: i64) -> QueryResult<()> {
    for by in ["ours", "pair"] {
        let row = (ledger::id.eq(number), ledger::by.eq(by));
        diesel::insert_into(ledger::table)
            .values(row)
            .execute(conn)
            .await?;
    }
    Ok(())
}

fn class(error: &diesel::result::Error) -> String {
    let mut text = error.to_string();
    if let Some((at, _)) = text.char_indices().nth(60) {
        text.truncate(at);
    }
    format!("{:?}: {text}", error.outcome())
}

fn pool_class(error: bb8::RunError) -> String {
    match error {
        bb8::RunError::User(PoolError::ConnectionError(error)) => error.to_string(),
        other => other.to_string(),
    }
}

async fn within(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let done = tokio::time::timeout(IMPATIENT, work).await;
    done.unwrap_or_else(|_| Err(format!("no answer within {IMPATIENT:?}")))
}

type Held = Arc<tokio::sync::Mutex<Option<tokio_postgres::Client>>>;

/// Runs a query on the connection that is held, or on a new one. One that fails is not held on to.
async fn on_bare(config: &tokio_postgres::Config, held: &Held, query: &str) -> Result<(), String> {
    let mut held = held.lock().await;
    let client = held.take();
    let work = async {
        let client = match client {
            Some(client) => client,
            None => {
                let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                client
            }
        };
        client.batch_execute(query).await?;
        Ok(client)
    };
    match tokio::time::timeout(IMPATIENT, work).await {
        Ok(Ok(client)) => {
            *held = Some(client);
            Ok(())
        }
        Ok(Err(error)) => {
            let error: tokio_postgres::Error = error;
            Err(error.to_string())
        }
        Err(_) => Err(format!("no answer within {IMPATIENT:?}")),
    }
}
