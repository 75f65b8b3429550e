//! A standby, or a subscriber, can show a commit before the primary does. `Causal` and `Strong` reads on the primary wait until the
//! primary shows it too.
//!
//! The pool asks a standby which transactions are over there that still run on the primary: the primary must show
//! these. If no standby can tell, the primary tells which backends may be at a commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::ReplicatedConnection;
use crate::config::Consistency;
use crate::consistency::{Reports, SessionHistory, ShownUpTo, StandbySnapshot};
use crate::deadline;
use crate::error::Error;
use crate::node::Lease;
use crate::position::{Position, Survival};

/// How long the primary has to show what a standby shows, while the commit waits to be confirmed.
const PATIENCE: Duration = Duration::from_secs(1);

/// A statement that runs longer than this is not at its commit. From the log to being visible it takes microseconds,
/// unless it waits for a standby.
const COMMITTED: Duration = Duration::from_millis(100);

/// The transactions that still run here and that are over on the standby with this snapshot.
const UNDER_WAY: &str = "SELECT ARRAY(SELECT xid::text::bigint \
    FROM pg_catalog.pg_snapshot_xip(here) AS xid WHERE xid < pg_catalog.pg_snapshot_xmax(there) \
    UNION ALL SELECT pg_catalog.generate_series(pg_catalog.pg_snapshot_xmax(here)::text::bigint, \
    pg_catalog.pg_snapshot_xmax(there)::text::bigint - 1)) AS xids \
    FROM (SELECT $1::pg_snapshot AS there, pg_catalog.pg_current_snapshot() AS here) AS both_of";

const SHOWS: &str = "SELECT NOT EXISTS (SELECT FROM pg_catalog.unnest($1) AS xid WHERE NOT \
    pg_catalog.pg_visible_in_snapshot(xid::text::xid8, pg_catalog.pg_current_snapshot())) AS shows";

/// Transactions that may be at their commit: all of them, or those of a list. A transaction that waits for its client
/// is not.
const COMMITTING: &str = "SELECT pg_catalog.concat(pid, ':', backend_xid) AS who, \
    state IS NULL OR wait_event IS NOT DISTINCT FROM 'SyncRep' AS held \
    FROM pg_catalog.pg_stat_activity \
    WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() \
    AND datname = pg_catalog.current_database() \
    AND COALESCE(state, '') NOT LIKE 'idle in transaction%' \
    AND ($1 IS NULL OR pg_catalog.concat(pid, ':', backend_xid) = ANY ($1))";

#[derive(QueryableByName)]
struct UnderWay {
    #[diesel(sql_type = Array<BigInt>)]
    xids: Vec<i64>,
}

#[derive(QueryableByName)]
struct Shows {
    #[diesel(sql_type = Bool)]
    shows: bool,
}

#[derive(QueryableByName)]
struct Committing {
    #[diesel(sql_type = Text)]
    who: String,
    /// It waits for a standby, or may, as far as this role can see.
    #[diesel(sql_type = Bool)]
    held: bool,
}

impl ReplicatedConnection {
    /// Waits until the primary shows what replicas have shown, if a read must never see less.
    pub(super) async fn primary_shows(&self, lease: &Arc<Lease>) -> QueryResult<()> {
        let (level, open, history) = {
            let session = self.session();
            let level = self.level_of(&session);
            let open = session.transaction.is_some() || lease.wire.in_transaction();
            (level, open, Arc::clone(&session.history))
        };
        match level {
            _ if open => Ok(()),
            Consistency::Strong if self.cluster.consistency().strong_reads_on_replicas => {
                Box::pin(self.shows_replicas(lease)).await
            }
            Consistency::Causal | Consistency::Strong if !history.is_touched() => Ok(()),
            Consistency::Causal | Consistency::Strong => {
                Box::pin(self.shows_seen(lease, &history)).await
            }
            _ => Ok(()),
        }
    }

    /// Waits until the primary shows what the session has seen on replicas, or in other groups.
    async fn shows_seen(&self, lease: &Arc<Lease>, history: &SessionHistory) -> QueryResult<()> {
        let write_log = &self.cluster.write_log;
        let topology = self.cluster.topology();
        let Some(member) = topology.member(lease.node()) else {
            return Ok(());
        };
        let primary = &member.reports;
        if history.saw_nothing_but(primary) {
            return Ok(());
        }
        if !self.knows_seen(history, primary).await {
            return self.shows_anything(lease).await;
        }
        let Some(ahead) = history.shown_by_standbys(write_log) else {
            return Ok(());
        };
        let is_shown = match ahead {
            ShownUpTo::UpTo(seen) if write_log.is_shown(seen) => true,
            ShownUpTo::UpTo(seen) => match self.snapshot_that_covers(seen) {
                Some(snapshot) => self.shows_snapshot(lease, &snapshot).await?,
                None => false,
            },
            ShownUpTo::Anything => false,
        };
        if !is_shown {
            self.shows_anything(lease).await?;
            if let ShownUpTo::UpTo(seen) = ahead {
                write_log.shows(seen);
            }
        }
        history.is_shown_by_primary(ahead);
        Ok(())
    }

    /// Waits until the primary shows what anyone can have seen on replicas by now.
    async fn shows_replicas(&self, lease: &Arc<Lease>) -> QueryResult<()> {
        let now = Instant::now();
        let topology = self.cluster.topology();
        let replicas: Vec<_> = topology.replicas().map(|member| &member.reports).collect();
        let _asked: Vec<_> = replicas.iter().map(|reports| reports.want()).collect();
        let look = || {
            // A replica that has gone is not asked.
            let open = |reports: &&&Arc<Reports>| reports.position().is_some();
            let mut asked = replicas.iter().filter(open);
            let all = asked.all(|reports| reports.asked_since(now));
            all.then_some(())
        };
        let deadline = deadline::after(now, self.cluster.consistency().wait);
        let _ = self.cluster.with_news(deadline, look).await;
        let snapshots: Vec<_> = replicas
            .iter()
            .map(|reports| reports.snapshot().filter(|_| reports.asked_since(now)))
            .collect();
        // A restarted server cannot tell what it showed before.
        let mut known = snapshots.iter().all(|snapshot| {
            snapshot
                .as_ref()
                .is_some_and(StandbySnapshot::is_vouched_for)
        });
        for snapshot in snapshots.iter().flatten() {
            if self.cluster.write_log.standing(snapshot.position) == Survival::Kept {
                known &= self.shows_snapshot(lease, snapshot).await?;
            }
        }
        if !known {
            self.shows_anything(lease).await?;
            snapshots.iter().flatten().for_each(StandbySnapshot::vouch);
        }
        Ok(())
    }

    /// A standby that shows everything up to `seen`.
    fn snapshot_that_covers(&self, seen: Position) -> Option<StandbySnapshot> {
        let topology = self.cluster.topology();
        let mut snapshots = topology
            .replicas()
            .filter_map(|member| member.reports.snapshot());
        let covers = |snapshot: &StandbySnapshot| {
            let place = snapshot.position;
            self.cluster
                .write_log
                .with(|view| view.forks.covers(place, seen))
        };
        snapshots.find(covers)
    }

    /// Waits until the primary shows what a standby has shown. `false` if the standby has gone.
    async fn shows_snapshot(
        &self,
        lease: &Arc<Lease>,
        snapshot: &StandbySnapshot,
    ) -> QueryResult<bool> {
        if self.cluster.write_log.is_shown(snapshot.position) {
            return Ok(true);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut missing = under_way(lease, &snapshot.snapshot).await?;
        if !missing.is_empty() {
            let over = snapshot.over(missing);
            let over = async { tokio::time::timeout_at(deadline.into(), over).await };
            let Some(Ok(Some(over))) = self.cluster.within(over).await else {
                return Ok(false);
            };
            missing = over;
        }
        while !missing.is_empty() && !shows(lease, &missing).await? {
            if Instant::now() > deadline {
                return Err(Error::PrimaryBehind.into());
            }
            self.pause().await;
        }
        self.cluster.write_log.shows(snapshot.position);
        Ok(true)
    }

    /// Waits until the primary shows all that standbys can have shown by now.
    async fn shows_anything(&self, lease: &Arc<Lease>) -> QueryResult<()> {
        let begun = Instant::now();
        let mut left = committing(lease, None).await?;
        while !left.is_empty() {
            let held = left.iter().any(|transaction| transaction.held);
            if held && begun.elapsed() > PATIENCE {
                return Err(Error::PrimaryBehind.into());
            }
            if !held && begun.elapsed() > COMMITTED {
                break;
            }
            self.pause().await;
            let who = left.into_iter().map(|transaction| transaction.who);
            left = committing(lease, Some(who.collect())).await?;
        }
        Ok(())
    }

    async fn pause(&self) {
        let pause = async { tokio::time::sleep(Duration::from_millis(1)).await };
        self.cluster.within(pause).await;
    }

    /// Waits until the positions of all that the session has seen are known. `false` if a node did not answer in
    /// time. What it saw on the primary does not count.
    async fn knows_seen(&self, history: &SessionHistory, primary: &Arc<Reports>) -> bool {
        let write_log = &self.cluster.write_log;
        let elsewhere = |read: &Arc<Reports>| !Arc::ptr_eq(read, primary);
        let mut seen = history.positions(write_log).reads;
        seen.retain(elsewhere);
        let _asked: Vec<_> = seen.iter().map(Reports::want).collect();
        let look = || {
            let reads = history.positions(write_log).reads;
            (!reads.iter().any(elsewhere)).then_some(())
        };
        let deadline = deadline::after(Instant::now(), self.cluster.consistency().wait);
        self.cluster.with_news(deadline, look).await.is_some()
    }
}

async fn under_way(lease: &Arc<Lease>, snapshot: &str) -> QueryResult<Vec<i64>> {
    let using = lease.enter();
    let mut connection = lease.pg();
    let query = sql_query(UNDER_WAY).bind::<Text, _>(snapshot.to_owned());
    let row = query.get_result(&mut connection).await;
    using.finish();
    row.map(|row: UnderWay| row.xids)
}

async fn shows(lease: &Arc<Lease>, transactions: &[i64]) -> QueryResult<bool> {
    let using = lease.enter();
    let mut connection = lease.pg();
    let query = sql_query(SHOWS).bind::<Array<BigInt>, _>(transactions.to_vec());
    let row = query.get_result(&mut connection).await;
    using.finish();
    row.map(|row: Shows| row.shows)
}

async fn committing(lease: &Arc<Lease>, of: Option<Vec<String>>) -> QueryResult<Vec<Committing>> {
    let using = lease.enter();
    let mut connection = lease.pg();
    let query = sql_query(COMMITTING).bind::<Nullable<Array<Text>>, _>(of);
    let rows = query.load(&mut connection).await;
    using.finish();
    rows
}
