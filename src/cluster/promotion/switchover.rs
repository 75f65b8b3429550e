//! Replaces a primary that lives: it holds new writes, and nobody gets an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::promoter::{Promoter, PromotionRequest};
use crate::cluster::command::Command;
use crate::cluster::member::Member;
use crate::cluster::topology::Topology;
use crate::deadline;
use crate::election::promotion::switchover::{Next, Switchover};
use crate::error::{Error, PromotionRefusal};
use crate::node::{Place, PromotionLock};
use crate::position::Lsn;
use crate::route::NodeKind;
use crate::status::Promoted;

/// How often what has to come true is looked at.
const PAUSE: Duration = Duration::from_millis(5);

impl Promoter {
    /// Puts `to` in the place of the primary within `limit`, or leaves everything as it was.
    pub(in crate::cluster) async fn switchover(
        &self,
        to: &str,
        limit: Duration,
    ) -> Result<Promoted, Error> {
        let deadline = deadline::after(Instant::now(), limit);
        let replacing = timeout(until(deadline), self.replacing.lock()).await;
        let _alone = replacing.map_err(|_| Error::PromotionFailed {
            node: to.to_owned(),
            cause: format!("another promotion of this process did not end within {limit:?}"),
        })?;
        let topology = Arc::clone(&self.topology.borrow());
        let (old, new) = pair(&topology, to)?;
        let drive = Drive {
            promoter: self,
            old,
            new,
            limit,
            deadline,
            over_new: None,
            hold: None,
            fence: Fence {
                promoter: self.clone(),
                old: old.clone(),
                promotion_lock: None,
                pid: 0,
                begun: false,
                kept: false,
            },
        };
        drive.run().await
    }

    async fn open(&self, member: &Member) -> Result<PromotionLock, Error> {
        let opened = PromotionLock::open(&member.node, &self.config.promotion.database);
        match timeout(self.config.health.timeout, opened).await {
            Ok(opened) => opened.map_err(Error::from),
            Err(_) => Err(Error::PromotionFailed {
                node: member.node.name.clone(),
                cause: format!("no answer within {:?}", self.config.health.timeout),
            }),
        }
    }
}

/// A switchover of real servers. Whoever drops it leaves nothing held and nothing fenced.
struct Drive<'a> {
    promoter: &'a Promoter,
    old: &'a Member,
    new: &'a Member,
    limit: Duration,
    deadline: Instant,
    over_new: Option<PromotionLock>,
    hold: Option<Hold>,
    fence: Fence,
}

impl Drive<'_> {
    async fn run(mut self) -> Result<Promoted, Error> {
        let mut machine = Switchover::new();
        let mut next = Next::Open;
        loop {
            next = match next {
                Next::Open => {
                    let opened = timeout(until(self.deadline), self.open()).await;
                    let opened = self.in_time(opened, "the two did not answer");
                    machine.opened(opened)
                }
                Next::Hold => {
                    let held = timeout(until(self.deadline), self.hold()).await;
                    let held = self.in_time(held, "writes were not held back");
                    machine.held(held)
                }
                Next::Drain => {
                    let drained = timeout(until(self.deadline), self.drain()).await;
                    let drained = self.in_time(drained, NOT_DONE);
                    machine.drained(drained)
                }
                Next::Fence => {
                    let written = timeout(until(self.deadline), self.fence()).await;
                    let written = self.in_time(written, NOT_DONE);
                    machine.fenced(written)
                }
                Next::CatchUp(written) => {
                    let done = timeout(until(self.deadline), self.catch_up(written)).await;
                    machine.caught_up(self.in_time(done, NOT_DONE))
                }
                Next::Promote => {
                    // Only the other node can tell whether it has begun.
                    self.fence.kept = true;
                    let order = PromotionRequest::in_the_place_of(self.old, &self.new.node.name);
                    let result = self.promoter.promote(&order).await;
                    let refused = refused(&result).map(<[_]>::to_vec);
                    machine.attempted(result, refused.as_deref())
                }
                Next::Lift => {
                    self.fence.kept = false;
                    self.fence.end().await;
                    machine.lifted()
                }
                Next::Release => {
                    self.hold = None;
                    machine.released()
                }
                Next::End(result) => return result,
            };
        }
    }

    /// One deadline is over all that comes before the promotion.
    fn in_time<T>(&self, done: Timed<T>, late: &str) -> Result<T, Error> {
        done.unwrap_or_else(|_| Err(self.failed(format!("{late} within {:?}", self.limit))))
    }

    fn failed(&self, cause: String) -> Error {
        Error::PromotionFailed {
            node: self.new.node.name.clone(),
            cause,
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let mut over_old = self.promoter.open(self.old).await?;
        let may = over_old.may_fence().await;
        if !may.map_err(|error| self.failed(error.to_string()))? {
            let wanting = "a switchover takes a superuser, who can keep the old primary from being written to";
            return Err(self.failed(wanting.to_owned()));
        }
        let Some(pid) = over_old
            .claim()
            .await
            .map_err(|error| self.failed(error.to_string()))?
        else {
            return Err(self.failed("another process replaces the primary".to_owned()));
        };
        (self.fence.promotion_lock, self.fence.pid) = (Some(over_old), pid);
        self.over_new = Some(self.promoter.open(self.new).await?);
        Ok(())
    }

    async fn hold(&mut self) -> Result<(), Error> {
        self.hold = Some(Hold::of(self.promoter.commands.clone()).await?);
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), Error> {
        self.old.node.drained().await;
        Ok(())
    }

    async fn fence(&mut self) -> Result<Option<Lsn>, Error> {
        let written = self.fence.set().await;
        written.map_err(|error| self.failed(error.to_string()))
    }

    /// Waits until the standby has replayed all of this.
    async fn catch_up(&mut self, written: Lsn) -> Result<(), Error> {
        let Some(mut promotion_lock) = self.over_new.take() else {
            return Ok(());
        };
        loop {
            let facts = promotion_lock.ask().await;
            let facts = facts.map_err(|error| self.failed(error.to_string()))?;
            if let Some(Place::Standby { replayed, .. }) = facts.map(|facts| facts.place) {
                if replayed.is_some_and(|replayed| replayed >= written) {
                    return Ok(());
                }
            }
            sleep(PAUSE).await;
        }
    }
}

/// The result of a step, unless the deadline passed.
type Timed<T> = Result<Result<T, Error>, tokio::time::error::Elapsed>;

const NOT_DONE: &str = "what has to come first was not done";

/// Why nothing was done, if so.
fn refused(result: &Result<Promoted, Error>) -> Option<&[PromotionRefusal]> {
    match result {
        Err(Error::PromotionRefused { reasons }) => Some(reasons),
        Err(Error::UnknownNode { .. }) => Some(&[]),
        _ => None,
    }
}

/// New writes wait while this lives.
struct Hold(mpsc::WeakSender<Command>);

impl Hold {
    async fn of(commands: mpsc::WeakSender<Command>) -> Result<Self, Error> {
        let sender = commands.upgrade().ok_or(Error::Closed)?;
        // The promoter has asked all the same, though nobody waits.
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

/// The old primary takes no writes until this is dropped, unless it was `kept`.
struct Fence {
    promoter: Promoter,
    old: Member,
    /// The connection that set it; `None` once it was given away.
    promotion_lock: Option<PromotionLock>,
    /// The server's process of that connection. It has the claim on the primary.
    pid: i32,
    /// It may be set.
    begun: bool,
    kept: bool,
}

impl Fence {
    /// Keeps everybody from writing there. Returns how far the primary had come.
    async fn set(&mut self) -> diesel::QueryResult<Option<Lsn>> {
        let Some(promotion_lock) = &mut self.promotion_lock else {
            return Ok(None);
        };
        let connector = self.old.node.pool.connector();
        connector.end_generation("another node takes the primary's place".to_owned());
        self.begun = true;
        let fenced = promotion_lock.fence().await?;
        while promotion_lock.end_others(&fenced).await? {
            sleep(PAUSE).await;
        }
        let facts = promotion_lock.ask().await?;
        Ok(facts.and_then(|facts| match facts.place {
            Place::Primary { inserted, .. } => inserted,
            Place::Standby { .. } => None,
        }))
    }

    /// Lifts the fence, if it is not kept, and waits for that.
    async fn end(&mut self) {
        if let Some(lifting) = self.lifting() {
            lifting.await;
        }
    }

    fn lifting(&mut self) -> Option<impl Future<Output = ()> + use<>> {
        let promotion_lock = self
            .promotion_lock
            .take()
            .filter(|_| self.begun && !self.kept)?;
        let (promoter, old) = (self.promoter.clone(), self.old.clone());
        Some(lift(promoter, old, promotion_lock, self.pid))
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if let Some(lifting) = self.lifting() {
            tokio::spawn(lifting);
        }
    }
}

/// Lifts the fence, over another connection if that one is of no use. If another process has claimed the primary
/// since, the fence belongs to that process.
async fn lift(promoter: Promoter, old: Member, mut promotion_lock: PromotionLock, pid: i32) {
    let patience = promoter.config.health.timeout;
    let done = async {
        while !matches!(
            timeout(patience, promotion_lock.unfence()).await,
            Ok(Ok(()))
        ) {
            promotion_lock = loop {
                sleep(PAUSE).await;
                let Ok(mut another) = promoter.open(&old).await else {
                    continue;
                };
                match timeout(patience, another.take_over(pid)).await {
                    Ok(Ok(Some(true))) => break another,
                    Ok(Ok(Some(false))) => return,
                    _ => {}
                }
            };
        }
    };
    if timeout(promoter.config.promotion.timeout, done)
        .await
        .is_err()
    {
        let node = &old.node.name;
        tracing::error!(target: "diesel_replicated", node, "primary_left_fenced");
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
    if new.kind() != Some(NodeKind::Replica) || new.diverged {
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
