//! Whether the server of a connection shows what a read must see.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ReplicatedConnection;
use crate::cluster::{Member, Topology};
use crate::consistency::ReadRequirement;
use crate::deadline;
use crate::node::{Known, Lease, NodeConnection, Trouble, Wanted};
use crate::position::{Lsn, Position};
use crate::route::NodeKind;

/// How often a waiting read repeats its question.
pub(super) const GENTLY: Duration = Duration::from_millis(1);

/// Whether the server of a connection shows what a read must see.
pub(super) enum Proof {
    Shown,
    /// It has to be asked, together with the read.
    ToShow(Wanted),
    Behind,
}

impl Proof {
    fn of(met: bool) -> Self {
        if met { Self::Shown } else { Self::Behind }
    }
}

impl ReplicatedConnection {
    /// Whether the connection leads to the run of the server that reported the position. If the last report is older
    /// than the connection, it waits for a newer one. Returns how long that took, too.
    pub(super) async fn proof(
        &self,
        lease: &Arc<Lease>,
        (requirement, began): (&mut ReadRequirement, Instant),
        patience: Duration,
    ) -> (Proof, Duration) {
        let topology = self.cluster.topology();
        let member = match self.proof_at_once(&topology, lease, requirement) {
            Ok(proof) => return (proof, Duration::ZERO),
            Err(member) => member,
        };
        let started = Instant::now();
        if member.leads_to_several() {
            let assumed = requirement.is_assumed_of(&member.reports);
            let proof = if requirement.accepts_untrusted()
                || assumed && Box::pin(self.refuses(lease, &topology)).await
            {
                Proof::of(Box::pin(self.is_of_cluster(lease, &topology)).await)
            } else {
                let end = deadline::after(began, patience);
                Box::pin(self.proof_over_itself(lease, &topology, (requirement, end))).await
            };
            return (proof, started.elapsed());
        }
        let write_log = &self.cluster.write_log;
        let _asked = member.reports.want();
        let deadline = deadline::after(started, patience);
        let look = || {
            self.refresh(requirement);
            let asked = member.reports.asked_since(lease.opened);
            asked.then(|| requirement.is_met_by(&member.reports, write_log))
        };
        let met = self.cluster.with_news(deadline, look).await;
        // The answer may have come over a new connection of the monitor.
        let topology = self.cluster.topology();
        let member = topology.member(lease.node());
        let elsewhere = member.is_none_or(|member| self.leads_elsewhere(member, lease));
        (
            Proof::of(met == Some(true) && !elsewhere),
            started.elapsed(),
        )
    }

    /// The same if it is known without a question, else whom to ask.
    pub(super) fn proof_at_once<'t>(
        &self,
        topology: &'t Topology,
        lease: &Arc<Lease>,
        requirement: &ReadRequirement,
    ) -> Result<Proof, &'t Member> {
        let Some(member) = topology.member(lease.node()) else {
            return Ok(Proof::of(requirement.accepts_untrusted()));
        };
        if self.leads_elsewhere(member, lease) {
            return Ok(Proof::Behind);
        }
        if member.leads_to_several() {
            return Err(member);
        }
        let assumed = requirement.is_assumed_of(&member.reports);
        if assumed || requirement.accepts_untrusted() || requirement.needs_no_position() {
            return Ok(Proof::Shown);
        }
        if !member.reports.asked_since(lease.opened) {
            return Err(member);
        }
        let met = requirement.is_met_by(&member.reports, &self.cluster.write_log);
        Ok(Proof::of(met))
    }

    /// Whether the server of this very connection does not tell its position.
    async fn refuses(&self, lease: &Arc<Lease>, topology: &Topology) -> bool {
        self.ask_once(lease, topology).await;
        lease.shows.is_refused()
    }

    async fn ask_once(&self, lease: &Arc<Lease>, topology: &Topology) {
        if lease.shows.is_foreign().is_some() {
            return;
        }
        let wanted = Wanted {
            cluster: topology.cluster(),
            position: Position::new(topology.timeline(), Lsn::default()),
        };
        let using = lease.enter();
        let asking = wanted.ask(lease.pg(), &lease.shows, None);
        let _ = self.cluster.within(asking).await;
        using.finish();
    }

    /// Whether the server of a connection belongs to the pool's cluster, as far as this role may know. It is asked once.
    async fn is_of_cluster(&self, lease: &Arc<Lease>, topology: &Topology) -> bool {
        if topology.cluster().is_some() {
            self.ask_once(lease, topology).await;
        }
        let foreign = lease.shows.is_foreign() == Some(true);
        if foreign {
            lease.wire.condemn();
        }
        !foreign
    }

    /// The same where the name leads to several servers: the server of this very connection is asked. It is asked
    /// together with the read if it is likely to show enough.
    async fn proof_over_itself(
        &self,
        lease: &Arc<Lease>,
        topology: &Topology,
        (requirement, deadline): (&mut ReadRequirement, Instant),
    ) -> Proof {
        let write_log = &self.cluster.write_log;
        loop {
            self.refresh(requirement);
            let position = requirement.to_show(topology.timeline(), write_log);
            let Some(position) = position else {
                return Proof::Behind;
            };
            let wanted = Wanted {
                cluster: topology.cluster(),
                position,
            };
            match wanted.is_known(&lease.shows) {
                Known::Shown => return Proof::Shown,
                Known::Perhaps => return Proof::ToShow(wanted),
                Known::Unknown => {}
            }
            let mark = self
                .cluster
                .mark(position.timeline, lease.shows.is_before(position.timeline));
            let asking = wanted.ask(lease.pg(), &lease.shows, mark.as_deref());
            let using = lease.enter();
            let shown = self.cluster.within(asking).await;
            using.finish();
            match shown {
                Some(Ok(true)) => return Proof::Shown,
                Some(Ok(false)) if Instant::now() < deadline => {
                    let pause = async { tokio::time::sleep(GENTLY).await };
                    self.cluster.within(pause).await;
                }
                Some(_) | None => return Proof::Behind,
            }
        }
    }

    /// Whether the connection leads to another server than the one that reports. Then it is not used any more, and a
    /// health check on a new connection decides which of them counts.
    pub(super) fn leads_elsewhere(&self, member: &Member, connection: &NodeConnection) -> bool {
        let Some(run) = connection
            .run
            .filter(|run| member.is_another_server(Some(*run)))
        else {
            return false;
        };
        let trouble = Trouble::LeadsElsewhere(run, connection.opened);
        if member.kind() == Some(NodeKind::Replica) && member.leads_to_several() {
            if member.led_to_several() {
                self.cluster.trouble(&member.node, trouble);
            }
            return false;
        }
        connection.wire.condemn();
        self.cluster.trouble(&member.node, trouble);
        true
    }
}
