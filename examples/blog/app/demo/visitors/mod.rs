//! Visitors that do the same on both sides: one writes a row and reads it back, another reads the newest rows.

mod audit;
mod sides;
mod tally;

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::pg::Pg;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::super::routes::App;
use super::faults::{Stage, lock};
use sides::{Ours, Plain, Side};

pub(super) use sides::Pools;
pub(super) use tally::{Figures, Tally};

/// On each side.
pub(super) const VISITORS: usize = 2;

/// How long one request may take, with all that it waits for.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// How long a visitor rests between two visits.
const REST: Duration = Duration::from_millis(250);

/// The same under load.
const SHORT_REST: Duration = Duration::from_millis(40);

/// After a failure it is at least this long.
const BREATH: Duration = Duration::from_millis(100);

/// How often it is looked which rows are lost.
const AUDIT: Duration = Duration::from_millis(500);

/// How many of the newest rows are read.
const ROWS: i64 = 20;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS visits (id BIGINT PRIMARY KEY)";

diesel::table! {
    /// A row for each visit that has written.
    visits (id) {
        id -> BigInt,
    }
}

diesel::define_sql_function! {
    /// The port of the server that runs the statement: who took a write, told by the server itself.
    fn inet_server_port() -> Nullable<Integer>;
}

/// What all visitors share.
#[derive(Debug)]
pub(super) struct Street {
    pub(super) ours: Tally,
    pub(super) plain: Tally,
    /// What the plain side was configured with.
    pub(super) pools: watch::Sender<Option<Arc<Pools>>>,
    /// Whether the visitors come thick and fast.
    pub(super) load: watch::Sender<bool>,
    next: AtomicI64,
    stage: Arc<Mutex<Stage>>,
    /// Where their table is.
    database: String,
}

impl Street {
    pub(super) fn new(stage: Arc<Mutex<Stage>>, database: &str) -> Self {
        Self {
            ours: Tally::default(),
            plain: Tally::default(),
            pools: watch::Sender::new(None),
            load: watch::Sender::new(false),
            next: AtomicI64::new(1),
            stage,
            database: database.to_owned(),
        }
    }

    pub(super) fn database(&self) -> &str {
        &self.database
    }

    /// Visitors come from now on, or no longer.
    pub(super) fn open(&self, open: bool) {
        self.ours.visited(open);
        self.plain.visited(open);
    }

    /// Looks which confirmed rows are lost.
    pub(super) async fn audit(&self) {
        for tally in [&self.ours, &self.plain] {
            audit::look(tally, &self.stage, &self.database).await;
        }
    }

    /// Visits until it is dropped.
    pub(super) async fn visit(&self, app: &App) {
        while make_table(app).await.is_err() {
            sleep(BREATH).await;
        }
        let plain = Plain::new(self.pools.subscribe());
        let ours = Ours::new(app);
        tokio::join!(
            join_all((0..VISITORS).map(|_| self.visitor(&ours, &self.ours))),
            join_all((0..VISITORS).map(|_| self.visitor(&plain, &self.plain))),
            async {
                loop {
                    sleep(AUDIT).await;
                    self.audit().await;
                }
            },
        );
    }

    async fn visitor(&self, side: &impl Side, tally: &Tally) {
        loop {
            let went_well = self.one_visit(side, tally).await.is_some();
            let rest = if *self.load.borrow() {
                SHORT_REST
            } else {
                REST
            };
            sleep(if went_well { rest } else { rest.max(BREATH) }).await;
        }
    }

    /// `None` if a request failed.
    async fn one_visit<S: Side>(&self, side: &S, tally: &Tally) -> Option<()> {
        let visitor = side.arrive();
        let row = self.next.fetch_add(1, Ordering::Relaxed);
        // Who is replaced only now may have taken the write before.
        let replaced = lock(&self.stage).replaced_ports();
        let written = request::<S, _>(tally, async {
            let mut conn = side.to_write(&visitor).await?;
            let port = add(&mut conn, row).await?;
            side.noted(&conn);
            Ok(port)
        });
        let written = written.await;
        if let Some(port) = written {
            let port = port.and_then(|port| u16::try_from(port).ok());
            tally.wrote(row, port.is_some_and(|port| replaced.contains(&port)));
            let own = request::<S, _>(tally, async {
                let mut conn = side.to_read(&visitor).await?;
                let found = find(&mut conn, row).await;
                side.noted(&conn);
                found
            });
            if let Some(found) = own.await {
                tally.looked(found);
            }
        }
        let other = side.arrive();
        let newest = request::<S, _>(tally, async {
            let mut conn = side.to_read(&other).await?;
            let rows = newest(&mut conn).await?;
            side.noted(&conn);
            Ok(rows)
        });
        newest.await?;
        written.map(drop)
    }
}

/// Does it within the limit, and counts it.
async fn request<S: Side, T>(
    tally: &Tally,
    work: impl Future<Output = QueryResult<T>> + Send,
) -> Option<T> {
    let started = Instant::now();
    let done = timeout(LIMIT, work).await;
    let took = started.elapsed();
    match done {
        Ok(Ok(value)) => {
            tally.answered(took);
            Some(value)
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a visitor's request failed");
            tally.failed(took, S::is_in_doubt(&error));
            None
        }
        Err(_) => {
            tally.failed(took, false);
            None
        }
    }
}

async fn make_table(app: &App) -> Result<(), ()> {
    let mut conn = app.pool.get().await.map_err(drop)?;
    conn.batch_execute(TABLE).await.map_err(drop)
}

async fn add<C>(conn: &mut C, row: i64) -> QueryResult<Option<i32>>
where
    C: AsyncConnection<Backend = Pg>,
{
    diesel::insert_into(visits::table)
        .values(visits::id.eq(row))
        .returning(inet_server_port())
        .get_result(conn)
        .await
}

/// Whether the row is there.
async fn find<C>(conn: &mut C, row: i64) -> QueryResult<bool>
where
    C: AsyncConnection<Backend = Pg>,
{
    let found: Option<i64> = visits::table
        .find(row)
        .select(visits::id)
        .first(conn)
        .await
        .optional()?;
    Ok(found.is_some())
}

async fn newest<C>(conn: &mut C) -> QueryResult<Vec<i64>>
where
    C: AsyncConnection<Backend = Pg>,
{
    visits::table
        .order(visits::id.desc())
        .limit(ROWS)
        .select(visits::id)
        .load(conn)
        .await
}
