//! Replacing a primary that lives: with a hold of new writes, and without an error for anyone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::manager::Command;
use super::member::Member;
use super::promotion::{Order, Promoter};
use super::topology::Topology;
use crate::deadline;
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
        let deadline = deadline::after(Instant::now(), limit);
        let failed = |cause: String| Error::PromotionFailed {
            node: to.to_owned(),
            cause,
        };
        let late = |what: &str| failed(format!("{what} within {limit:?}"));
        let replacing = timeout(until(deadline), self.replacing.lock()).await;
        let _alone =
            replacing.map_err(|_| late("another promotion of this process did not end"))?;
        let topology = Arc::clone(&self.topology.borrow());
        let (old, new) = pair(&topology, to)?;
        let opening = async {
            let mut over_old = self.open(old).await?;
            let may = over_old.may_fence().await;
            may.map_err(|error| failed(error.to_string()))?
                .then_some((over_old, self.open(new).await?))
                .ok_or_else(|| {
                    failed(
                        "a switchover takes a superuser, who can keep the old primary from being \
                         written to"
                            .to_owned(),
                    )
                })
        };
        let opened = timeout(until(deadline), opening).await;
        let (over_old, over_new) = opened.map_err(|_| late("the two did not answer"))??;
        let hold = Hold::of(self.commands.clone()).await?;
        let mut fence = Fence {
            promoter: self.clone(),
            old: old.clone(),
            ballot: Some(over_old),
            begun: false,
            kept: false,
        };
        let ready = timeout(until(deadline), self.ready(&mut fence, over_new)).await;
        let ready = ready.map_err(|_| late("what has to come first was not done"));
        let result = match ready.and_then(|ready| ready.map_err(|error| failed(error.to_string())))
        {
            Ok(()) => {
                // Whether the other has begun, only its own word tells.
                fence.kept = true;
                let result = self.promote(&Order::in_the_place_of(old, to)).await;
                fence.kept = !stays_primary(&result);
                result
            }
            Err(error) => Err(error),
        };
        fence.end().await;
        drop(hold);
        result
    }

    /// What comes before a promotion: nothing is under way on the old primary, nobody can write there any
    /// more, and the other has all that was written.
    async fn ready(&self, fence: &mut Fence, mut new: Ballot) -> diesel::QueryResult<()> {
        fence.old.node.drained().await;
        if let Some(written) = fence.set().await? {
            replayed(&mut new, written).await?;
        }
        Ok(())
    }

    async fn open(&self, member: &Member) -> Result<Ballot, Error> {
        let opened = Ballot::open(&member.node, &self.config.database);
        match timeout(self.health.timeout, opened).await {
            Ok(opened) => opened.map_err(Error::from),
            Err(_) => Err(Error::PromotionFailed {
                node: member.node.name.clone(),
                cause: format!("no answer within {:?}", self.health.timeout),
            }),
        }
    }
}

/// New writes are held back for as long as this lives.
struct Hold(mpsc::WeakSender<Command>);

impl Hold {
    async fn of(commands: mpsc::WeakSender<Command>) -> Result<Self, Error> {
        let sender = commands.upgrade().ok_or(Error::Closed)?;
        // Who is not waited for any more has asked all the same.
        let hold = Self(commands);
        let (done, answer) = oneshot::channel();
        let sent = sender.send(Command::Hold { on: true, done }).await;
        sent.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)??;
        Ok(hold)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(commands) = self.0.upgrade() else {
            return;
        };
        let (done, _) = oneshot::channel();
        let sent = commands.try_send(Command::Hold { on: false, done });
        if let Err(mpsc::error::TrySendError::Full(command)) = sent {
            tokio::spawn(async move { commands.send(command).await });
        }
    }
}

/// The old primary is kept from taking writes, until this ends without having been `kept`.
struct Fence {
    promoter: Promoter,
    old: Member,
    /// Over which it is set; `None` once that has been given away.
    ballot: Option<Ballot>,
    /// It may be set.
    begun: bool,
    kept: bool,
}

impl Fence {
    /// Has nobody write there any more. Where it had come to by then.
    async fn set(&mut self) -> diesel::QueryResult<Option<Lsn>> {
        let Some(ballot) = &mut self.ballot else {
            return Ok(None);
        };
        let connector = self.old.node.pool.connector();
        connector.end_generation("another node takes the primary's place".to_owned());
        self.begun = true;
        let fenced = ballot.fence().await?;
        while ballot.end_others(&fenced).await? {
            sleep(PAUSE).await;
        }
        let facts = ballot.ask().await?;
        Ok(facts.and_then(|facts| match facts.place {
            Place::Primary { inserted, .. } => inserted,
            Place::Standby { .. } => None,
        }))
    }

    /// Takes it away again, if it is not kept, and waits for that.
    async fn end(mut self) {
        if let Some(lifting) = self.lifting() {
            lifting.await;
        }
    }

    fn lifting(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let ballot = self.ballot.take().filter(|_| self.begun && !self.kept)?;
        Some(lift(self.promoter.clone(), self.old.clone(), ballot))
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if let Some(lifting) = self.lifting() {
            tokio::spawn(lifting);
        }
    }
}

/// Takes the fence away, over another connection if that one is of no use.
async fn lift(promoter: Promoter, old: Member, mut ballot: Ballot) {
    let patience = promoter.health.timeout;
    let done = async {
        while !matches!(timeout(patience, ballot.unfence()).await, Ok(Ok(()))) {
            ballot = loop {
                sleep(PAUSE).await;
                if let Ok(another) = promoter.open(&old).await {
                    break another;
                }
            };
        }
    };
    if timeout(promoter.config.timeout, done).await.is_err() {
        let node = &old.node.name;
        tracing::error!(target: "diesel_replicated", node, "primary_left_fenced");
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
        waited: Duration::ZERO,
        nodes: topology.describe(),
    })?;
    Ok((old, new))
}

/// Waits until the standby has replayed all of this.
async fn replayed(ballot: &mut Ballot, written: Lsn) -> diesel::QueryResult<()> {
    loop {
        let place = ballot.ask().await?.map(|facts| facts.place);
        if let Some(Place::Standby { replayed, .. }) = place {
            if replayed.is_some_and(|replayed| replayed >= written) {
                return Ok(());
            }
        }
        sleep(PAUSE).await;
    }
}
