//! The last route of a session, noted for every statement without an allocation.

use std::sync::Arc;
use std::time::Duration;

use crate::node::Node;
use crate::route::{NodeKind, Route, RouteReason};

/// A route as it is noted for every statement: without an allocation.
#[derive(Clone, Debug)]
pub(super) struct LastRoute {
    pub(super) node: Arc<Node>,
    pub(super) kind: NodeKind,
    pub(super) reason: RouteReason,
    pub(super) waited: Duration,
}

impl LastRoute {
    pub(super) fn route(&self) -> Route {
        Route {
            node: self.node.name.clone(),
            kind: self.kind,
            reason: self.reason,
            waited: self.waited,
        }
    }
}
