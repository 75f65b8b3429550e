//! Promoting a replica: asking every node to agree, deciding by what they say, and acting.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::manager::Command;
use super::member::Member;
use super::outlook::{Outlook, told};
use super::topology::Topology;
use crate::config::{HealthConfig, PromotionConfig};
use crate::election::promotion::{
    Answer, Heard, Known, Premise, Role, Terms, Voter, candidate, premise,
};
use crate::error::{Error, PromotionRefusal};
use crate::guarantee::Board;
use crate::node::{self, Ballot, Clock, Facts, Place};
use crate::position::{Lsn, Sample};
use crate::status::{Door, Event, Promoted};

/// How often a server that was promoted is asked whether it has come to that.
const PATIENCE: Duration = Duration::from_millis(10);

/// What a node says that has agreed with somebody else.
pub(super) const ANOTHER_PROMOTES: &str = "another process is promoting";

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// The node to promote; `None` for the best.
    pub(crate) target: Option<String>,
    /// The operator answers for the primary's death, for the majority and for what is lost.
    pub(crate) forced: bool,
    /// A primary that gives way.
    pub(crate) yielding: Option<String>,
}

impl Order {
    pub(crate) fn to(name: &str, forced: bool) -> Self {
        Self {
            target: Some(name.to_owned()),
            forced,
            yielding: None,
        }
    }

    /// To promote it where `old` gives way.
    pub(super) fn in_the_place_of(old: &Member, name: &str) -> Self {
        Self {
            yielding: Some(old.node.name.clone()),
            ..Self::to(name, false)
        }
    }
}

/// Promotes replicas. Each cluster has one.
#[derive(Clone)]
pub(crate) struct Promoter {
    pub(super) topology: watch::Receiver<Arc<Topology>>,
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) board: Arc<Board>,
    pub(super) config: Arc<PromotionConfig>,
    pub(super) health: Arc<HealthConfig>,
    pub(super) door: Door,
    pub(super) outlook: Arc<Outlook>,
    /// Held by who replaces a primary that lives.
    pub(super) replacing: Arc<tokio::sync::Mutex<()>>,
}

/// A node that was asked to agree.
struct Asked {
    ballot: Result<Ballot, String>,
    voter: Voter,
    /// Its clock, before it was asked where it is for the last time.
    clock: Option<Clock>,
}

impl Promoter {
    /// Promotes a replica, if nothing speaks against it.
    pub(crate) async fn promote(&self, order: &Order) -> Result<Promoted, Error> {
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
            witness_age: self.config.witness_age,
            max_loss_bytes: self.config.max_loss_bytes,
            forced: order.forced,
        };
        // The locks are held until the end of this call, whichever it is.
        let mut asked = self.ask_all(&topology).await;
        let voters: Vec<Voter> = asked.iter().map(|asked| asked.voter.clone()).collect();
        let known = self.known(&topology);
        let place = match candidate(&voters, &known, &terms) {
            Ok(place) => place,
            Err(reasons) => return Err(self.refused(reasons, order.target.is_some())),
        };
        let node = &topology.members[place];
        let Asked { ballot, clock, .. } = asked.swap_remove(place);
        match (ballot, clock) {
            (Ok(ballot), Some(clock)) => {
                let rests_on = premise(&voters, place, &known, &terms);
                let order = self.order(rests_on, clock);
                self.act(node, ballot, order, known.newest).await
            }
            (Err(cause), _) => Err(self.failed(node, cause)),
            (Ok(_), None) => Err(self.failed(node, "it did not tell its time".to_owned())),
        }
    }

    /// What is sent to the node. It is void when who sent it does not wait for it any more.
    fn order(&self, rests_on: Premise, asked: Clock) -> node::Order {
        let (not_heard, no_more) = match rests_on {
            Premise::Lately => (None, None),
            Premise::NotHeard(age) => (Some(age), None),
            Premise::NoMore(has) => (None, Some(has)),
        };
        node::Order {
            asked,
            // The others are asked as long as this, and then this node has as long to hear of it.
            valid: self.health.timeout.saturating_mul(2),
            not_heard,
            no_more,
        }
    }

    /// Somebody asked for it and is told each time; else it is told once for as long as it stays the same.
    fn refused(&self, reasons: Vec<PromotionRefusal>, asked_for: bool) -> Error {
        if asked_for || self.outlook.refused(&reasons) {
            let reason = told(&reasons);
            if reasons.iter().any(is_a_lost_race) {
                tracing::info!(target: "diesel_replicated", reason, "promotion_refused");
            } else {
                tracing::warn!(target: "diesel_replicated", reason, "promotion_refused");
            }
            self.door.ring(Event::PromotionRefused {
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
        self.door.ring(Event::PromotionFailed {
            at: SystemTime::now(),
            node: node.clone(),
            cause: cause.clone(),
        });
        Error::PromotionFailed { node, cause }
    }

    /// Once the node has begun it cannot be taken back.
    async fn act(
        &self,
        member: &Member,
        mut ballot: Ballot,
        order: node::Order,
        newest: u32,
    ) -> Result<Promoted, Error> {
        let node = member.node.name.clone();
        tracing::warn!(target: "diesel_replicated", node, "promotion_started");
        let begun = Instant::now();
        match timeout(self.health.timeout, ballot.promote(&order)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                return Err(self.refused(vec![PromotionRefusal::Outdated { node }], true));
            }
            Ok(Err(error)) => return Err(self.failed(member, error.to_string())),
            Err(_) => {
                let void = order.asked.certainly_past(order.valid);
                let _ = timeout(self.health.timeout, ballot.recall(&member.node)).await;
                // Until then the others' locks keep everybody else from acting.
                tokio::time::sleep_until(void.into()).await;
                return Err(self.failed(member, "no answer to `pg_promote`".to_owned()));
            }
        }
        while begun.elapsed() < self.config.timeout {
            let facts = match timeout(self.health.timeout, ballot.ask()).await {
                Ok(Ok(facts)) => facts,
                Ok(Err(error)) => return Err(self.failed(member, error.to_string())),
                Err(_) => None,
            };
            if let Some(facts) = facts.filter(|facts| rules(facts, newest)) {
                let timeline = facts.timeline;
                self.tell(member, facts);
                tracing::warn!(target: "diesel_replicated", node, timeline, took = begun.elapsed().as_secs_f64(), "promoted");
                let at = SystemTime::now();
                self.door.ring(Event::Promoted {
                    at,
                    node: node.clone(),
                    timeline,
                });
                return Ok(Promoted { node, timeline });
            }
            tokio::time::sleep(PATIENCE).await;
        }
        let cause = format!("it does not take writes after {:?}", self.config.timeout);
        Err(self.failed(member, cause))
    }

    /// The manager need not wait to hear it from a watcher.
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
        self.board.with(|view| Known {
            cluster: topology.cluster(),
            newest: topology.timeline(),
            primary: topology.members.iter().position(is_it),
            written: view.history.latest().map(Sample::durable),
            confirming: view.synchronous_standbys,
        })
    }

    /// Connects to all at once, then has them agree one after the other, always in the same order:
    /// two processes that begin at the same time do not each get a part.
    async fn ask_all(&self, topology: &Topology) -> Vec<Asked> {
        let opening = topology.members.iter().map(|member| async move {
            let opened = Ballot::open(&member.node, &self.config.database);
            match timeout(self.health.timeout, opened).await {
                Ok(Ok(ballot)) => Ok(ballot),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", self.health.timeout)),
            }
        });
        let ballots = join_all(opening).await;
        let mut asked = Vec::new();
        for (member, ballot) in topology.members.iter().zip(ballots) {
            asked.push(self.ask(member, ballot, topology).await);
        }
        // The first to agree may have crashed since, and its lock with it.
        let members = topology.members.iter();
        let again = asked.iter_mut().zip(members);
        join_all(again.map(|(asked, member)| self.still_agrees(asked, member, topology))).await;
        asked
    }

    /// Asks once more who has agreed: after all have, and so that the answers are of one moment.
    async fn still_agrees(&self, asked: &mut Asked, member: &Member, topology: &Topology) {
        if let (Ok(ballot), Ok(())) = (&mut asked.ballot, &asked.voter.vote) {
            let answered = timeout(self.health.timeout, async {
                let clock = ballot.clock().await?;
                Ok::<_, diesel::result::Error>((clock, ballot.ask().await?))
            });
            match answered.await {
                Ok(Ok((clock, facts))) => {
                    asked.clock = Some(clock);
                    asked.voter.answer = facts.map(|facts| answer(&facts, member, topology));
                }
                _ => asked.voter.vote = Err("its agreement was lost".to_owned()),
            }
        }
    }

    async fn ask(
        &self,
        member: &Member,
        ballot: Result<Ballot, String>,
        topology: &Topology,
    ) -> Asked {
        let mut voter = Voter {
            name: member.node.name.clone(),
            priority: match member.elsewhere {
                None => member.node.pool.connector().settings.promotion_priority,
                // It is of no use to this pool, whatever it is to others.
                Some(_) => 0,
            },
            vote: Ok(()),
            answer: None,
        };
        let mut ballot = match ballot {
            Ok(ballot) => ballot,
            Err(cause) => {
                voter.vote = Err(cause.clone());
                return Asked {
                    ballot: Err(cause),
                    voter,
                    clock: None,
                };
            }
        };
        let answered = timeout(self.health.timeout, async {
            let taken = ballot.take().await?;
            // Asked after it has agreed: no other process changes it from then on.
            Ok::<_, diesel::result::Error>((taken, ballot.ask().await?))
        });
        match answered.await {
            Ok(Ok((taken, facts))) => {
                if !taken {
                    voter.vote = Err(ANOTHER_PROMOTES.to_owned());
                }
                voter.answer = facts.map(|facts| answer(&facts, member, topology));
            }
            Ok(Err(error)) => voter.vote = Err(error.to_string()),
            Err(_) => voter.vote = Err(format!("no answer within {:?}", self.health.timeout)),
        }
        Asked {
            ballot: Ok(ballot),
            voter,
            clock: None,
        }
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

fn rules(facts: &Facts, newest: u32) -> bool {
    matches!(facts.place, Place::Primary { .. }) && facts.timeline > newest
}

fn answer(facts: &Facts, member: &Member, topology: &Topology) -> Answer {
    // One that may not tell is taken for one of this cluster, as everywhere.
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
        // Who may not see what it receives cannot say that it hears nothing.
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
            stray: member.stray,
        },
    }
}
