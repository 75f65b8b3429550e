//! A view of a connection with another kind of node, another level, or a limit of time.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ReplicatedConnection;
use super::tagged::Tagged;
use crate::config::Consistency;
use crate::deadline;
use crate::route::NodeKind;

/// A [`ReplicatedConnection`] whose statements all go to one kind of node or to those with a tag, whose reads see what another level says, or
/// whose statements have a limit of time.
///
/// It is a connection itself, transactions included. It ends when it is dropped. An open transaction stays where it
/// is.
#[derive(Debug)]
pub struct Scope<'a> {
    connection: &'a mut ReplicatedConnection,
    outer: Outer,
}

/// What the scope puts back at its end.
#[derive(Debug)]
struct Outer {
    forced: Option<NodeKind>,
    tagged: Option<Arc<Tagged>>,
    replica_allowed: bool,
    consistency: Option<Consistency>,
    deadline: Option<Instant>,
}

impl<'a> Scope<'a> {
    fn new(connection: &'a mut ReplicatedConnection) -> Self {
        let outer = {
            let session = connection.session();
            Outer {
                forced: session.forced,
                tagged: session.tagged.clone(),
                replica_allowed: session.replica_allowed,
                consistency: session.consistency,
                deadline: session.deadline,
            }
        };
        Self { connection, outer }
    }

    pub(super) fn forced(connection: &'a mut ReplicatedConnection, kind: NodeKind) -> Self {
        let scope = Self::new(connection);
        {
            let mut session = scope.connection.session();
            (session.forced, session.tagged) = (Some(kind), None);
        }
        scope
    }

    pub(super) fn tagged(connection: &'a mut ReplicatedConnection, tagged: Arc<Tagged>) -> Self {
        let scope = Self::forced(connection, NodeKind::Replica);
        scope.connection.session().tagged = Some(tagged);
        scope
    }

    pub(super) fn replica_allowed(connection: &'a mut ReplicatedConnection) -> Self {
        let scope = Self::new(connection);
        scope.connection.session().replica_allowed = true;
        scope
    }

    /// Of two ends, the sooner one counts.
    pub(super) fn until(connection: &'a mut ReplicatedConnection, limit: Duration) -> Self {
        let end = deadline::after(Instant::now(), limit);
        let scope = Self::new(connection);
        let end = scope.outer.deadline.map_or(end, |outer| outer.min(end));
        scope.connection.session().deadline = Some(end);
        scope
    }

    pub(super) fn consistent(connection: &'a mut ReplicatedConnection, level: Consistency) -> Self {
        let scope = Self::new(connection);
        scope.connection.session().consistency = Some(level);
        scope
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        let mut session = self.connection.session();
        session.forced = self.outer.forced;
        session.tagged = self.outer.tagged.take();
        session.replica_allowed = self.outer.replica_allowed;
        session.consistency = self.outer.consistency;
        session.deadline = self.outer.deadline;
    }
}

impl Deref for Scope<'_> {
    type Target = ReplicatedConnection;

    fn deref(&self) -> &ReplicatedConnection {
        self.connection
    }
}

impl DerefMut for Scope<'_> {
    fn deref_mut(&mut self) -> &mut ReplicatedConnection {
        self.connection
    }
}
