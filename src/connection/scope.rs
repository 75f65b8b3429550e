//! A view of a connection that forces the kind of node.

use std::ops::{Deref, DerefMut};

use super::ReplicatedConnection;
use crate::route::NodeKind;

/// A [`ReplicatedConnection`] whose statements all go to one kind of node.
///
/// It is a connection itself, transactions included, and ends when it is dropped. An open
/// transaction stays where it is whatever is forced.
#[derive(Debug)]
pub struct Scope<'a> {
    connection: &'a mut ReplicatedConnection,
    outer: Option<NodeKind>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(connection: &'a mut ReplicatedConnection, kind: NodeKind) -> Self {
        let outer = connection.session().forced.replace(kind);
        Self { connection, outer }
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.connection.session().forced = self.outer;
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
