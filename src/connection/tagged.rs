//! Reads that ask for nodes with a tag: whose connections they take, and how long they may wait.

use std::sync::Arc;
use std::time::Duration;

use super::ReplicatedConnection;
use crate::config::{Config, TagConfig};
use crate::error::Error;
use crate::node::Lane;
use crate::route::RouteReason;
use crate::routing::Decision;

/// What a view of a connection reads from.
#[derive(Debug)]
pub(super) struct Tagged {
    tag: String,
    /// `None` if the pool was not told of the tag.
    known: Option<(Lane, TagConfig)>,
}

impl ReplicatedConnection {
    /// The tag that a statement asks for. It lies in the session, and does not change under a statement: a view has the
    /// connection for itself.
    pub(super) fn tagged_for(&self, decision: Decision) -> Option<Arc<Tagged>> {
        match decision {
            Decision::Replica { reason, .. } | Decision::HeldBack(reason)
                if reason == RouteReason::Forced =>
            {
                self.session().tagged.clone()
            }
            _ => None,
        }
    }
}

impl Tagged {
    pub(super) fn new(tag: &str, config: &Config) -> Arc<Self> {
        let lane = Lane::of(tag, &config.tagged);
        let known = lane.zip(config.tagged.get(tag).cloned());
        let tag = tag.to_owned();
        Arc::new(Self { tag, known })
    }

    /// Whose connections it takes. None has those of a tag that the pool was not told of: see [`Self::check`].
    pub(super) fn lane(&self) -> Lane {
        self.known
            .as_ref()
            .map_or_else(Lane::default, |(lane, _)| *lane)
    }

    pub(super) fn wait(&self) -> Duration {
        self.known
            .as_ref()
            .map_or(Duration::ZERO, |(_, it)| it.wait)
    }

    pub(super) fn statement_deadline(&self) -> Option<Duration> {
        let (_, config) = self.known.as_ref()?;
        config.statement_deadline
    }

    /// Comes before anything is looked for.
    pub(super) fn check(&self, config: &Config) -> Result<(), Error> {
        match self.known {
            Some(_) => Ok(()),
            None => Err(Error::UnknownTag {
                tag: self.tag.clone(),
                known: config.tagged.keys().cloned().collect(),
            }),
        }
    }

    /// The error for a read that no node with the tag can serve, for this reason, after this time. `behind`: one was there
    /// that did not show enough.
    pub(super) fn unserved(
        &self,
        reason: RouteReason,
        behind: bool,
        waited: Duration,
        nodes: Vec<String>,
    ) -> Error {
        let tag = self.tag.clone();
        match reason {
            RouteReason::ReplicaBusy => Error::ReplicasBusy { nodes },
            RouteReason::NoUsableReplica | RouteReason::ReplicaFailed if !behind => {
                Error::NoTaggedReplica { tag, nodes }
            }
            RouteReason::Strong | RouteReason::LostWrite | RouteReason::UnclearWrite => {
                let reason = reason.to_string();
                Error::TaggedNeedsPrimary { tag, reason }
            }
            _ => Error::TaggedBehind { tag, waited, nodes },
        }
    }
}
