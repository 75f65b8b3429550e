//! What is told of a statement's way: which node, and why.

use std::fmt;
use std::sync::Arc;

use crate::node::Node;
use crate::routing::{NodeKind, RouteReason};

/// Which node served a statement, and why that one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Route {
    /// The node's name.
    pub node: String,
    /// Whether it is the primary or a replica.
    pub kind: NodeKind,
    /// Why it went there.
    pub reason: RouteReason,
}

/// A route as it is noted for every statement: without an allocation.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) node: Arc<Node>,
    pub(super) kind: NodeKind,
    pub(super) reason: RouteReason,
}

impl Way {
    pub(super) fn route(&self) -> Route {
        Route {
            node: self.node.name.clone(),
            kind: self.kind,
            reason: self.reason,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`: {}", self.kind, self.node, self.reason)
    }
}
