//! Promotes a replica: asks every node to agree, decides by the answers, and acts.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::outlook::{Outlook, told};
use crate::cluster::command::Command;
use crate::cluster::member::Member;
use crate::cluster::topology::Topology;
use crate::config::Config;
use crate::consistency::WriteLog;
use crate::election::promotion::attempt::{self, ANOTHER_PROMOTES, Attempt, End, Next, Ordered};
use crate::election::promotion::{Answer, Heard, Known, Premise, Role, Terms};
use crate::error::{Error, PromotionRefusal};
use crate::node::{self, Clock, Facts, Place, PromotionLock};
use crate::position::{Lsn, Sample};
use crate::status::{Event, EventSender, Promoted};

/// How often a promoted server is asked whether it takes writes.
const PATIENCE: Duration = Duration::from_millis(10);

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct PromotionRequest {
    /// The node to promote; `None` for the best.
    pub(crate) target: Option<String>,
    /// The operator answers for the primary's death, for the majority and for what is lost.
    pub(crate) forced: bool,
    /// A primary that gives way.
    pub(crate) yielding: Option<String>,
}

impl PromotionRequest {
    pub(crate) fn to(name: &str, forced: bool) -> Self {
        Self {
            target: Some(name.to_owned()),
            forced,
            yielding: None,
        }
    }

    /// Asks for a node in the place of `old`, which gives way.
    pub(in crate::cluster) fn in_the_place_of(old: &Member, name: &str) -> Self {
        Self {
            yielding: Some(old.node.name.clone()),
            ..Self::to(name, false)
        }
    }
}

/// Promotes replicas. Each cluster has one.
#[derive(Clone)]
pub(crate) struct Promoter {
    pub(in crate::cluster) topology: watch::Receiver<Arc<Topology>>,
    pub(in crate::cluster) commands: mpsc::WeakSender<Command>,
    pub(in crate::cluster) write_log: Arc<WriteLog>,
    pub(in crate::cluster) config: Arc<Config>,
    pub(in crate::cluster) event_sender: EventSender,
    pub(in crate::cluster) outlook: Arc<Outlook>,
    /// Held by the process that replaces a living primary.
    pub(in crate::cluster) replacing: Arc<tokio::sync::Mutex<()>>,
}

impl Promoter {
    /// Promotes a replica, if nothing speaks against it.
    pub(crate) async fn promote(&self, order: &PromotionRequest) -> Result<Promoted, Error> {
        let topology = self.topology.borrow().of_servers();
        let place_of = |name: &str| {
            let mut members = topology.members.iter();
            let place = members.position(|member| member.node.name == name);
            place.ok_or_else(|| Error::UnknownNode {
                name: name.to_owned(),
                nodes: topology.describe(),
            })
        };
        let place_of = |name: &Option<String>| name.as_deref().map(place_of).transpose();
        let terms = Terms {
            target: place_of(&order.target)?,
            yielding: place_of(&order.yielding)?,
            witness_age: self.config.promotion.witness_age,
            max_loss_bytes: self.config.promotion.max_loss_bytes,
            forced: order.forced,
        };
        let priority = |member: &Member| match member.elsewhere {
            None => member.node.pool.connector().settings.promotion_priority,
            // It is of no use to this pool.
            Some(_) => 0,
        };
        let nodes = topology.members.iter();
        let nodes = nodes.map(|member| (member.node.name.clone(), priority(member)));
        let drive = Drive {
            promoter: self,
            attempt: Attempt::new(nodes, self.known(&topology), terms),
            // The locks are held until this call ends, however it ends.
            promotion_locks: topology.members.iter().map(|_| None).collect(),
            topology: &topology,
            begun: None,
            void: Instant::now(),
        };
        match drive.run().await {
            End::Promoted { place, timeline } => {
                let node = topology.members[place].node.name.clone();
                let at = SystemTime::now();
                self.event_sender.send(Event::Promoted {
                    at,
                    node: node.clone(),
                    timeline,
                });
                Ok(Promoted { node, timeline })
            }
            End::Refused(reasons) => Err(self.refused(reasons, order.target.is_some())),
            End::Failed { place, cause } => Err(self.failed(&topology.members[place], cause)),
        }
    }

    /// The order for the node. It is void when nobody waits for it any more.
    fn order(&self, decided: attempt::Order<Clock>) -> node::Order {
        let (not_heard, no_more) = match decided.rests_on {
            Premise::Lately => (None, None),
            Premise::NotHeard(age) => (Some(age), None),
            Premise::NoMore(has) => (None, Some(has)),
        };
        node::Order {
            asked: decided.clock,
            // The other nodes are asked for this long. Then this node has as long to hear of it.
            valid: self.config.health.timeout.saturating_mul(2),
            not_heard,
            no_more,
        }
    }

    /// Somebody who asked for it is told each time. Otherwise it is told once for as long as it stays the same.
    fn refused(&self, reasons: Vec<PromotionRefusal>, asked_for: bool) -> Error {
        if asked_for || self.outlook.refused(&reasons) {
            let reason = told(&reasons);
            if reasons.iter().any(is_a_lost_race) {
                tracing::info!(target: "diesel_replicated", reason, "promotion_refused");
            } else {
                tracing::warn!(target: "diesel_replicated", reason, "promotion_refused");
            }
            self.event_sender.send(Event::PromotionRefused {
                at: SystemTime::now(),
                reasons: reasons.clone(),
            });
        }
        Error::PromotionRefused { reasons }
    }

    fn failed(&self, member: &Member, cause: String) -> Error {
        let node = member.node.name.clone();
        tracing::error!(target: "diesel_replicated", node, cause, "promotion_failed");
        self.outlook.failed(format!("`{node}`: {cause}"));
        self.event_sender.send(Event::PromotionFailed {
            at: SystemTime::now(),
            node: node.clone(),
            cause: cause.clone(),
        });
        Error::PromotionFailed { node, cause }
    }

    /// The manager need not wait for a monitor to report it.
    fn tell(&self, member: &Member, facts: Facts) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.try_send(Command::Heard {
                node: Arc::clone(&member.node),
                facts,
                fork: None,
            });
        }
    }

    fn known(&self, topology: &Topology) -> Known {
        let primary = topology.primary().map(|member| member.node.name.as_str());
        let is_it = |member: &Member| Some(member.node.name.as_str()) == primary;
        self.write_log.with(|view| Known {
            cluster: topology.cluster(),
            newest: topology.timeline(),
            primary: topology.members.iter().position(is_it),
            written: view.history.latest().map(Sample::durable),
            confirming: view.synchronous_standbys,
        })
    }
}

/// An attempt with real servers.
struct Drive<'a> {
    promoter: &'a Promoter,
    topology: &'a Topology,
    attempt: Attempt<Clock>,
    promotion_locks: Vec<Option<PromotionLock>>,
    /// When the server has begun.
    begun: Option<Instant>,
    /// From then on no order of this attempt is carried out.
    void: Instant,
}

impl Drive<'_> {
    async fn run(mut self) -> End {
        let mut next = Next::Open;
        loop {
            next = match next {
                Next::Open => self.open().await,
                Next::Lock(place) => {
                    let taken = self
                        .within(place, async |promotion_lock| promotion_lock.take().await)
                        .await;
                    self.attempt.locked(place, taken)
                }
                Next::Ask(place) => {
                    let told = self
                        .within(place, async |promotion_lock| promotion_lock.ask().await)
                        .await;
                    let answer = told.map(|facts| self.answer(place, facts.as_ref()));
                    self.attempt.told(place, answer)
                }
                Next::Confirm(places) => self.confirm(&places).await,
                Next::Decide => {
                    let known = self.promoter.known(self.topology);
                    self.attempt.decide(known.written, known.confirming)
                }
                Next::Promote(order) => self.promote(order).await,
                Next::Recall(place) => self.recall(place).await,
                Next::Watch(place) => self.watch(place).await,
                Next::End(end) => return end,
            };
        }
    }

    fn limit(&self) -> Duration {
        self.promoter.config.health.timeout
    }

    /// The result of asking a node in time.
    async fn within<T>(
        &mut self,
        place: usize,
        ask: impl AsyncFnOnce(&mut PromotionLock) -> diesel::QueryResult<T>,
    ) -> Result<T, String> {
        let limit = self.limit();
        let promotion_lock = self.promotion_locks[place].as_mut();
        let promotion_lock = promotion_lock.ok_or_else(|| "it is not connected to".to_owned())?;
        match timeout(limit, ask(promotion_lock)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }

    async fn open(&mut self) -> Next<Clock> {
        let limit = self.limit();
        let database = &self.promoter.config.promotion.database;
        let opening = self.topology.members.iter().map(|member| async move {
            match timeout(limit, PromotionLock::open(&member.node, database)).await {
                Ok(Ok(promotion_lock)) => Ok(promotion_lock),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {limit:?}")),
            }
        });
        let mut next = None;
        for (place, opened) in join_all(opening).await.into_iter().enumerate() {
            let opened =
                opened.map(|promotion_lock| self.promotion_locks[place] = Some(promotion_lock));
            next = self.attempt.opened(place, opened);
        }
        next.unwrap_or(Next::Decide)
    }

    async fn confirm(&mut self, places: &[usize]) -> Next<Clock> {
        let limit = self.limit();
        let asked = self.promotion_locks.iter_mut().enumerate();
        let asked = asked.filter(|(place, _)| places.contains(place));
        let asking = asked.map(|(place, promotion_lock)| async move {
            let Some(promotion_lock) = promotion_lock else {
                return (place, None);
            };
            let answered = timeout(limit, async {
                let clock = promotion_lock.clock().await?;
                Ok::<_, diesel::result::Error>((clock, promotion_lock.ask().await?))
            });
            (place, answered.await.ok().and_then(Result::ok))
        });
        let mut next = None;
        for (place, answered) in join_all(asking).await {
            let confirmed =
                answered.map(|(clock, facts)| (clock, self.answer(place, facts.as_ref())));
            next = self.attempt.confirmed(place, confirmed);
        }
        next.unwrap_or(Next::Decide)
    }

    async fn promote(&mut self, order: attempt::Order<Clock>) -> Next<Clock> {
        let (place, limit) = (order.place, self.limit());
        let node = &self.topology.members[place].node.name;
        tracing::warn!(target: "diesel_replicated", node, "promotion_started");
        let Some(promotion_lock) = self.promotion_locks[place].as_mut() else {
            return self.attempt.recalled(place);
        };
        let order = self.promoter.order(order);
        self.begun = Some(Instant::now());
        let ordered = match timeout(limit, promotion_lock.promote(&order)).await {
            Ok(Ok(true)) => Ordered::Begun,
            Ok(Ok(false)) => Ordered::Outdated,
            Ok(Err(error)) => Ordered::Failed(error.to_string()),
            Err(_) => Ordered::Silent,
        };
        self.void = order.asked.certainly_past(order.valid);
        self.attempt.ordered(place, ordered)
    }

    async fn recall(&mut self, place: usize) -> Next<Clock> {
        if let Some(promotion_lock) = self.promotion_locks[place].take() {
            let node = &self.topology.members[place].node;
            let _ = timeout(self.limit(), promotion_lock.recall(node)).await;
        }
        // Until then the other nodes' locks keep everybody else from acting.
        tokio::time::sleep_until(self.void.into()).await;
        self.attempt.recalled(place)
    }

    async fn watch(&mut self, place: usize) -> Next<Clock> {
        let (limit, begun) = (self.limit(), self.begun.unwrap_or_else(Instant::now));
        let Some(promotion_lock) = self.promotion_locks[place].as_mut() else {
            return self.attempt.recalled(place);
        };
        let told = match timeout(limit, promotion_lock.ask()).await {
            Ok(Ok(facts)) => Ok(facts),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Ok(None),
        };
        let answer = told.as_ref().map_err(Clone::clone);
        let answer = answer.map(|facts| self.answer(place, facts.as_ref()));
        let times = (begun.elapsed(), self.promoter.config.promotion.timeout);
        let next = self.attempt.watched(place, answer, times);
        match (&next, told) {
            (Next::End(End::Promoted { timeline, .. }), Ok(Some(facts))) => {
                let member = &self.topology.members[place];
                let (node, took) = (&member.node.name, begun.elapsed().as_secs_f64());
                tracing::warn!(target: "diesel_replicated", node, timeline, took, "promoted");
                self.promoter.tell(member, facts);
            }
            _ => tokio::time::sleep(PATIENCE).await,
        }
        next
    }

    fn answer(&self, place: usize, facts: Option<&Facts>) -> Option<Answer> {
        facts.map(|facts| answer(facts, &self.topology.members[place], self.topology))
    }
}

/// Another process was first, and does what is to be done.
fn is_a_lost_race(reason: &PromotionRefusal) -> bool {
    match reason {
        PromotionRefusal::Overtaken { .. } => true,
        PromotionRefusal::NoMajority { others, .. } => {
            others.iter().any(|other| other.contains(ANOTHER_PROMOTES))
        }
        _ => false,
    }
}

fn answer(facts: &Facts, member: &Member, topology: &Topology) -> Answer {
    // A node that may not tell its cluster counts as one of this cluster, as everywhere.
    let cluster = facts.cluster.or(topology.cluster()).unwrap_or_default();
    let Place::Standby {
        replayed,
        received,
        receiver,
        receives,
        ..
    } = &facts.place
    else {
        return Answer {
            cluster,
            timeline: facts.timeline,
            role: Role::TakesWrites,
        };
    };
    let mut known = member.clone();
    known.note(facts);
    let replayed = replayed.unwrap_or(Lsn(0));
    let flushed = received.map_or(replayed, |(flushed, _)| flushed);
    let hears = match receiver {
        Some(receiver) => receiver.followed().map(|sender| {
            let is_it = |other: &Member| other.node.pool.connector().settings.host.is_at(&sender);
            Heard {
                from: topology.members.iter().position(is_it),
                ago: receiver.silent_for,
            }
        }),
        // A role that may not see what the node receives cannot say that it hears nothing.
        None => receives.unwrap_or(true).then_some(Heard {
            from: None,
            ago: None,
        }),
    };
    Answer {
        cluster,
        timeline: known.timeline,
        role: Role::Follows {
            has: flushed.max(replayed),
            hears,
            diverged: member.diverged,
        },
    }
}
