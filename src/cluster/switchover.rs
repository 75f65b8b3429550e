//! Replacing a primary that lives: with a hold of new writes, and without an error for anyone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::manager::Command;
use super::member::Member;
use super::promotion::{Order, Promoter};
use super::topology::Topology;
use crate::error::{Error, PromotionRefusal};
use crate::node::{Ballot, Place};
use crate::position::Lsn;
use crate::route::NodeKind;
use crate::status::Promoted;

/// How often what has to come true is looked at.
const PAUSE: Duration = Duration::from_millis(5);

impl Promoter {
    /// Puts `to` in the place of the primary within `limit`, or leaves everything as it was.
    pub(super) async fn switchover(&self, to: &str, limit: Duration) -> Result<Promoted, Error> {
        let _one_at_a_time = self.replacing.lock().await;
        let topology = Arc::clone(&self.topology.borrow());
        let (old, new) = pair(&topology, to)?;
        let deadline = Instant::now() + limit;
        let mut over_old = self.open(old).await?;
        let mut over_new = self.open(new).await?;
        let failed = |cause: &str| Error::PromotionFailed {
            node: to.to_owned(),
            cause: cause.to_owned(),
        };
        let may = over_old.may_fence().await;
        if !may.map_err(|error| failed(&error.to_string()))? {
            return Err(failed(
                "a switchover takes a superuser, who can keep the old primary from being written to",
            ));
        }
        self.hold(true).await?;
        let ready = async {
            timeout(until(deadline), old.node.drained())
                .await
                .map_err(|_| failed("transactions on the primary did not end in time"))?;
            let fenced = self.fence(old, &mut over_old, deadline).await;
            let Some(written) = fenced.map_err(|error| failed(&error.to_string()))? else {
                return Err(failed("connections to the primary did not end in time"));
            };
            let caught_up = replayed(&mut over_new, written, deadline).await;
            if !caught_up.map_err(|error| failed(&error.to_string()))? {
                return Err(failed("it did not catch up in time"));
            }
            Ok(())
        };
        let order = Order {
            yielding: Some(old.node.name.clone()),
            ..Order::to(to, false)
        };
        let (stays, result) = match ready.await {
            Ok(()) => {
                let result = self.promote(&order).await;
                (stays_primary(&result), result)
            }
            Err(error) => (true, Err(error)),
        };
        if stays {
            self.unfence(old, over_old).await;
        }
        self.hold(false).await?;
        result
    }

    /// Takes the fence away again, over another connection if that one is gone.
    async fn unfence(&self, old: &Member, mut ballot: Ballot) {
        let done = async {
            while ballot.unfence().await.is_err() {
                ballot = loop {
                    sleep(PAUSE).await;
                    if let Ok(another) = self.open(old).await {
                        break another;
                    }
                };
            }
        };
        if timeout(self.config.timeout, done).await.is_err() {
            let node = &old.node.name;
            tracing::error!(target: "diesel_replicated", node, "primary_left_fenced");
        }
    }

    async fn open(&self, member: &Member) -> Result<Ballot, Error> {
        let opened = Ballot::open(&member.node, &self.config.database).await;
        opened.map_err(Error::from)
    }

    async fn hold(&self, on: bool) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let commands = self.commands.upgrade().ok_or(Error::Closed)?;
        let sent = commands.send(Command::Hold { on, done }).await;
        sent.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Has nobody write there any more. Where it had come to by then; `None` if somebody still could.
    async fn fence(
        &self,
        old: &Member,
        ballot: &mut Ballot,
        deadline: Instant,
    ) -> diesel::QueryResult<Option<Lsn>> {
        old.node
            .pool
            .connector()
            .end_generation("another node takes the primary's place".to_owned());
        // A setting of the role's own may stand above the server's: then it never shows.
        let Ok(fenced) = timeout(until(deadline), ballot.fence()).await else {
            return Ok(None);
        };
        let fenced = fenced?;
        while ballot.end_others(&fenced).await? {
            if Instant::now() >= deadline {
                return Ok(None);
            }
            sleep(PAUSE).await;
        }
        let facts = ballot.ask().await?;
        Ok(facts.and_then(|facts| match facts.place {
            Place::Primary { inserted, .. } => inserted,
            Place::Standby { .. } => None,
        }))
    }
}

/// Whether the old primary remains what it was. A promotion that has begun may yet come to its end, and
/// who was overtaken by another's must not be written to again.
fn stays_primary(result: &Result<Promoted, Error>) -> bool {
    match result {
        Err(Error::PromotionRefused { reasons }) => !reasons
            .iter()
            .any(|reason| matches!(reason, PromotionRefusal::Overtaken { .. })),
        Err(Error::UnknownNode { .. }) => true,
        _ => false,
    }
}

fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The primary, and the replica that is to take its place.
fn pair<'t>(topology: &'t Topology, to: &str) -> Result<(&'t Member, &'t Member), Error> {
    let new = topology.named(to).ok_or_else(|| Error::UnknownNode {
        name: to.to_owned(),
        nodes: topology.describe(),
    })?;
    let refused = |why| {
        let node = to.to_owned();
        let reasons = vec![PromotionRefusal::NotPromotable { node, why }];
        Error::PromotionRefused { reasons }
    };
    if new.kind() != Some(NodeKind::Replica) || new.stray {
        return Err(refused("is not a replica of this cluster"));
    }
    if !new.is_up() {
        return Err(refused("is not up"));
    }
    let old = topology.primary().filter(|_| topology.takes_writes());
    let old = old.ok_or_else(|| Error::NoPrimary {
        nodes: topology.describe(),
    })?;
    Ok((old, new))
}

/// Waits until the standby has replayed all of this. `false` if it has not by the deadline.
async fn replayed(
    ballot: &mut Ballot,
    written: Lsn,
    deadline: Instant,
) -> diesel::QueryResult<bool> {
    loop {
        if let Some(Place::Standby { replayed, .. }) = ballot.ask().await?.map(|facts| facts.place)
        {
            if replayed.is_some_and(|replayed| replayed >= written) {
                return Ok(true);
            }
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(PAUSE).await;
    }
}
