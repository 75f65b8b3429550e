//! A view of a connection with another kind of node or another level.

use std::ops::{Deref, DerefMut};

use super::ReplicatedConnection;
use crate::config::Consistency;
use crate::route::NodeKind;

/// A [`ReplicatedConnection`] whose statements all go to one kind of node, or whose reads see what another level
/// says.
///
/// It is a connection itself, transactions included. It ends when it is dropped. An open transaction stays where it
/// is.
#[derive(Debug)]
pub struct Scope<'a> {
    connection: &'a mut ReplicatedConnection,
    outer: (Option<NodeKind>, Option<Consistency>),
}

impl<'a> Scope<'a> {
    fn new(connection: &'a mut ReplicatedConnection) -> Self {
        let outer = {
            let session = connection.session();
            (session.forced, session.consistency)
        };
        Self { connection, outer }
    }

    pub(super) fn forced(connection: &'a mut ReplicatedConnection, kind: NodeKind) -> Self {
        let scope = Self::new(connection);
        scope.connection.session().forced = Some(kind);
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
        (session.forced, session.consistency) = self.outer;
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
