//! Whether a majority of the nodes has answered lately, for reads that must not miss what others did.

use std::time::{Duration, Instant};

use super::ReplicatedConnection;
use crate::classify::{TransactionControl, Verdict};
use crate::cluster::{Member, Topology};
use crate::config::Consistency;
use crate::deadline;
use crate::error::Error;
use crate::route::NodeKind;

impl ReplicatedConnection {
    /// Waits until a majority of the nodes has answered since the moment that this statement must see, as long as it
    /// would wait for a primary. A process that is cut off with a replaced primary hears of fewer; what it reads
    /// there may be old.
    pub(super) async fn has_majority(&self, verdict: Verdict) -> Result<(), Error> {
        let Some(age) = self.may_be_as_old_as(verdict) else {
            return Ok(());
        };
        let now = Instant::now();
        // If that moment is before this machine was started, all answers are newer.
        let Some(since) = now.checked_sub(age) else {
            return Ok(());
        };
        let topology = self.cluster.topology();
        if is_confirmed(&topology, since) {
            return Ok(());
        }
        let asked = topology.members.iter();
        let _asked: Vec<_> = asked.map(|member| member.reports.want()).collect();
        let look = || is_confirmed(&self.cluster.topology(), since).then_some(());
        let deadline = deadline::after(
            now,
            self.cluster
                .outage_wait()
                .max(self.cluster.config.health.timeout),
        );
        if self.cluster.with_news(deadline, look).await.is_some() {
            return Ok(());
        }
        let topology = self.cluster.topology();
        if topology.members.is_empty() {
            return Err(Error::Closed);
        }
        Err(Error::NoQuorum {
            answer: answers_since(&topology, since).count(),
            needed: topology.majority(),
            nodes: topology.describe(),
        })
    }

    /// How old the data may be, if the level limits that and the statement is in no transaction.
    fn may_be_as_old_as(&self, verdict: Verdict) -> Option<Duration> {
        let session = self.session();
        let begins = !matches!(
            verdict.control,
            Some(TransactionControl::End | TransactionControl::Within)
        );
        let free =
            begins && session.transaction.is_none() && session.forced != Some(NodeKind::Replica);
        match self.level_of(&session) {
            Consistency::Strong if free => Some(Duration::ZERO),
            Consistency::BoundedStaleness(age) if free => Some(age),
            _ => None,
        }
    }
}

/// Whether a majority was asked since then, and none of these is on a newer timeline.
fn is_confirmed(topology: &Topology, since: Instant) -> bool {
    let known = |member: &Member| {
        let position = member.reports.position();
        position.is_none_or(|position| position.timeline <= topology.timeline())
    };
    let mut answers = answers_since(topology, since);
    answers.clone().count() >= topology.majority() && answers.all(known)
}

fn answers_since(topology: &Topology, since: Instant) -> impl Iterator<Item = &Member> + Clone {
    let answered = move |member: &&Member| member.reports.asked_since(since);
    topology.servers().filter(answered)
}
