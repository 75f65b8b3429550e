//! Who performs what.

use std::fmt;
use std::hint::black_box;
use std::str::FromStr;
use std::time::Duration;

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::pooled_connection::bb8::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_replicated::config::{Consistency, ConsistencyConfig, HealthConfig, WriteScope};
use diesel_replicated::{ReplicatedPool, SessionToken};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::runtime::Runtime;

use super::common::items;

/// How many operations come before those that are counted.
pub(crate) const WARM_UP: u64 = 60;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long it waits then. What a new pool does once, such as to load the catalog, must not be counted.
pub(crate) const SETTLED: Duration = Duration::from_secs(3);

/// Where the servers are.
pub(crate) struct Where {
    pub(crate) primary: String,
    /// With spaces between them.
    pub(crate) replicas: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Gets a connection and reads one row by its key.
    Read,
    /// The same for a session that has written before, and has to see that.
    ReadOwn,
    /// Gets a connection and reads two rows in one round trip.
    Pair,
    /// Gets a connection and writes one row.
    Write,
    /// Gets a connection and writes one row in a transaction.
    Transaction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// One connection of diesel-async, which is kept.
    Bare,
    Bb8,
    /// As diesel-async and bb8 are by default.
    Bb8Ping,
    /// Reads go to replicas.
    OurReplicas,
    OursOnPrimary,
    /// Reads go to replicas, and a recorder takes what is measured.
    OursRecorded,
    /// One connection of this pool, which is kept.
    OursHeld,
    /// diesel-async's connection, wrapped, in an r2d2 pool that does not test.
    SyncR2d2,
    /// This pool's synchronous connection in one.
    SyncOurs,
}

impl Contender {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Bare => "connection held, no pool",
            Self::Bb8 => "bb8, no ping",
            Self::Bb8Ping => "bb8",
            Self::OurReplicas => "this pool",
            Self::OursOnPrimary => "this pool, on the primary",
            Self::OursRecorded => "this pool, with a recorder",
            Self::OursHeld => "this pool, connection held",
            Self::SyncR2d2 => "r2d2",
            Self::SyncOurs => "r2d2 over this pool",
        }
    }
}

/// What one process performs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) operation: Operation,
    pub(crate) contender: Contender,
}

const OPERATIONS: [Operation; 5] = [
    Operation::Read,
    Operation::ReadOwn,
    Operation::Pair,
    Operation::Write,
    Operation::Transaction,
];

const CONTENDERS: [Contender; 9] = [
    Contender::Bare,
    Contender::Bb8,
    Contender::Bb8Ping,
    Contender::OurReplicas,
    Contender::OursOnPrimary,
    Contender::OursRecorded,
    Contender::OursHeld,
    Contender::SyncR2d2,
    Contender::SyncOurs,
];

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?}", self.operation, self.contender)
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = OPERATIONS.iter().flat_map(|operation| {
            CONTENDERS.iter().map(|contender| Self {
                operation: *operation,
                contender: *contender,
            })
        });
        let mut named = all.filter(|case| case.to_string() == text);
        named.next().ok_or_else(|| format!("no case `{text}`"))
    }
}

/// Reads one row.
macro_rules! read {
    ($conn:expr, $number:expr) => {
        async {
            let key = i32::try_from(1 + $number * 37 % 1000).unwrap();
            let row = items::table.find(key).get_result($conn).await;
            black_box::<(i32, String)>(row.unwrap());
        }
    };
}

/// Performs one operation.
macro_rules! once {
    ($conn:expr, $operation:expr, $number:expr) => {
        match $operation {
            Operation::Pair => {
                let (mut one, mut two) = (&$conn, &$conn);
                tokio::join!(read!(&mut one, $number), read!(&mut two, $number + 1));
            }
            operation => once(&mut $conn, operation, $number).await,
        }
    };
}

async fn once<C>(conn: &mut C, operation: Operation, number: u64)
where
    C: AsyncConnection<Backend = Pg>,
{
    match operation {
        Operation::Read | Operation::ReadOwn | Operation::Pair => read!(conn, number).await,
        Operation::Write => write(conn).await.unwrap(),
        Operation::Transaction => conn
            .transaction(async |conn| write(conn).await)
            .await
            .unwrap(),
    }
}

async fn write<C: AsyncConnection<Backend = Pg>>(conn: &mut C) -> QueryResult<()> {
    let row = items::name.eq("written");
    let insert = diesel::insert_into(items::table).values(row);
    insert.execute(conn).await.map(drop)
}

async fn bb8(url: &str, ping: bool) -> Pool<AsyncPgConnection> {
    let mut config = ManagerConfig::default();
    if !ping {
        config.recycling_method = RecyclingMethod::Fast;
    }
    let manager = AsyncDieselConnectionManager::new_with_config(url, config);
    let pool = Pool::builder().test_on_check_out(ping).build(manager);
    pool.await.unwrap()
}

async fn ours(place: &Where, operation: Operation) -> ReplicatedPool {
    let plain = |url: &str| format!("{url}?sslmode=disable");
    let primary = ReplicatedPool::builder().primary(plain(&place.primary));
    let replicas = place.replicas.split(' ').map(plain);
    let builder = replicas.fold(primary, |builder, replica| builder.replica(replica));
    // What watches the servers goes by the clock, which is slow here: it would be counted many times too often. So
    // nobody asks for the positions of writes; in fact that is one question in four milliseconds.
    let seldom = HealthConfig::default()
        .interval(Duration::from_secs(60))
        .timeout(Duration::from_secs(60));
    let builder = builder.health(seldom);
    let builder = match operation {
        Operation::Read | Operation::Pair => builder,
        // Time to tell where the write is, on this clock.
        Operation::ReadOwn => builder.consistency(ConsistencyConfig::default().wait(SETTLED)),
        Operation::Write | Operation::Transaction => builder.consistency(
            ConsistencyConfig::from(Consistency::Eventual).write_scope(WriteScope::Session),
        ),
    };
    builder.build().await.unwrap()
}

/// A recorder as applications have it.
fn record() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::set_global_recorder(recorder).unwrap();
}

/// The token of a session that has written, if the operation is of such a one.
async fn token(pool: &ReplicatedPool, operation: Operation) -> Option<SessionToken> {
    if operation != Operation::ReadOwn {
        return None;
    }
    let mut conn = pool.get().await.unwrap();
    write(&mut conn).await.unwrap();
    Some(conn.session_token().await)
}

/// The numbers of the operations. Before those that are counted it waits.
async fn counted(number: u64) -> u64 {
    if number == WARM_UP {
        tokio::time::sleep(SETTLED).await;
    }
    number
}

fn on_one_thread() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Every program has a timer. Without one tokio does less at each turn, and a bare connection has none.
fn spawn_timer() {
    tokio::spawn(tokio::time::sleep(DAY));
}

/// Performs so many operations after the first ones.
pub(crate) fn perform(case: Case, operations: u64, place: &Where) {
    if matches!(case.contender, Contender::SyncR2d2 | Contender::SyncOurs) {
        super::sync::perform(case.contender, operations, place);
        return;
    }
    let numbers = 0..WARM_UP + operations;
    let operation = case.operation;
    on_one_thread().block_on(async {
        spawn_timer();
        match case.contender {
            Contender::Bare => {
                let mut conn = AsyncPgConnection::establish(&place.primary).await.unwrap();
                for number in numbers {
                    once!(conn, operation, counted(number).await);
                }
            }
            Contender::Bb8 | Contender::Bb8Ping => {
                let pool = bb8(&place.primary, case.contender == Contender::Bb8Ping).await;
                for number in numbers {
                    let number = counted(number).await;
                    let mut conn = pool.get().await.unwrap();
                    once!(*conn, operation, number);
                }
            }
            Contender::OurReplicas | Contender::OursRecorded => {
                if case.contender == Contender::OursRecorded {
                    record();
                }
                let pool = ours(place, operation).await;
                let token = token(&pool, operation).await;
                for number in numbers {
                    let number = counted(number).await;
                    let conn = match &token {
                        Some(token) => pool.get_with(token).await,
                        None => pool.get().await,
                    };
                    let mut conn = conn.unwrap();
                    once!(conn, operation, number);
                }
            }
            Contender::OursOnPrimary => {
                let pool = ours(place, operation).await;
                for number in numbers {
                    let number = counted(number).await;
                    let mut conn = pool.get().await.unwrap();
                    let mut conn = conn.primary();
                    once!(*conn, operation, number);
                }
            }
            Contender::OursHeld => {
                let pool = ours(place, operation).await;
                let mut conn = pool.get().await.unwrap();
                for number in numbers {
                    once!(conn, operation, counted(number).await);
                }
            }
            // They have no runtime.
            Contender::SyncR2d2 | Contender::SyncOurs => {}
        }
    });
}
