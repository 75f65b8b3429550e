//! Takes server connections. Decides which pool may be waited for, and while holding what.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::SimpleAsyncConnection;

use super::ReplicatedConnection;
use super::choice::{StandIns, with_room};
use super::reading::{Chosen, Found, Reading};
use super::spans::{self, Awaited};
use crate::cluster::{Gate, Member, Purpose, Topology};
use crate::deadline;
use crate::error::{Error, SqlState};
use crate::node::{InLine, Lane, Lease, Node, NodeConnection, NodePool, Pooled, Whose, ask_role};
use crate::route::{NodeKind, RouteReason};
use crate::wire::ServerRole;

impl ReplicatedConnection {
    /// The primary's connection: the one that is held, or one from the pool. If there is no primary, waits for one,
    /// up to `failover_wait`.
    ///
    /// `fallback`: a replica should have served. Such uses get a share of the pool.
    pub(super) async fn primary_lease(
        &self,
        fallback: bool,
        purpose: Purpose,
    ) -> Result<Arc<Lease>, Error> {
        self.primary_lease_since(Instant::now(), fallback, purpose)
            .await
    }

    /// The same for a statement that has waited since `started`.
    pub(super) async fn primary_lease_since(
        &self,
        started: Instant,
        fallback: bool,
        purpose: Purpose,
    ) -> Result<Arc<Lease>, Error> {
        if let Some(lease) = self.held_primary(purpose)? {
            return Ok(lease);
        }
        let _one_at_a_time = self.checkout.lock().await;
        if let Some(lease) = self.held_primary(purpose)? {
            return Ok(lease);
        }
        // Never wait for one pool while holding a connection of another.
        let _awaiting = AwaitingPrimary::new(self);
        let deadline = deadline::after(started, self.cluster.outage_wait());
        let mut seen = None;
        loop {
            let topology = self.topology_with(Topology::knows_primary).await;
            let error = match self.primary_of(&topology, fallback, purpose).await {
                Ok(lease) => {
                    self.session().primary = Some(Arc::clone(&lease));
                    return Ok(lease);
                }
                Err(error) => error,
            };
            let epoch = topology.epoch.max(seen.unwrap_or_default());
            if !may_pass(&error) {
                return Err(error);
            }
            // A topology that changes with each attempt is no reason to go on.
            let over = seen.is_some() && Instant::now() >= deadline;
            if over || !self.has_changed(epoch, deadline, purpose).await {
                let topology = self.cluster.topology();
                return Err(waited_in_vain(error, &topology, started.elapsed()));
            }
            seen = Some(epoch);
        }
    }

    /// The same without a wait and without a question, if that is possible.
    pub(super) fn primary_at_once(&self, purpose: Purpose) -> Result<Option<Arc<Lease>>, Error> {
        let held = self.held_primary(purpose)?;
        if held.is_some() {
            return Ok(held);
        }
        let Ok(_one_at_a_time) = self.checkout.try_lock() else {
            return Ok(None);
        };
        let topology = self.cluster.topology();
        let primary = topology.primary_for(purpose);
        let Some(member) = primary.filter(|_| topology.knows_primary()) else {
            return Ok(None);
        };
        let Some(pooled) = self.checkout_now(&member.node.pool) else {
            return Ok(None);
        };
        let lease = Lease::new(pooled, Arc::clone(&member.node), None);
        if self.leads_elsewhere(member, &lease) || must_be_asked(&lease, purpose) {
            return Ok(None);
        }
        let lease = self.lend(lease);
        self.session().primary = Some(Arc::clone(&lease));
        self.give_replica_back();
        Ok(Some(lease))
    }

    /// A connection to the primary of this topology.
    async fn primary_of(
        &self,
        topology: &Topology,
        fallback: bool,
        purpose: Purpose,
    ) -> Result<Arc<Lease>, Error> {
        let Some(member) = topology.primary_for(purpose) else {
            return Err(no_primary(topology));
        };
        let node = Arc::clone(&member.node);
        let permit = if fallback {
            let permit = Arc::clone(&node.pool.fallback).try_acquire_owned();
            Some(permit.map_err(|_| Error::FallbackLimit {
                limit: node.pool.fallback_limit,
                nodes: topology.describe(),
            })?)
        } else {
            None
        };

        let mut pooled = match self.checkout_now(&node.pool) {
            Some(pooled) => pooled,
            None => {
                let rules = |topology: &Topology| {
                    let primary = topology.primary_for(purpose);
                    primary.is_some_and(|it| Arc::ptr_eq(&it.node, &node))
                };
                match Box::pin(self.checkout_waiting(&node, Lane::default(), rules)).await? {
                    Some(pooled) => pooled,
                    None => return Err(no_primary(&self.cluster.topology())),
                }
            }
        };
        if self.leads_elsewhere(member, &pooled) {
            return Err(no_primary(topology));
        }
        if !self.takes_writes(&mut pooled).await {
            self.cluster.suspect(&node, "it is a standby");
            return Err(no_primary(topology));
        }
        if purpose == Purpose::Write && pooled.wire.may_be_fenced() {
            let whose = self.whose_read_only(&pooled).await;
            if whose == Some(Whose::Servers) {
                self.cluster.fenced(&node).await?;
            }
        }
        // It may have been replaced while the connection was opened.
        let now = self.cluster.topology();
        let same = |it: &Member| Arc::ptr_eq(&it.node, &node);
        if !now.primary_for(purpose).is_some_and(same) {
            return Err(no_primary(&now));
        }
        Ok(self.lend(Lease::new(pooled, node, permit)))
    }

    /// Whether the server at the other end is no standby. A connection that was opened before a promotion hears of it
    /// with the next answer, and may have been set up for a standby.
    async fn takes_writes(&self, pooled: &mut Pooled) -> bool {
        if !is_of_standby(pooled) {
            return true;
        }
        let fitted = pooled.wire.is_fitted();
        let limit = self.cluster.config.health.timeout;
        let asking = async {
            let question = async {
                if fitted {
                    let reset = "RESET default_transaction_isolation";
                    pooled.pg_mut().batch_execute(reset).await?;
                }
                let wire = Arc::clone(&pooled.wire);
                ask_role(pooled.pg_mut(), &wire).await
            };
            tokio::time::timeout(limit, question).await
        };
        let answered = matches!(self.cluster.within(asking).await, Some(Ok(Ok(()))));
        pooled.wire.set_fitted(false);
        if !answered {
            pooled.wire.condemn();
        }
        answered && pooled.wire.role() != Some(ServerRole::Standby)
    }

    /// Waits for a newer topology than `epoch`, which may have a primary.
    async fn has_changed(&self, epoch: u64, deadline: Instant, purpose: Purpose) -> bool {
        let look = |topology: &Topology| {
            let primary = topology.primary_for(purpose);
            let new = topology.epoch > epoch;
            (new && primary.is_some_and(Member::is_up)).then_some(())
        };
        self.cluster.with_changes(deadline, look).await.is_some()
    }

    /// The primary's connection, if it is held and alive. A dead one is replaced, unless the caller counts on
    /// something that died with it.
    pub(super) fn held_primary(&self, purpose: Purpose) -> Result<Option<Arc<Lease>>, Error> {
        let mut session = self.session();
        session.forget_before(self.cluster.oids.generation());
        if let Some((node, cause)) = session.lost.clone() {
            return Err(Error::SessionLost { node, cause });
        }
        let Some(lease) = &session.primary else {
            return Ok(None);
        };
        // A transaction that has begun may end. What comes later waits before the gate.
        let bound = session.transaction.is_some() || session.pinned;
        if lease.wire.forgot_statements() && !bound {
            session.primary = None;
            return Ok(None);
        }
        let topology = self.cluster.topology();
        let member = topology.member(lease.node());
        let elsewhere = || member.is_some_and(|member| self.leads_elsewhere(member, lease));
        let passes = || topology.primary_for(purpose).is_some();
        // What died needs no word about its name.
        if lease.is_usable() && !elsewhere() && (bound || passes()) {
            return Ok(Some(Arc::clone(lease)));
        }
        let node = lease.node().name.clone();
        let cause = cause_of_death(lease);
        if session
            .transaction
            .as_ref()
            .is_some_and(|open| open.replica.is_none())
        {
            return Err(Error::TransactionLost { node, cause });
        }
        // Its place in the pool is free for others.
        session.primary = None;
        if session.pinned {
            session.lost = Some((node.clone(), cause.clone()));
            return Err(Error::SessionLost { node, cause });
        }
        Ok(None)
    }

    /// A connection to the primary that is not the session's, to ask what became of something.
    pub(super) async fn primary_apart(&self) -> Result<Arc<Lease>, Error> {
        match self.primary_lease(false, Purpose::State).await {
            Err(Error::SessionLost { .. }) => {
                let _one_at_a_time = self.checkout.lock().await;
                let _awaiting = AwaitingPrimary::new(self);
                let topology = self.cluster.topology();
                self.primary_of(&topology, false, Purpose::State).await
            }
            other => other,
        }
    }

    /// The connection of the open transaction.
    pub(super) fn transaction_lease(&self) -> Result<Option<Arc<Lease>>, Error> {
        let mut session = self.session();
        session.forget_before(self.cluster.oids.generation());
        let begun = session.transaction.as_ref().is_some_and(|open| open.begun);
        let Some(lease) = session.transaction_lease() else {
            return Ok(None);
        };
        if !begun && lease.is_abandoned() {
            // Its BEGIN was dropped on the way. What came now would never be committed.
            lease.condemn();
        }
        if lease.is_usable() {
            return Ok(Some(Arc::clone(lease)));
        }
        Err(Error::TransactionLost {
            node: lease.node().name.clone(),
            cause: cause_of_death(lease),
        })
    }

    /// A replica's connection for a read, or the reason why the primary has to serve it. `found` is what was there at
    /// once.
    ///
    /// Nodes that cannot be reached are added to those that have failed this read.
    pub(super) async fn replica_lease(
        &self,
        reading: &mut Reading<'_>,
        mut found: Option<Found>,
    ) -> Result<Chosen, Error> {
        let mut which = StandIns::Willing;
        loop {
            let topology = self
                .topology_with(|topology| reading.knows_enough(topology))
                .await;
            let found = found.take();
            let at_once = || self.found_at_once(&topology, reading, which);
            let first = match found.unwrap_or_else(at_once) {
                Found::Chosen(chosen) => return Ok(chosen),
                Found::Busy(first) => first,
            };
            if primary_is_further(&topology, &first) {
                self.give_primary_back();
            }
            if self.holds_or_awaits_primary() {
                // Waiting here could deadlock with those who hold replicas and wait for the primary.
                return Ok(Chosen::Primary {
                    reason: RouteReason::ReplicaBusy,
                    fallback: false,
                });
            }
            let others = self.others(&topology, &first, reading);
            let node = with_room(&topology, first, others.which(which), reading);
            let patience = match which {
                StandIns::Willing => others.patience(reading.started),
                StandIns::Any => None,
            };
            drop(others);
            let serves = |topology: &Topology| {
                let may = |it: &Member| {
                    reading.may_use(it) && !self.is_nearer_there(topology, it, reading)
                };
                topology.member(&node).is_some_and(may)
            };
            let waiting = Box::pin(self.checkout_waiting(&node, reading.lane(), serves));
            let Some(waited) = self.within_patience(waiting, patience).await else {
                which = StandIns::Any;
                continue;
            };
            match waited {
                Ok(None) => {}
                Ok(Some(pooled)) => {
                    let lease = self.lend(Lease::new(pooled, node, None));
                    return Ok(Chosen::Replica(self.keep_replica(lease, reading)));
                }
                Err(Error::Connect(_)) => reading.avoid.push(node),
                // There are others, which were not to be taken at once.
                Err(Error::PoolExhausted { .. }) if patience.is_some() => which = StandIns::Any,
                Err(other) => return Err(other),
            }
        }
    }

    /// What `waiting` brings. `None` if there is a limit, and it has taken longer.
    async fn within_patience<T>(
        &self,
        waiting: impl Future<Output = T>,
        patience: Option<Duration>,
    ) -> Option<T> {
        let Some(patience) = patience else {
            return Some(waiting.await);
        };
        let limited = async { tokio::time::timeout(patience, waiting).await.ok() };
        self.cluster.within(limited).await.flatten()
    }

    /// The same without a wait.
    pub(super) fn replica_at_once(&self, topology: &Topology, reading: &Reading<'_>) -> Found {
        self.found_at_once(topology, reading, StandIns::Willing)
    }

    fn found_at_once(&self, topology: &Topology, reading: &Reading<'_>, which: StandIns) -> Found {
        if reading.tagged.is_some() {
            // A report may be long, and what a session keeps is of everybody's connections.
            self.give_replica_back();
            self.give_primary_back();
        } else if let Some(lease) = self.sticky_replica(topology, reading) {
            return Found::Chosen(Chosen::Replica(lease));
        }
        let Some(first) = self.pick(topology, reading) else {
            let unmet = |member: &Member| reading.may_use(member);
            if reading.replicas(topology).any(unmet) {
                return Found::Chosen(Chosen::Unmet);
            }
            let reason = if reading.avoid.is_empty() {
                RouteReason::NoUsableReplica
            } else {
                RouteReason::ReplicaFailed
            };
            let takes_reads = |member: &Member| member.weight() > 0;
            let fallback = topology.has_replicas() && !topology.primary().is_some_and(takes_reads);
            return Found::Chosen(Chosen::Primary { reason, fallback });
        };
        if first.kind() == Some(NodeKind::Primary) {
            return Found::Chosen(Chosen::Primary {
                reason: RouteReason::PrimaryWeight,
                fallback: false,
            });
        }
        match self.free_replica(topology, &first.node, reading, which) {
            Some(lease) => Found::Chosen(Chosen::Replica(self.keep_replica(lease, reading))),
            None => Found::Busy(Arc::clone(&first.node)),
        }
    }

    /// The replica of the last read, while it may serve. Statements that run at the same time get connections of
    /// their own if some are free, and share this one if none is.
    fn sticky_replica(&self, topology: &Topology, reading: &Reading<'_>) -> Option<Arc<Lease>> {
        let lease = {
            let mut session = self.session();
            session.forget_before(self.cluster.oids.generation());
            let Some(lease) = session.replica.clone() else {
                drop(session);
                return self.last_replica(topology, reading);
            };
            let usable = lease.is_usable()
                && !lease.is_abandoned()
                // What a function may have left there ends with its statement or transaction.
                && !lease.has_state()
                && topology
                    .member(lease.node())
                    .is_some_and(|member| self.may_stay(topology, member, reading));
            if !usable {
                session.replica = None;
                return None;
            }
            lease
        };
        if lease.is_free() {
            return Some(lease);
        }
        let another = self
            .pick(topology, reading)
            .map(|member| Arc::clone(&member.node))
            .filter(|node| {
                topology
                    .member(node)
                    .is_some_and(|member| reading.may_use(member))
            })
            .and_then(|first| self.free_replica(topology, &first, reading, StandIns::Willing));
        Some(another.unwrap_or(lease))
    }

    /// The replica of the last read, of a connection that keeps none between its reads.
    fn last_replica(&self, topology: &Topology, reading: &Reading<'_>) -> Option<Arc<Lease>> {
        if !self.returns_to_its_replica() {
            return None;
        }
        let last = self.session().last_route.clone()?;
        let member = topology.member(&last.node)?;
        if last.kind != NodeKind::Replica || !self.may_stay(topology, member, reading) {
            return None;
        }
        let lease = self.lent_now(&last.node, reading)?;
        // It was not chosen for this read; see `Lease::is_to_be_timed`.
        lease.is_to_be_timed();
        Some(self.keep_replica(lease, reading))
    }

    /// A connection that is free at once, of `first` or of another replica that stands in for it.
    fn free_replica(
        &self,
        topology: &Topology,
        first: &Arc<Node>,
        reading: &Reading<'_>,
        which: StandIns,
    ) -> Option<Arc<Lease>> {
        self.lent_now(first, reading).or_else(|| {
            let others = self.others(topology, first, reading);
            let mut others = others.which(which);
            others.find_map(|member| self.lent_now(&member.node, reading))
        })
    }

    /// A connection of the node that is free at once.
    fn lent_now(&self, node: &Arc<Node>, reading: &Reading<'_>) -> Option<Arc<Lease>> {
        let pooled = self.checkout_now(node.pool_of(reading.lane())?)?;
        Some(self.lend(Lease::new(pooled, Arc::clone(node), None)))
    }

    /// Keeps the connection for the next read, unless it was asked for by a tag, or the session holds or waits for the
    /// primary's connection.
    pub(super) fn keep_replica(&self, lease: Arc<Lease>, reading: &Reading<'_>) -> Arc<Lease> {
        if reading.tagged.is_none() && !self.holds_or_awaits_primary() {
            self.session().replica = Some(Arc::clone(&lease));
        }
        lease
    }

    /// Comes after the session holds the primary's connection, or waits for it: then nobody keeps a replica's.
    fn give_replica_back(&self) {
        let replica = self.session().replica.take();
        // It goes back without the lock.
        drop(replica);
    }

    /// Gives back a connection of the primary's that nothing depends on and nobody uses: another statement may be about to
    /// begin a transaction there.
    fn give_primary_back(&self) {
        let primary = {
            let mut session = self.session();
            session.notice_transaction_end();
            let bound = session.transaction.is_some() || session.pinned;
            let is_idle = |lease: &mut Arc<Lease>| {
                Arc::strong_count(lease) == 1 && !lease.wire.in_transaction()
            };
            session.primary.take_if(|lease| !bound && is_idle(lease))
        };
        // It goes back without the lock.
        drop(primary);
    }

    fn holds_or_awaits_primary(&self) -> bool {
        let session = self.session();
        session.primary.is_some() || session.awaiting_primary > 0
    }

    /// The topology. Waits for it while nodes were not asked yet and `enough` does not hold.
    async fn topology_with(&self, enough: impl Fn(&Topology) -> bool) -> Arc<Topology> {
        let topology = self.cluster.topology();
        if enough(&topology) || topology.is_settled() {
            return topology;
        }
        self.cluster.settled().await
    }

    pub(super) fn checkout_now(&self, pool: &NodePool) -> Option<Pooled> {
        self.cluster.at_once(|| pool.try_checkout())
    }

    /// A connection of the node, as soon as one is free. `None` as soon as the node has another role.
    async fn checkout_waiting(
        &self,
        node: &Arc<Node>,
        lane: Lane,
        is_wanted: impl Fn(&Topology) -> bool,
    ) -> Result<Option<Pooled>, Error> {
        let Some(pool) = node.pool_of(lane) else {
            return Ok(None);
        };
        let span = spans::connect(node);
        let awaited = Awaited::new(&span);
        let mut place = pool.join();
        let soon = async {
            let given = place.soon().await?;
            if is_wanted(&self.cluster.topology()) {
                return Some(Some(given));
            }
            // Within the runtime, to who is next.
            pool.put_back(given);
            Some(None)
        };
        let pooled = match self.cluster.within(soon).await {
            Some(Some(pooled)) => Ok(pooled),
            // In a box: most waits end before.
            _ => Box::pin(self.checkout_later(place, is_wanted)).await,
        };
        awaited.ended();
        if let Err(error) = &pooled {
            spans::attempt_failed(&span, sqlstate_of(error));
        }
        pooled
    }

    /// The same for who is in line already, and looks for whatever else may end the wait.
    async fn checkout_later(
        &self,
        place: InLine<'_>,
        is_wanted: impl Fn(&Topology) -> bool,
    ) -> Result<Option<Pooled>, Error> {
        let unwanted = |topology: &Topology| (!is_wanted(topology)).then_some(());
        let ever = deadline::after(Instant::now(), Duration::MAX);
        let waiting = async {
            tokio::select! {
                biased;
                pooled = place.pooled() => pooled.map(Some),
                _ = self.cluster.with_changes(ever, unwanted) => Ok(None),
            }
        };
        let pooled = self.cluster.within(waiting).await;
        pooled.unwrap_or(Err(Error::Closed))
    }

    pub(super) fn lend(&self, mut lease: Lease) -> Arc<Lease> {
        if let Some(connection) = lease.connection_mut() {
            connection.set_cache_size(self.cache_size);
            connection.forget_before(self.cluster.oids.generation());
        }
        self.running.note(&lease);
        Arc::new(lease)
    }
}

/// Whether the primary is in a zone further away than the node. Then what it serves because it is at hand is no gain.
fn primary_is_further(topology: &Topology, node: &Arc<Node>) -> bool {
    let further = |primary: &Member| primary.node.distance > node.distance;
    topology.primary().is_some_and(further)
}

/// Whether the connection was set up for a standby, or has heard of one.
fn is_of_standby(connection: &NodeConnection) -> bool {
    connection.wire.role() == Some(ServerRole::Standby) || connection.wire.is_fitted()
}

/// Whether the server at the other end has to tell what it is before it serves.
fn must_be_asked(connection: &NodeConnection, purpose: Purpose) -> bool {
    is_of_standby(connection) || purpose == Purpose::Write && connection.wire.may_be_fenced()
}

/// Marks the session as waiting for the primary's connection. The replica's connection goes back first.
struct AwaitingPrimary<'a>(&'a ReplicatedConnection);

impl<'a> AwaitingPrimary<'a> {
    fn new(connection: &'a ReplicatedConnection) -> Self {
        connection.session().awaiting_primary += 1;
        connection.give_replica_back();
        Self(connection)
    }
}

impl Drop for AwaitingPrimary<'_> {
    fn drop(&mut self) {
        self.0.session().awaiting_primary -= 1;
    }
}

/// What the server said of the connection that could not be opened.
fn sqlstate_of(error: &Error) -> Option<SqlState> {
    match error {
        Error::Connect(error) => error.sqlstate,
        Error::PoolExhausted { connect, .. } => connect.as_ref()?.sqlstate,
        _ => None,
    }
}

/// Whether another primary may yet serve the statement.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::NoPrimary { .. } | Error::NoQuorum { .. } | Error::WritesPaused { .. } => true,
        Error::Connect(error) => error.is_outage(),
        _ => false,
    }
}

/// The error for a wait that found no primary. It tells how each node is, not only the last attempt.
fn waited_in_vain(error: Error, topology: &Topology, waited: Duration) -> Error {
    let error = match error {
        Error::Connect(_) if !topology.members.is_empty() => no_primary(topology),
        other => other,
    };
    match error {
        Error::NoPrimary { nodes, .. } => Error::NoPrimary { waited, nodes },
        Error::WritesPaused { .. } => Error::WritesPaused { waited },
        other => other,
    }
}

pub(super) fn no_primary(topology: &Topology) -> Error {
    if topology.members.is_empty() {
        return Error::Closed;
    }
    if let Gate::NoQuorum { answer, needed } = topology.gate {
        return Error::NoQuorum {
            answer,
            needed,
            nodes: topology.describe(),
        };
    }
    if topology.is_paused() && topology.primary().is_some_and(Member::is_up) {
        return Error::WritesPaused {
            waited: Duration::ZERO,
        };
    }
    let rivals = topology.rivals();
    if rivals.len() > 1 {
        Error::TwoPrimaries { nodes: rivals }
    } else {
        Error::NoPrimary {
            waited: Duration::ZERO,
            nodes: topology.describe(),
        }
    }
}

pub(super) fn cause_of_death(lease: &Lease) -> String {
    match lease.wire.death() {
        Some(death) => death.message,
        None => "the connection was closed".to_owned(),
    }
}
