//! What an application does, whichever way it goes.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::pooled_connection::bb8::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod, deadpool,
};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl};
use diesel_replicated::ReplicatedPool;
use tokio::sync::Mutex;

use crate::common::items;
use crate::ways::{FOR_EACH_SERVER, FOR_READS, TASKS, Way, Work};

diesel::table! {
    notes (id) {
        id -> Integer,
        value -> BigInt,
    }
}

/// `items` are read. Each task of each way has one of the `notes` to write to, so that nobody waits for a lock.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE items (id integer PRIMARY KEY, name text NOT NULL);
    INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 1000) n;
    CREATE TABLE notes (id integer PRIMARY KEY, value bigint NOT NULL) WITH (fillfactor = 10);
    INSERT INTO notes SELECT n, 0 FROM generate_series(0, 1000) n;
";

const ITEMS: u64 = 1000;

/// How many items a request reads after its own note.
const OTHERS: u64 = 8;

/// What an application holds.
pub(crate) enum Client {
    /// Each task opens its own at its first use.
    Held {
        url: String,
        connections: Vec<Mutex<Option<AsyncPgConnection>>>,
    },
    Bb8(Pool<AsyncPgConnection>),
    Deadpool(deadpool::Pool<AsyncPgConnection>),
    Router {
        primary: Pool<AsyncPgConnection>,
        replicas: Vec<Pool<AsyncPgConnection>>,
        next: AtomicUsize,
    },
    Ours(ReplicatedPool),
}

async fn bb8(url: &str, size: u32, ping: bool) -> Pool<AsyncPgConnection> {
    let mut config = ManagerConfig::default();
    if !ping {
        config.recycling_method = RecyclingMethod::Fast;
    }
    let manager = AsyncDieselConnectionManager::new_with_config(url, config);
    let pool = Pool::builder().max_size(size).test_on_check_out(ping);
    pool.build(manager).await.unwrap()
}

impl Client {
    /// Opens what a way takes to the addresses that it is to use.
    pub(crate) async fn open(way: Way, primary: &str, replicas: &[String]) -> Self {
        match way {
            Way::Held => Self::Held {
                url: primary.to_owned(),
                connections: (0..TASKS).map(|_| Mutex::new(None)).collect(),
            },
            Way::Deadpool => {
                let manager = AsyncDieselConnectionManager::new(primary);
                let size = usize::try_from(FOR_READS).unwrap();
                let pool = deadpool::Pool::builder(manager).max_size(size);
                Self::Deadpool(pool.build().unwrap())
            }
            Way::Bb8Ping => Self::Bb8(bb8(primary, FOR_READS, true).await),
            Way::Bb8 | Way::PgBouncer | Way::PgBouncerSession | Way::Odyssey | Way::Pgpool => {
                Self::Bb8(bb8(primary, FOR_READS, false).await)
            }
            Way::Router | Way::HaProxy => {
                let share = FOR_READS / u32::try_from(replicas.len()).unwrap();
                let mut pools = Vec::new();
                for replica in replicas {
                    pools.push(bb8(replica, share, false).await);
                }
                Self::Router {
                    primary: bb8(primary, FOR_EACH_SERVER, false).await,
                    replicas: pools,
                    next: AtomicUsize::new(0),
                }
            }
            Way::Ours => {
                let plain = |url: &str| format!("{url}?sslmode=disable");
                let builder = ReplicatedPool::builder().primary(plain(primary));
                let builder = replicas
                    .iter()
                    .fold(builder, |builder, url| builder.replica(plain(url)));
                Self::Ours(builder.build().await.unwrap())
            }
        }
    }

    /// Performs one operation. Returns whether what it has written was seen; what writes nothing misses nothing.
    pub(crate) async fn perform(&self, work: Work, errand: Errand) -> bool {
        match self {
            Self::Held { url, connections } => {
                let mut held = connections[errand.task].lock().await;
                if held.is_none() {
                    *held = Some(AsyncPgConnection::establish(url).await.unwrap());
                }
                errand.all(held.as_mut().unwrap(), work).await
            }
            Self::Bb8(pool) => errand.all(&mut *pool.get().await.unwrap(), work).await,
            Self::Deadpool(pool) => errand.all(&mut *pool.get().await.unwrap(), work).await,
            Self::Ours(pool) => errand.all(&mut pool.get().await.unwrap(), work).await,
            Self::Router {
                primary,
                replicas,
                next,
            } => {
                if work == Work::Request {
                    errand.write(&mut *primary.get().await.unwrap()).await;
                }
                let turn = next.fetch_add(1, Ordering::Relaxed);
                let mut conn = replicas[turn % replicas.len()].get().await.unwrap();
                match work {
                    Work::Read => errand.read(&mut *conn).await,
                    Work::Request => errand.read_all(&mut *conn).await,
                }
            }
        }
    }
}

/// What distinguishes one operation from the next.
#[derive(Clone, Copy)]
pub(crate) struct Errand {
    pub(crate) task: usize,
    /// The note of the task.
    pub(crate) note: i32,
    /// Never twice the same.
    pub(crate) number: i64,
}

impl Errand {
    async fn all<C: AsyncConnection<Backend = Pg>>(self, conn: &mut C, work: Work) -> bool {
        match work {
            Work::Read => self.read(conn).await,
            Work::Request => {
                self.write(conn).await;
                self.read_all(conn).await
            }
        }
    }

    async fn read<C: AsyncConnection<Backend = Pg>>(self, conn: &mut C) -> bool {
        item(conn, self.number.unsigned_abs()).await;
        true
    }

    async fn write<C: AsyncConnection<Backend = Pg>>(self, conn: &mut C) {
        let note = notes::table.find(self.note);
        let update = diesel::update(note).set(notes::value.eq(self.number));
        assert_eq!(update.execute(conn).await.unwrap(), 1);
    }

    /// Reads the note, and some items.
    async fn read_all<C: AsyncConnection<Backend = Pg>>(self, conn: &mut C) -> bool {
        let note = notes::table.find(self.note).select(notes::value);
        let seen: i64 = note.get_result(conn).await.unwrap();
        for other in 0..OTHERS {
            item(conn, self.number.unsigned_abs() + other).await;
        }
        seen == self.number
    }
}

async fn item<C: AsyncConnection<Backend = Pg>>(conn: &mut C, number: u64) {
    let key = i32::try_from(1 + number.wrapping_mul(37) % ITEMS).unwrap();
    let row: (i32, String) = items::table.find(key).get_result(conn).await.unwrap();
    black_box(row);
}
