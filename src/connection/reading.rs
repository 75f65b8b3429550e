//! Finds the node for a read: one that shows what the session must see, after a short wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ReplicatedConnection;
use super::proof::{GENTLY, Proof};
use super::session_state::HeldBackFrom;
use super::tagged::Tagged;
use super::to_show::ToShow;
use crate::cluster::{Member, Purpose, Topology};
use crate::config::WriteScope;
use crate::consistency::ReadRequirement;
use crate::deadline;
use crate::error::Error;
use crate::metrics::Route as Went;
use crate::node::{Lane, Lease, Node};
use crate::route::{NodeKind, RouteReason};

/// Up to this many connections of the pool in use count as few.
const FEW: usize = 3;

/// For how long a read without a primary leaves a replica alone that has failed it.
const AGAIN: Duration = Duration::from_millis(50);

/// A read that looks for a node.
#[derive(Debug)]
pub(super) struct Reading<'a> {
    /// Why it goes to a replica, if one can serve it.
    pub(super) reason: RouteReason,
    /// Nodes that have failed it.
    pub(super) avoid: &'a mut Vec<Arc<Node>>,
    pub(super) requirement: &'a mut ReadRequirement,
    pub(super) started: Instant,
    /// Replicas with a tag are to serve it.
    pub(super) tagged: Option<&'a Tagged>,
    /// A replica was found that did not show in time what it must see.
    pub(super) behind: bool,
}

/// What a read gets that wants a replica.
pub(super) enum Chosen {
    Replica(Arc<Lease>),
    /// A replica may serve the read, but none is known to have the required position yet.
    Unmet,
    /// The primary has to serve it. `fallback`: only because no replica can.
    Primary {
        reason: RouteReason,
        fallback: bool,
    },
}

/// What is found for such a read without a wait.
pub(super) enum Found {
    Chosen(Chosen),
    /// All connections of this replica are in use, and no other has a free one.
    Busy(Arc<Node>),
}

/// The connection that serves a statement, and why that one.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) lease: Arc<Lease>,
    pub(super) kind: NodeKind,
    pub(super) reason: RouteReason,
    /// How long it waited for a replica to catch up.
    pub(super) waited: Duration,
    /// What the server has to show, asked together with the statement.
    pub(super) to_show: Option<Box<ToShow>>,
    /// What the pool's routing has kept from a replica.
    pub(super) held_back: Option<Box<HeldBackFrom>>,
}

impl Served {
    pub(super) fn by_primary(lease: Arc<Lease>, reason: RouteReason) -> Self {
        Self {
            lease,
            kind: NodeKind::Primary,
            reason,
            waited: Duration::ZERO,
            to_show: None,
            held_back: None,
        }
    }

    pub(super) fn by_replica(lease: Arc<Lease>, reason: RouteReason) -> Self {
        Self {
            kind: NodeKind::Replica,
            ..Self::by_primary(lease, reason)
        }
    }

    pub(super) fn went(&self) -> Went {
        let held_back = self.held_back.as_ref();
        Went {
            kind: self.kind,
            reason: self.reason,
            held_back: held_back.map(|from| from.replica.is_some()),
        }
    }
}

impl Reading<'_> {
    /// Whether the node may be tried at all.
    pub(super) fn may_try(&self, member: &Member) -> bool {
        let failed = |node: &Arc<Node>| Arc::ptr_eq(node, &member.node);
        !self.avoid.iter().any(failed)
    }

    /// Whether the replica may serve it, now or when it has caught up. All but `Eventual` reads need a replica whose
    /// log is the primary's.
    pub(super) fn may_use(&self, member: &Member) -> bool {
        self.is_open_for(member)
            && (member.is_trusted() || self.requirement.accepts_untrusted())
            && self.may_try(member)
    }

    /// Whether the member is a replica that serves reads like this one. A node that is read by its tag alone serves who
    /// asks for it.
    fn is_open_for(&self, member: &Member) -> bool {
        match self.tagged {
            None => member.is_usable_replica(),
            Some(tagged) => {
                member.is_serving_replica() && member.node.pool_of(tagged.lane()).is_some()
            }
        }
    }

    /// Whose connections it takes.
    pub(super) fn lane(&self) -> Lane {
        self.tagged.map_or_else(Lane::default, Tagged::lane)
    }

    /// Whether it may choose among the replicas: one that it asks for is known, or all have been asked.
    pub(super) fn knows_enough(&self, topology: &Topology) -> bool {
        match self.tagged {
            None => topology.knows_replicas(),
            Some(_) => topology.is_settled() || self.replicas(topology).any(|it| self.may_use(it)),
        }
    }

    /// The replicas that serve reads like this one.
    pub(super) fn replicas<'t>(&self, topology: &'t Topology) -> impl Iterator<Item = &'t Member> {
        topology
            .members
            .iter()
            .filter(|member| self.is_open_for(member))
    }
}

impl ReplicatedConnection {
    /// The connection for a read: a replica's, or the primary's. `found` is what was there at once.
    pub(super) async fn reading_lease(
        &self,
        mut reading: Reading<'_>,
        mut found: Option<Found>,
    ) -> Result<Served, Error> {
        let mut waited = Duration::ZERO;
        if let Some((began, took)) = reading.requirement.waited() {
            (reading.started, waited) = (began, took);
        }
        loop {
            if reading.requirement.covers_others() {
                self.refresh(reading.requirement);
            }
            let mut chosen = self.replica_lease(&mut reading, found.take()).await?;
            if let Chosen::Unmet = chosen {
                match self.unmet(&mut reading, &mut waited).await {
                    Some(Ok(served)) => return Ok(Served { waited, ..served }),
                    Some(Err(primary)) => chosen = primary,
                    None => continue,
                }
            }
            let (why, fallback) = match chosen {
                Chosen::Replica(lease) => {
                    match self.proven(lease, &mut reading, &mut waited).await {
                        Some(served) => return Ok(served),
                        None => continue,
                    }
                }
                Chosen::Primary { reason: why, .. } if reading.reason == RouteReason::Forced => {
                    let nodes = self.cluster.topology().describe();
                    if let Some(tagged) = reading.tagged {
                        let behind = reading.behind;
                        return Err(tagged.unserved(why, behind, waited, nodes));
                    }
                    return Err(match why {
                        RouteReason::ReplicaBusy => Error::ReplicasBusy { nodes },
                        _ => Error::NoReplica { nodes },
                    });
                }
                Chosen::Primary { reason, fallback } => (reason, fallback),
                // It became `Primary` above.
                Chosen::Unmet => (RouteReason::NoUsableReplica, true),
            };
            let lease = Box::pin(self.primary_unless_replaced(fallback, &mut reading)).await;
            let Some(lease) = lease else {
                continue;
            };
            match lease {
                Ok(lease) => {
                    let served = Served::by_primary(lease, why);
                    return Ok(Served { waited, ..served });
                }
                Err(Error::Connect(error)) if why == RouteReason::PrimaryWeight => {
                    // It was one of several that could serve. The others still can.
                    let topology = self.cluster.topology();
                    let primary = topology.named(&error.node);
                    let node = Arc::clone(&primary.ok_or(Error::Connect(error))?.node);
                    reading.avoid.push(node);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Who serves the read while no replica is known to have what it must see: somebody now, or the primary after a wait.
    /// `None` if a replica has it by now.
    async fn unmet(
        &self,
        reading: &mut Reading<'_>,
        waited: &mut Duration,
    ) -> Option<Result<Served, Chosen>> {
        if let Some(served) = self.meanwhile(reading).await {
            return Some(Ok(served));
        }
        let from = Instant::now();
        if let Some(served) = Box::pin(self.waits_on_server(reading)).await {
            return Some(Ok(served));
        }
        let caught_up = self.caught_up(reading).await;
        *waited += from.elapsed();
        let reason = reading.requirement.otherwise();
        let primary = Chosen::Primary {
            reason,
            // A write that no replica has yet does not count as fallback. A replica that is too old does.
            fallback: reason == RouteReason::TooOld,
        };
        (!caught_up).then_some(Err(primary))
    }

    /// The primary's connection. `None` as soon as the primary is away and a replica can serve the read.
    async fn primary_unless_replaced(
        &self,
        fallback: bool,
        reading: &mut Reading<'_>,
    ) -> Option<Result<Arc<Lease>, Error>> {
        let started = reading.started;
        tokio::select! {
            biased;
            lease = self.primary_lease_since(started, fallback, Purpose::Read) => Some(lease),
            () = self.replaces_primary(reading) => None,
        }
    }

    /// Returns as soon as a replica can serve the read while the primary is away.
    async fn replaces_primary(&self, reading: &mut Reading<'_>) {
        for limit in [AGAIN, Duration::MAX] {
            let end = deadline::after(Instant::now(), limit);
            let look = || self.is_replaced(reading).then_some(());
            if self.cluster.with_news(end, look).await.is_some() {
                return;
            }
            // There is nobody else.
            reading.avoid.clear();
        }
        std::future::pending().await
    }

    fn is_replaced(&self, reading: &mut Reading<'_>) -> bool {
        let topology = self.cluster.topology();
        if topology.primary_is_up() {
            return false;
        }
        self.refresh(reading.requirement);
        let mut replicas = reading.replicas(&topology);
        replicas.any(|member| self.qualifies(member, reading))
    }

    /// Puts positions into a requirement that have become known. While the primary is away, nobody has more of other
    /// sessions' writes than the standbys.
    pub(super) fn refresh(&self, requirement: &mut ReadRequirement) {
        let write_log = &self.cluster.write_log;
        requirement.refresh(write_log);
        if requirement.covers_others() {
            if let Some(position) = self.cluster.topology().left(write_log) {
                requirement.is_left_with(position);
            }
        }
    }

    /// The primary's connection for a statement that the pool's routing keeps there.
    pub(super) async fn held_back_lease(
        &self,
        reading: Reading<'_>,
        purpose: Purpose,
    ) -> Result<Served, Error> {
        let held_back = Box::new(self.held_back_from(&reading));
        let lease = self.primary_lease(false, purpose).await?;
        Ok(Served {
            held_back: Some(held_back),
            ..Served::by_primary(lease, RouteReason::HeldBack)
        })
    }

    /// Where a read would go now.
    fn held_back_from(&self, reading: &Reading<'_>) -> HeldBackFrom {
        let topology = self.cluster.topology();
        let (replica, reason) = match self.pick(&topology, reading) {
            Some(member) if member.kind() == Some(NodeKind::Primary) => {
                (None, RouteReason::PrimaryWeight)
            }
            Some(member) => (Some(Arc::clone(&member.node)), reading.reason),
            None if reading
                .replicas(&topology)
                .any(|member| reading.may_use(member)) =>
            {
                (None, reading.requirement.otherwise())
            }
            None => (None, RouteReason::NoUsableReplica),
        };
        HeldBackFrom { replica, reason }
    }

    /// The replica's connection, if its server shows what the read must see, or may.
    async fn proven(
        &self,
        lease: Arc<Lease>,
        reading: &mut Reading<'_>,
        waited: &mut Duration,
    ) -> Option<Served> {
        let patience = self.patience(reading);
        let (proof, took) = self
            .proof(&lease, (reading.requirement, reading.started), patience)
            .await;
        *waited += took;
        let to_show = match proof {
            Proof::Shown => None,
            Proof::ToShow(wanted) => Some(Box::new(ToShow::AtOnce(wanted))),
            Proof::Behind => {
                self.session().replica = None;
                reading.behind = true;
                reading.avoid.push(Arc::clone(lease.node()));
                return None;
            }
        };
        let served = Served::by_replica(lease, reading.reason);
        let waited = *waited;
        Some(Served {
            waited,
            to_show,
            ..served
        })
    }

    /// Lets the primary serve a read of what no replica is known to have yet, if the session holds its connection. It
    /// takes nothing from anybody, and the wait would keep that connection from others.
    ///
    /// With few connections in use nobody is asked for it: the monitors ask some milliseconds after a write anyway, and
    /// to ask at once would cost more than the reads. With many, one question serves many reads, and the primary has
    /// enough to do.
    pub(super) fn held_meanwhile(
        &self,
        topology: &Topology,
        reading: &Reading<'_>,
    ) -> Option<Served> {
        let reason = reading.requirement.otherwise();
        // A snapshot may be long, so it is worth a wait.
        if reason != RouteReason::OwnWrite || reading.reason != RouteReason::PlainSelect {
            return None;
        }
        let lease = self.held_primary(Purpose::Read).ok().flatten()?;
        if self.cluster.tracker.out() > FEW {
            self.ask_gently(topology, reading);
        }
        Some(Served::by_primary(lease, reason))
    }

    /// Lets the primary serve a read that waits for writes of other sessions. If all sessions see each other's
    /// writes, each write would make all reads wait. The primary serves no more of them than `fallback_share`, and
    /// only at once; the others wait for a replica.
    async fn meanwhile(&self, reading: &Reading<'_>) -> Option<Served> {
        // A snapshot may be long, so it is worth a wait.
        if !self.is_of_others(reading) || reading.reason != RouteReason::PlainSelect {
            return None;
        }
        let topology = self.cluster.topology();
        let primary = topology.primary().filter(|member| member.is_up())?;
        let room = self
            .cluster
            .at_once(|| Some(primary.node.pool.has_room()))?;
        if !room {
            return None;
        }
        self.ask_gently(&topology, reading);
        let lease = self.primary_lease(true, Purpose::Read).await.ok()?;
        Some(Served::by_primary(lease, reading.requirement.otherwise()))
    }

    /// Whether the read waits for writes of any session, and more than [`FEW`] connections are in use. With fewer a
    /// read just waits: the answer comes soon.
    pub(super) fn is_of_others(&self, reading: &Reading<'_>) -> bool {
        self.cluster.consistency().write_scope == WriteScope::Pool
            && reading.requirement.otherwise() == RouteReason::OwnWrite
            && self.cluster.tracker.out() > FEW
    }

    /// Asks the nodes whose answers can end the wait. With many waiting reads, asking for each of them would cost
    /// more than the reads.
    pub(super) fn ask_gently(&self, topology: &Topology, reading: &Reading<'_>) {
        for member in self.to_be_asked(topology, reading) {
            let of_primary = member.kind() == Some(NodeKind::Primary);
            if of_primary == reading.requirement.wants_primary() {
                member.reports.nudge_gently();
            }
        }
    }

    /// Whether a replica can serve the read now.
    pub(super) fn qualifies(&self, member: &Member, reading: &Reading<'_>) -> bool {
        if !reading.may_use(member) {
            return false;
        }
        let (requirement, write_log) = (&reading.requirement, &self.cluster.write_log);
        if !may_show(member, requirement) {
            return false;
        }
        if member.leads_to_several() {
            // Whether the server shows enough is asked over the connection.
            let timeline = self.cluster.topology().timeline();
            return requirement.accepts_untrusted()
                || requirement.is_assumed_of(&member.reports)
                || requirement.to_show(timeline, write_log).is_some();
        }
        requirement.is_met_by(&member.reports, write_log)
    }

    /// How long the read waits for a replica to catch up.
    pub(super) fn patience(&self, reading: &Reading<'_>) -> Duration {
        let tagged = reading.tagged.map(Tagged::wait);
        tagged.unwrap_or_else(|| self.cluster.consistency().wait)
    }

    /// Waits until a replica can serve the read. `false` if none could in time, or none will.
    async fn caught_up(&self, reading: &mut Reading<'_>) -> bool {
        let write_log = &self.cluster.write_log;
        let deadline = deadline::after(reading.started, self.patience(reading));
        if Instant::now() >= deadline || reading.requirement.only_primary().is_some() {
            return false;
        }
        let topology = self.cluster.topology();
        let gently = self.is_of_others(reading);
        let may_tell = |member: &Member| {
            let may_show = reading.may_use(member) && may_show(member, reading.requirement);
            may_show && !member.reports.is_mute()
        };
        if !reading.replicas(&topology).any(may_tell) {
            return false;
        }
        let _asked: Vec<_> = self
            .to_be_asked(&topology, reading)
            .filter(|_| !gently)
            .map(|member| member.reports.want())
            .collect();
        let started = Instant::now();
        let mut look = || {
            self.refresh(reading.requirement);
            let topology = self.cluster.topology();
            let mut replicas = reading.replicas(&topology);
            if replicas.any(|member| self.qualifies(member, reading)) {
                return Some(true);
            }
            if gently {
                self.ask_gently(&topology, reading);
            }
            let requirement = &reading.requirement;
            let in_vain = requirement.is_beyond_primary(write_log, started)
                || requirement.only_primary().is_some();
            in_vain.then_some(false)
        };
        self.look_until(deadline, gently, &mut look).await == Some(true)
    }

    /// Looks with each news until something is found. `gently`: now and then without news, too.
    pub(super) async fn look_until<T>(
        &self,
        deadline: Instant,
        gently: bool,
        look: &mut (impl FnMut() -> Option<T> + Send),
    ) -> Option<T> {
        if !gently {
            return self.cluster.with_news(deadline, look).await;
        }
        loop {
            let step = deadline::after(Instant::now(), GENTLY).min(deadline);
            let found = self.cluster.with_news(step, &mut *look).await;
            if found.is_some() || step == deadline {
                return found;
            }
        }
    }

    /// The nodes whose answers can end the wait: replicas that may serve, nodes that the session has read from, and
    /// the primary, which knows whether there is anything to wait for.
    fn to_be_asked<'t>(
        &self,
        topology: &'t Topology,
        reading: &Reading<'_>,
    ) -> impl Iterator<Item = &'t Member> {
        let asked = |member: &&Member| {
            let seen = |reports: &Arc<_>| Arc::ptr_eq(reports, &member.reports);
            member.kind() == Some(NodeKind::Primary)
                || reading.may_use(member)
                || reading.requirement.wants_answers().any(seen)
        };
        let members: Vec<&Member> = topology.members.iter().filter(asked).collect();
        members.into_iter()
    }
}

/// Whether it can be known that a node shows what a read must see.
pub(super) fn may_show(member: &Member, requirement: &ReadRequirement) -> bool {
    requirement.needs_no_position() || member.node.pool.connector().vouches()
}
