//! Finding the node for a read: one that shows what the session must see, waited for a little.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::sql_types::{Bool, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::ReplicatedConnection;
use super::acquire::Chosen;
use crate::cluster::{Member, Topology};
use crate::config::Consistency;
use crate::error::Error;
use crate::guarantee::{Guarantee, Need, Progress, Transactions};
use crate::node::{Lease, Node};
use crate::route::{NodeKind, RouteReason};

/// Whether every transaction is done here that is done in a snapshot from elsewhere: none that is
/// newer than all that are done here, and none that is still under way.
const SHOWS: &str = "SELECT pg_catalog.pg_snapshot_xmax(there) <= pg_catalog.pg_snapshot_xmax(here) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_snapshot_xip(here) AS under_way (xid) \
    WHERE pg_catalog.pg_visible_in_snapshot(under_way.xid, there)) AS shows \
    FROM (SELECT $1::pg_snapshot AS there, pg_catalog.pg_current_snapshot() AS here) AS both_of";

/// How long at the least the primary has to show what a standby shows: as long as that takes to
/// confirm what it has received.
const PATIENCE: Duration = Duration::from_secs(1);

/// All transactions that anyone may have seen by now: those with a lower number than one that is
/// taken for this.
const ALL_UNTIL_NOW: &str = "SELECT pg_catalog.concat(next, ':', next, ':') AS snapshot \
    FROM pg_catalog.pg_current_xact_id() AS next";

#[derive(QueryableByName)]
struct All {
    #[diesel(sql_type = Text)]
    snapshot: String,
}

#[derive(QueryableByName)]
struct Shows {
    #[diesel(sql_type = Bool)]
    shows: bool,
}

/// A read on its way to a node.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    /// Why it goes to a replica, if one can serve it.
    pub(super) reason: RouteReason,
    /// Nodes that have failed it.
    pub(super) avoid: &'a mut Vec<Arc<Node>>,
    pub(super) need: &'a mut Need,
    pub(super) started: Instant,
}

/// Where a statement goes.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) lease: Arc<Lease>,
    pub(super) kind: NodeKind,
    pub(super) reason: RouteReason,
    /// How long it waited for a replica to catch up.
    pub(super) waited: Duration,
}

impl Served {
    pub(super) fn by_primary(lease: Arc<Lease>, reason: RouteReason) -> Self {
        Self {
            lease,
            kind: NodeKind::Primary,
            reason,
            waited: Duration::ZERO,
        }
    }

    pub(super) fn by_replica(lease: Arc<Lease>, reason: RouteReason) -> Self {
        Self {
            kind: NodeKind::Replica,
            ..Self::by_primary(lease, reason)
        }
    }
}

impl Reading<'_> {
    /// Whether the node may be tried at all.
    pub(super) fn may_try(&self, member: &Member) -> bool {
        let failed = |node: &Arc<Node>| Arc::ptr_eq(node, &member.node);
        !self.avoid.iter().any(failed)
    }
}

impl ReplicatedConnection {
    /// The connection for a read: a replica's, or the primary's where that is to serve it.
    pub(super) async fn reading_lease(&self, mut reading: Reading<'_>) -> Result<Served, Error> {
        let mut waited = Duration::ZERO;
        loop {
            let mut chosen = self.replica_lease(&mut reading).await?;
            if let Chosen::Unmet = chosen {
                let from = Instant::now();
                let caught_up = self.caught_up(&mut reading).await;
                waited += from.elapsed();
                if caught_up {
                    continue;
                }
                chosen = Chosen::Primary {
                    reason: reading.need.otherwise(),
                    fallback: true,
                };
            }
            let (why, fallback) = match chosen {
                Chosen::Replica(lease) => {
                    let (proven, took) = self.is_proven(&lease, &mut reading).await;
                    waited += took;
                    if !proven {
                        self.session().replica = None;
                        reading.avoid.push(Arc::clone(lease.node()));
                        continue;
                    }
                    let served = Served::by_replica(lease, reading.reason);
                    return Ok(Served { waited, ..served });
                }
                Chosen::Primary { reason: why, .. } if reading.reason == RouteReason::Forced => {
                    let nodes = self.cluster.topology().describe();
                    return Err(match why {
                        RouteReason::ReplicaBusy => Error::ReplicasBusy { nodes },
                        _ => Error::NoReplica { nodes },
                    });
                }
                Chosen::Primary { reason, fallback } => (reason, fallback),
                // The primary took its place above.
                Chosen::Unmet => (RouteReason::NoUsableReplica, true),
            };
            match self.primary_lease(fallback).await {
                Ok(lease) => {
                    let served = Served::by_primary(lease, why);
                    return Ok(Served { waited, ..served });
                }
                Err(Error::Connect(error)) if why == RouteReason::PrimaryWeight => {
                    // It was one of several that could serve; the others still can.
                    let topology = self.cluster.topology();
                    let primary = topology.named(&error.node);
                    let node = Arc::clone(&primary.ok_or(Error::Connect(error))?.node);
                    reading.avoid.push(node);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a replica can serve the read now.
    pub(super) fn qualifies(&self, member: &Member, reading: &Reading<'_>) -> bool {
        member.is_usable_replica()
            && reading.may_try(member)
            && reading
                .need
                .is_met_by(&member.progress, &self.cluster.board)
    }

    /// Whether the server at the other end of a new connection is the one that was asked where it
    /// is, and not one that was restarted since: it is asked once more. And how long that took.
    async fn is_proven(&self, lease: &Arc<Lease>, reading: &mut Reading<'_>) -> (bool, Duration) {
        let board = &self.cluster.board;
        if reading.need.is_nothing() {
            return (true, Duration::ZERO);
        }
        let topology = self.cluster.topology();
        let Some(member) = topology.member(lease.node()) else {
            return (false, Duration::ZERO);
        };
        let started = Instant::now();
        if member.progress.asked_since(lease.opened) {
            let met = reading.need.is_met_by(&member.progress, board);
            return (met, Duration::ZERO);
        }
        let _asked = member.progress.want();
        let deadline = started + self.cluster.consistency.wait;
        let look = || {
            reading.need.refresh(board);
            let asked = member.progress.asked_since(lease.opened);
            asked.then(|| reading.need.is_met_by(&member.progress, board))
        };
        let met = self.cluster.with_news(deadline, look).await;
        (met == Some(true), started.elapsed())
    }

    /// Waits until a replica can serve the read. `false` if none could in time, or none will.
    async fn caught_up(&self, reading: &mut Reading<'_>) -> bool {
        let board = &self.cluster.board;
        let deadline = reading.started + self.cluster.consistency.wait;
        if Instant::now() >= deadline {
            return false;
        }
        let topology = self.cluster.topology();
        let _asked: Vec<_> = self
            .to_be_asked(&topology, reading)
            .map(|member| member.progress.want())
            .collect();
        let started = Instant::now();
        let look = || {
            reading.need.refresh(board);
            let topology = self.cluster.topology();
            let mut replicas = topology.usable_replicas();
            if replicas.any(|member| self.qualifies(member, reading)) {
                return Some(true);
            }
            let in_vain = reading.need.is_beyond_primary(board, started);
            in_vain.then_some(false)
        };
        self.cluster.with_news(deadline, look).await == Some(true)
    }

    /// Waits until the primary shows what replicas have shown, where a read must never see less.
    ///
    /// A commit is sent to standbys before the primary itself shows it: by a moment, or for as long
    /// as it waits for a synchronous standby.
    pub(super) async fn primary_shows(&self, lease: &Arc<Lease>) -> QueryResult<()> {
        let config = &self.cluster.consistency;
        let (level, open, guarantee) = {
            let session = self.session();
            let level = self.level_of(&session);
            let open = session.transaction.is_some() || lease.wire.in_transaction();
            (level, open, Arc::clone(&session.guarantee))
        };
        let deadline = Instant::now() + config.wait.max(PATIENCE);
        match level {
            _ if open => Ok(()),
            Consistency::Causal => self.shows_seen(lease, &guarantee, deadline).await,
            Consistency::Strong if config.strong_reads_on_replicas => {
                self.shows_replicas(lease, deadline).await
            }
            _ => Ok(()),
        }
    }

    /// Waits until the primary shows what the session has seen on replicas.
    async fn shows_seen(
        &self,
        lease: &Arc<Lease>,
        guarantee: &Guarantee,
        deadline: Instant,
    ) -> QueryResult<()> {
        let board = &self.cluster.board;
        let topology = self.cluster.topology();
        let Some(member) = topology.member(lease.node()) else {
            return Ok(());
        };
        let primary = &member.progress;
        if guarantee.saw_nothing_but(primary) {
            return Ok(());
        }
        if !self.knows_seen(guarantee, primary, deadline).await {
            return Err(behind());
        }
        while let Some(shown) = guarantee.shown(board) {
            match shown {
                Transactions::Of(snapshot) => {
                    self.shows_in_time(lease, &snapshot, deadline).await?;
                    guarantee.is_shown_by_primary(&snapshot);
                }
                Transactions::AnyUntilNow => {
                    guarantee.shown_at_most(all_until_now(lease).await?.into());
                }
            }
        }
        Ok(())
    }

    /// Waits until the primary shows what anyone can have seen on replicas by now.
    async fn shows_replicas(&self, lease: &Arc<Lease>, deadline: Instant) -> QueryResult<()> {
        let now = Instant::now();
        let topology = self.cluster.topology();
        let replicas: Vec<_> = topology
            .usable_replicas()
            .map(|member| &member.progress)
            .collect();
        let _asked: Vec<_> = replicas.iter().map(|progress| progress.want()).collect();
        let look = || {
            // One that has gone is not asked any more.
            let open = |progress: &&&Arc<Progress>| progress.position().is_some();
            let mut asked = replicas.iter().filter(open);
            asked
                .all(|progress| progress.asked_since(now))
                .then_some(())
        };
        let asked = self.cluster.with_news(deadline, look).await;
        asked.ok_or_else(behind)?;
        for snapshot in replicas.iter().filter_map(|progress| progress.snapshot()) {
            self.shows_in_time(lease, &snapshot, deadline).await?;
        }
        Ok(())
    }

    async fn shows_in_time(
        &self,
        lease: &Arc<Lease>,
        snapshot: &str,
        deadline: Instant,
    ) -> QueryResult<()> {
        while !shows(lease, snapshot).await? {
            if Instant::now() > deadline {
                return Err(behind());
            }
            let pause = async { tokio::time::sleep(Duration::from_millis(1)).await };
            self.cluster.within(pause).await;
        }
        Ok(())
    }

    /// Waits until it is known what the session has seen. `false` if a node did not say in time.
    /// What it saw on the primary does not count.
    async fn knows_seen(
        &self,
        guarantee: &Guarantee,
        primary: &Arc<Progress>,
        deadline: Instant,
    ) -> bool {
        let board = &self.cluster.board;
        let elsewhere = |read: &Arc<Progress>| !Arc::ptr_eq(read, primary);
        let mut seen = guarantee.positions(board).reads;
        seen.retain(elsewhere);
        let _asked: Vec<_> = seen.iter().map(Progress::want).collect();
        let look = || {
            let reads = guarantee.positions(board).reads;
            (!reads.iter().any(elsewhere)).then_some(())
        };
        self.cluster.with_news(deadline, look).await.is_some()
    }

    /// The nodes whose answers can end the wait: replicas that may serve, those that the session
    /// has seen, and the primary, which knows whether there is anything to wait for.
    fn to_be_asked<'t>(
        &self,
        topology: &'t Topology,
        reading: &Reading<'_>,
    ) -> impl Iterator<Item = &'t Member> {
        let asked = |member: &&Member| {
            let seen = |progress: &Arc<_>| Arc::ptr_eq(progress, &member.progress);
            member.kind() == Some(NodeKind::Primary)
                || member.is_usable_replica() && reading.may_try(member)
                || reading.need.wants_answers().any(seen)
        };
        let members: Vec<&Member> = topology.members.iter().filter(asked).collect();
        members.into_iter()
    }
}

fn behind() -> diesel::result::Error {
    Error::PrimaryBehind.into()
}

async fn all_until_now(lease: &Arc<Lease>) -> QueryResult<String> {
    let using = lease.enter();
    let mut connection = lease.pg();
    let all = sql_query(ALL_UNTIL_NOW).get_result(&mut connection).await;
    using.finish();
    all.map(|all: All| all.snapshot)
}

async fn shows(lease: &Arc<Lease>, snapshot: &str) -> QueryResult<bool> {
    let using = lease.enter();
    let mut connection = lease.pg();
    let shows = sql_query(SHOWS).bind::<Text, _>(snapshot.to_owned());
    let shows = shows.get_result(&mut connection).await;
    using.finish();
    shows.map(|row: Shows| row.shows)
}
