//! What the manager is told or asked, by whoever holds a handle.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::member::Member;
use crate::consistency::NewTimeline;
use crate::error::Error;
use crate::node::{Facts, Node, Trouble};

/// What the manager is told or asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// A connection to the node has failed, or could not be opened.
    Trouble { node: Arc<Node>, trouble: Trouble },
    /// A node said of itself what was not known; and, of a primary, how its log came to be on its
    /// timeline, if that is new.
    Heard {
        node: Arc<Node>,
        facts: Facts,
        fork: Option<NewTimeline>,
    },
    /// A primary takes no writes yet.
    Fenced {
        node: Arc<Node>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// More is known by which standbys are told from others.
    Judge,
    /// The database's functions, views or types may have changed.
    CatalogChanged,
    /// The code in the database has changed so often, by whomever.
    CodeChanged { changes: i64 },
    /// A function or operator was met of which nothing is known.
    CatalogWanted,
    Add {
        node: Member,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Remove {
        name: String,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    /// Has statements that need the primary wait, or go on.
    #[cfg(feature = "promotion")]
    Hold {
        on: bool,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Takes a replica out of use, or back.
    Drain {
        name: String,
        on: bool,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    SetWeight {
        name: String,
        weight: u32,
        done: oneshot::Sender<Result<(), Error>>,
    },
}
