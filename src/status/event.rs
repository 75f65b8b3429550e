//! What happens to the nodes, sent as it happens.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_core::Stream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

use super::{Degraded, NodeHealth};
#[cfg(feature = "promotion")]
use crate::error::PromotionRefusal;
use crate::metrics;

/// How many events are kept for a slow subscriber.
const KEPT: usize = 256;

/// Something that happened to the nodes of a pool.
///
/// `tracing` has the same events; these are for programs.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "event", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Event {
    /// The health of a node changed.
    #[non_exhaustive]
    NodeChanged {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The node.
        node: String,
        /// What it was.
        from: NodeHealth,
        /// What it became.
        to: NodeHealth,
        /// Why.
        cause: Option<String>,
    },
    /// Another node takes the writes, or none does any more.
    #[non_exhaustive]
    PrimaryChanged {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// Who took the writes before.
        from: Option<String>,
        /// Who takes them now.
        to: Option<String>,
        /// The timeline.
        timeline: Option<u32>,
    },
    /// A node has another role among the others: overtaken, one of two primaries, of another cluster, a replica, or
    /// the primary.
    #[non_exhaustive]
    StandingChanged {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The node.
        node: String,
        /// Its role now, in words.
        standing: String,
    },
    /// The pool does less than it could, for this reason.
    #[non_exhaustive]
    Degraded {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// What and why.
        what: Degraded,
    },
    /// A reason for doing less than it could is over.
    #[non_exhaustive]
    DegradationOver {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The reason.
        what: Degraded,
    },
    /// Every node leads to another cluster than before, as after a blue/green deployment or a restore. The pool has
    /// gone over to it. Sessions are told that what they wrote to the old one is lost.
    #[non_exhaustive]
    ClusterReplaced {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The system identifier of the cluster before.
        from: u64,
        /// That of the one that is used now.
        to: u64,
    },
    /// A replica receives from another node, or from none, or its replay was paused or resumed.
    #[non_exhaustive]
    ReplicationChanged {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The replica.
        node: String,
        /// Whom it receives from, if from anyone.
        upstream: Option<String>,
        /// Somebody has paused its replay.
        replay_paused: bool,
        /// It is ahead of the primary, can follow nobody, and serves no reads.
        diverged: bool,
    },
    /// This process has promoted a replica.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[non_exhaustive]
    Promoted {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The new primary.
        node: String,
        /// The timeline that began with it.
        timeline: u32,
    },
    /// No replica was promoted. With automatic promotion it is tried again.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[non_exhaustive]
    PromotionRefused {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// Everything that speaks against it.
        reasons: Vec<PromotionRefusal>,
    },
    /// A replica was to be promoted and does not take writes, or it is not known whether it will.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[non_exhaustive]
    PromotionFailed {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The replica.
        node: String,
        /// Why.
        cause: String,
    },
    /// This process has told a standby to follow the new primary.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[non_exhaustive]
    StandbyTold {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The standby.
        node: String,
        /// The new primary.
        primary: String,
        /// The new primary's timeline.
        timeline: u32,
    },
    /// A standby that did not follow the new primary receives its log now.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[non_exhaustive]
    StandbyFollows {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The standby.
        node: String,
        /// The new primary.
        primary: String,
        /// The new primary's timeline.
        timeline: u32,
    },
    /// A standby does not follow the new primary, and was left as it is. It is sent once for each cause.
    #[cfg(feature = "promotion")]
    #[cfg_attr(docsrs, doc(cfg(feature = "promotion")))]
    #[non_exhaustive]
    StandbyLeft {
        /// When.
        #[cfg_attr(feature = "serde", serde(serialize_with = "super::unix"))]
        at: SystemTime,
        /// The standby.
        node: String,
        /// The new primary.
        primary: String,
        /// The new primary's timeline.
        timeline: u32,
        /// Why, and what mends it.
        cause: String,
    },
    /// The subscriber was too slow, and missed events.
    #[non_exhaustive]
    Missed {
        /// How many.
        events: u64,
    },
}

impl Event {
    /// Its name, fit for a label of a metric: that of `tracing`'s event of the same.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NodeChanged { .. } => "node_changed",
            Self::PrimaryChanged { .. } => "primary_changed",
            Self::StandingChanged { .. } => "standing_changed",
            Self::Degraded { .. } => "degraded",
            Self::DegradationOver { .. } => "degradation_over",
            Self::ClusterReplaced { .. } => "cluster_replaced",
            Self::ReplicationChanged { .. } => "replication_changed",
            #[cfg(feature = "promotion")]
            Self::Promoted { .. } => "promoted",
            #[cfg(feature = "promotion")]
            Self::PromotionRefused { .. } => "promotion_refused",
            #[cfg(feature = "promotion")]
            Self::PromotionFailed { .. } => "promotion_failed",
            #[cfg(feature = "promotion")]
            Self::StandbyTold { .. } => "standby_told",
            #[cfg(feature = "promotion")]
            Self::StandbyFollows { .. } => "standby_follows",
            #[cfg(feature = "promotion")]
            Self::StandbyLeft { .. } => "standby_left",
            Self::Missed { .. } => "missed",
        }
    }
}

/// Sends events to all subscribers.
#[derive(Clone, Debug)]
pub(crate) struct EventBus(broadcast::Sender<Event>);

impl Default for EventBus {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl EventBus {
    pub(crate) fn send(&self, event: Event) {
        metrics::event(event.name());
        // It is nobody's loss if nobody listens.
        let _ = self.0.send(event);
    }

    /// A handle for those who send and listen. Their streams end with the bus.
    pub(crate) fn event_sender(&self) -> EventSender {
        EventSender(self.0.downgrade())
    }
}

/// A handle by which events are sent and listened to. It does not keep the bus.
#[derive(Clone, Debug)]
pub(crate) struct EventSender(broadcast::WeakSender<Event>);

impl EventSender {
    /// The bus, if it is still there. Nobody may keep it: streams end with the last one.
    pub(crate) fn bus(&self) -> Option<EventBus> {
        self.0.upgrade().map(EventBus)
    }

    /// Sends, if the bus is still there.
    #[cfg(feature = "promotion")]
    pub(crate) fn send(&self, event: Event) {
        if let Some(sender) = self.0.upgrade() {
            metrics::event(event.name());
            let _ = sender.send(event);
        }
    }

    pub(crate) fn listen(&self) -> Events {
        // A receiver without a sender ends at once.
        let sender = self
            .0
            .upgrade()
            .unwrap_or_else(|| broadcast::Sender::new(1));
        Events(BroadcastStream::new(sender.subscribe()))
    }
}

/// The events of a pool, from the subscription on; see
/// [`ReplicatedPool::subscribe`](crate::ReplicatedPool::subscribe). Ends when the pool is closed.
#[derive(Debug)]
pub struct Events(BroadcastStream<Event>);

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let missed = |BroadcastStreamRecvError::Lagged(events)| Event::Missed { events };
        let next = std::task::ready!(Pin::new(&mut self.0).poll_next(cx));
        Poll::Ready(next.map(|event| event.unwrap_or_else(missed)))
    }
}
