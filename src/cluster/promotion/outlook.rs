//! What stands in the way of an automatic promotion, found out before one is needed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::timeout;

use crate::cluster::member::Member;
use crate::cluster::topology::Topology;
use crate::error::{ConnectError, PromotionRefusal};
use crate::node::PromotionLock;
use crate::status::{Following, PromotionStatus};

/// The fewest nodes of which a majority is left when one is gone.
const ENOUGH: usize = 3;

/// How often it is looked at again while something stands in the way.
pub(super) const AGAIN: Duration = Duration::from_secs(10);

/// What is known of promotions by this process.
#[derive(Debug)]
pub(crate) struct Outlook {
    status: Arc<Mutex<PromotionStatus>>,
    /// The last refusal of this outage, without its numbers.
    gist: Mutex<String>,
}

impl Outlook {
    /// Keeps the status there.
    pub(in crate::cluster) fn in_place(status: &Arc<Mutex<PromotionStatus>>) -> Self {
        Self {
            status: Arc::clone(status),
            gist: Mutex::default(),
        }
    }

    /// The primary is gone.
    pub(in crate::cluster) fn begins(&self) {
        self.gist().clear();
    }

    /// No promotion was made, for these reasons. Returns whether that is news.
    pub(in crate::cluster) fn refused(&self, reasons: &[PromotionRefusal]) -> bool {
        let reason = told(reasons);
        let gist: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        self.failed(reason);
        std::mem::replace(&mut *self.gist(), gist.clone()) != gist
    }

    /// A promotion has failed.
    pub(in crate::cluster) fn failed(&self, reason: String) {
        self.status().last_refusal = Some((SystemTime::now(), reason).into());
    }

    /// Changes what is shown of the standbys that are to follow.
    pub(super) fn following(&self, change: impl FnOnce(&mut Vec<Following>)) {
        change(&mut self.status().following);
    }

    /// Finds out whether a replica could be promoted if the primary were gone now. Warns of each hindrance once.
    /// `true` if there is none.
    pub(in crate::cluster) async fn look_ahead(
        &self,
        topology: &Topology,
        database: &str,
        limit: Duration,
    ) -> bool {
        let nodes = topology.members.iter();
        let asked = nodes.filter(|member| member.is_of_use());
        let hindrances = asked.map(|member| hindrance(member, database, limit));
        let mut found = too_few(topology);
        found.extend(join_all(hindrances).await.into_iter().flatten());
        let before = std::mem::replace(&mut self.status().hindrances, found.clone());
        for reason in found.iter().filter(|reason| !before.contains(reason)) {
            tracing::warn!(target: "diesel_replicated", reason, "promotion_unable");
        }
        found.is_empty()
    }

    fn gist(&self) -> MutexGuard<'_, String> {
        self.gist.lock()
    }

    fn status(&self) -> MutexGuard<'_, PromotionStatus> {
        self.status.lock()
    }
}

/// What keeps a node that is up from agreeing or from being promoted.
async fn hindrance(member: &Member, database: &str, limit: Duration) -> Option<String> {
    let name = &member.node.name;
    let looking = async {
        let mut promotion_lock = PromotionLock::open(&member.node, database).await?;
        Ok::<_, ConnectError>(promotion_lock.lacks().await)
    };
    match timeout(limit, looking).await {
        Ok(Ok(Ok(grant))) => {
            grant.map(|grant| format!("`{name}` may not be promoted by this role: {grant}"))
        }
        Ok(Err(error)) => Some(format!(
            "{error}; `PromotionConfig::database` is `{database}`"
        )),
        // It is slow or gone. Its health tells that.
        Ok(Ok(Err(_))) | Err(_) => None,
    }
}

pub(in crate::cluster) fn told(reasons: &[PromotionRefusal]) -> String {
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    reasons.join("; ")
}

fn too_few(topology: &Topology) -> Vec<String> {
    let count = topology.servers().count();
    let enough = count >= ENOUGH;
    let reason = format!(
        "a promotion takes a majority of all nodes, and of {count} none is left when one is gone: add another node"
    );
    if enough { Vec::new() } else { vec![reason] }
}
