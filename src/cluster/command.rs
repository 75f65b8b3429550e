//! What the manager is told or asked.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::member::Member;
use crate::config::HealthConfig;
use crate::consistency::NewTimeline;
use crate::error::Error;
use crate::node::{Facts, Node, Probe, Trouble};

/// A message to the manager.
#[derive(Debug)]
pub(crate) enum Command {
    /// A connection to the node has failed, or could not be opened.
    Trouble { node: Arc<Node>, trouble: Trouble },
    /// A new connection to the node may tell more than those that are open. Nothing speaks against it.
    LookAnew { node: Arc<Node> },
    /// A node reported something new. `fork` tells how a primary's log came to be on its timeline, if that is new.
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
    /// Something was learned by which standbys are judged.
    Judge,
    /// The database's functions, views or types may have changed.
    CatalogChanged,
    /// The server counts this number of changes of the code in the database.
    CodeChanged { changes: i64 },
    /// A statement used a function or operator that is not known.
    CatalogWanted,
    Add {
        node: Box<Member>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Puts a node, which was reached, in the place of the one with its name.
    Replace {
        node: Box<Member>,
        probe: Box<Probe>,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    Remove {
        name: String,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    /// Makes statements that need the primary wait, or go on.
    #[cfg(feature = "promotion")]
    Hold {
        on: bool,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Pauses new writes until then, or lets them go on.
    Pause {
        until: Option<Instant>,
        done: oneshot::Sender<Result<(), Error>>,
    },
    /// Takes a replica out of use, or back.
    Drain {
        name: String,
        on: bool,
        done: oneshot::Sender<Result<Arc<Node>, Error>>,
    },
    /// Of these settings, the limits of lag.
    SetMaxLag {
        health: HealthConfig,
        done: oneshot::Sender<Result<(), Error>>,
    },
    SetWeight {
        name: String,
        weight: u32,
        done: oneshot::Sender<Result<(), Error>>,
    },
}
