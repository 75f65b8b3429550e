//! Decides whether a replica may be promoted, and which one.
//!
//! Nothing here asks anyone. The decision rests on what the nodes report after they have agreed: from then on no
//! other process changes them.

pub(crate) mod attempt;
pub(crate) mod follow;
pub(crate) mod switchover;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::needed;
use crate::error::PromotionRefusal as Refusal;
use crate::position::{Lsn, Position};

/// A configured node, as the promoting process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Voter {
    pub(crate) name: String,
    /// The greatest is promoted, if the log does not decide; 0 never is.
    pub(crate) priority: u32,
    /// Whether it agrees, or why not.
    pub(crate) vote: Result<(), String>,
    pub(crate) answer: Option<Answer>,
}

/// What a node reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) cluster: u64,
    pub(crate) timeline: u32,
    pub(crate) role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    TakesWrites,
    Follows {
        /// All of the log that it has, replayed or not.
        has: Lsn,
        /// It receives its log from somebody.
        hears: Option<Heard>,
        /// It is known to be beyond a fork.
        diverged: bool,
    },
}

/// What a standby hears from the node that it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The sender's place among the voters, if it is one of them.
    pub(crate) from: Option<usize>,
    /// How long ago it last heard something, if it tells that.
    pub(crate) ago: Option<Duration>,
}

/// What is known of the cluster.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) cluster: Option<u64>,
    /// The newest timeline that any node was seen on.
    pub(crate) newest: u32,
    /// The place of the last primary among the voters.
    pub(crate) primary: Option<usize>,
    /// How far the primary is known to have written.
    pub(crate) written: Option<Position>,
    /// How many standbys confirm a commit, if the primary has told.
    pub(crate) confirming: Option<usize>,
}

/// What is asked for, and what is tolerated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// The place of the node that is to be promoted; `None` for the best.
    pub(crate) target: Option<usize>,
    /// A replica that heard of the primary within this time bears witness that it lives.
    pub(crate) witness_age: Duration,
    pub(crate) max_loss_bytes: u64,
    /// The operator answers for the primary's death, for the majority and for what is lost.
    pub(crate) forced: bool,
    /// The place of a primary that gives way: the promoting process has fenced it.
    pub(crate) yielding: Option<usize>,
}

/// The place of the node to promote, or everything that speaks against it.
pub(crate) fn candidate(
    voters: &[Voter],
    known: &Known,
    terms: &Terms,
) -> Result<usize, Vec<Refusal>> {
    let mut refusals = against_any(voters, known, terms);
    if !terms.forced {
        if terms.yielding.is_none() {
            refusals.extend(witnesses(voters, known, terms));
        }
        refusals.extend(majority(voters));
        refusals.extend(synchronous(voters, known));
    }
    match choose(voters, known, terms) {
        Ok(place) => {
            if !terms.forced {
                refusals.extend(losses(voters, place, known, terms));
            }
            if refusals.is_empty() {
                return Ok(place);
            }
        }
        Err(refusal) => refusals.push(refusal),
    }
    Err(refusals)
}

/// What must still hold at the node when it carries out the order, which may be long after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Premise {
    /// The order was given lately. Somebody answers for the rest.
    Lately,
    /// And the node has heard nothing of the primary within this time.
    NotHeard(Duration),
    /// And the node has no more log than this: another node only passes log on to it.
    NoMore(Lsn),
}

/// What the decision for the node at this place rests on.
pub(crate) fn premise(voters: &[Voter], place: usize, known: &Known, terms: &Terms) -> Premise {
    if terms.forced || terms.yielding.is_some() {
        return Premise::Lately;
    }
    let answer = voters.get(place).and_then(|voter| voter.answer);
    match answer.map(|answer| answer.role) {
        Some(Role::Follows {
            has,
            hears: Some(Heard {
                from: Some(from), ..
            }),
            ..
        }) if relays(voters, from, known) => Premise::NoMore(has),
        _ => Premise::NotHeard(terms.witness_age),
    }
}

fn is_of(known: &Known, answer: &Answer) -> bool {
    known
        .cluster
        .is_none_or(|cluster| cluster == answer.cluster)
}

/// What no operator can decide: there is a primary.
fn against_any(voters: &[Voter], known: &Known, terms: &Terms) -> Vec<Refusal> {
    let against = |(place, voter): (usize, &Voter)| {
        let answer = voter.answer.filter(|answer| is_of(known, answer))?;
        let node = voter.name.clone();
        if answer.timeline > known.newest {
            let timeline = answer.timeline;
            return Some(Refusal::Overtaken { node, timeline });
        }
        let rules = answer.role == Role::TakesWrites && answer.timeline == known.newest;
        (rules && terms.yielding != Some(place)).then_some(Refusal::PrimaryAlive { node })
    };
    voters.iter().enumerate().filter_map(against).collect()
}

/// Whether the node at this place passes log on, by its own report.
fn relays(voters: &[Voter], place: usize, known: &Known) -> bool {
    let sender = voters.get(place).and_then(|voter| voter.answer);
    let sender = sender.filter(|answer| is_of(known, answer));
    sender.is_some_and(|sender| sender.role != Role::TakesWrites || sender.timeline < known.newest)
}

/// Replicas that hear of the primary, though this process may not.
///
/// A replica that another replica feeds does not know how old its log is. The sender's own report of now tells
/// whether it passes log on or rules. What was known of it may be older than its promotion.
fn witnesses(voters: &[Voter], known: &Known, terms: &Terms) -> Vec<Refusal> {
    let answer = |voter: &Voter| voter.answer.filter(|answer| is_of(known, answer));
    let hears = |voter: &Voter| {
        // On an older timeline a replica hears of a primary that was overtaken.
        let on_newest = |answer: &Answer| answer.timeline >= known.newest;
        match answer(voter).filter(on_newest)?.role {
            Role::Follows {
                hears: Some(Heard { from, ago }),
                diverged: false,
                ..
            } if !from.is_some_and(|from| relays(voters, from, known))
                && ago.is_none_or(|ago| ago < terms.witness_age) =>
            {
                let by = voter.name.clone();
                Some(Refusal::PrimaryHeard { by, ago })
            }
            _ => None,
        }
    };
    voters.iter().filter_map(hears).collect()
}

fn majority(voters: &[Voter]) -> Option<Refusal> {
    let needed = needed(voters.len());
    let agree = voters.iter().filter(|voter| voter.vote.is_ok()).count();
    let why = |voter: &Voter| {
        let error = voter.vote.as_ref().err()?;
        Some(format!("`{}`: {error}", voter.name))
    };
    (agree < needed).then(|| Refusal::NoMajority {
        agree,
        needed,
        others: voters.iter().filter_map(why).collect(),
    })
}

/// If as many replicas are not heard as confirm a commit, these may be the ones that confirmed.
///
/// A replica that receives nothing reports the timeline of its last restartpoint. It may have confirmed on a newer
/// one, so it counts as not heard.
fn synchronous(voters: &[Voter], known: &Known) -> Option<Refusal> {
    let is_heard = |answer: Answer| match answer.role {
        Role::Follows {
            hears, diverged, ..
        } => answer.timeline >= known.newest || hears.is_some() || diverged,
        Role::TakesWrites => false,
    };
    let unheard = voters.iter().enumerate().filter(|(place, voter)| {
        known.primary != Some(*place) && !voter.answer.is_some_and(is_heard)
    });
    let nodes: Vec<String> = unheard.map(|(_, voter)| voter.name.clone()).collect();
    let confirming = known.confirming;
    // If the number is not known, one replica alone may have confirmed.
    let fewest = confirming.unwrap_or(1);
    (fewest > 0 && nodes.len() >= fewest)
        .then_some(Refusal::SynchronousMissing { nodes, confirming })
}

/// All of the log that a replica on the newest timeline has.
fn has(voter: &Voter, known: &Known) -> Option<Lsn> {
    let answer = voter.answer.filter(|answer| is_of(known, answer))?;
    match answer.role {
        Role::Follows { has, diverged, .. } if !diverged && answer.timeline == known.newest => {
            Some(has)
        }
        _ => None,
    }
}

fn choose(voters: &[Voter], known: &Known, terms: &Terms) -> Result<usize, Refusal> {
    if let Some(voter) = terms.target.and_then(|place| voters.get(place)) {
        let why = match voter.answer {
            None => "does not answer",
            Some(answer) if !is_of(known, &answer) => "belongs to another cluster",
            Some(Answer {
                role: Role::TakesWrites,
                ..
            }) => "takes writes already",
            Some(_) if has(voter, known).is_none() => "is not on the newest timeline",
            Some(_) if voter.priority == 0 && !terms.forced => {
                "is not to be promoted (`promotion_priority` is 0)"
            }
            // Another process may be promoting this node.
            Some(_) if voter.vote.is_err() => "does not agree",
            Some(_) => {
                return terms.target.ok_or(Refusal::NoCandidate {
                    timeline: known.newest,
                });
            }
        };
        let node = voter.name.clone();
        return Err(Refusal::NotPromotable { node, why });
    }
    let may = |(_, voter): &(usize, &Voter)| voter.priority > 0 && voter.vote.is_ok();
    let best = voters
        .iter()
        .enumerate()
        .filter(may)
        .filter_map(|(place, voter)| Some((has(voter, known)?, voter.priority, place)))
        // Of equals the one that is configured first: all processes choose the same.
        .max_by_key(|(has, priority, place)| (*has, *priority, std::cmp::Reverse(*place)));
    best.map(|(.., place)| place).ok_or(Refusal::NoCandidate {
        timeline: known.newest,
    })
}

fn losses(voters: &[Voter], place: usize, known: &Known, terms: &Terms) -> Vec<Refusal> {
    let allowed = terms.max_loss_bytes;
    let Some((node, own)) = voters.get(place).and_then(|voter| {
        let own = has(voter, known)?;
        Some((voter.name.clone(), own))
    }) else {
        return Vec::new();
    };
    let more = |lsn: Lsn| Some(lsn.0.saturating_sub(own.0)).filter(|bytes| *bytes > allowed);
    let furthest = voters
        .iter()
        .filter_map(|voter| Some((has(voter, known)?, voter)));
    let behind = furthest
        .max_by_key(|(has, _)| *has)
        .and_then(|(lsn, other)| {
            Some(Refusal::Behind {
                node: node.clone(),
                other: other.name.clone(),
                bytes: more(lsn)?,
                allowed,
            })
        });
    let written = known.written.filter(|it| it.timeline == known.newest);
    let lost = written.and_then(|written| {
        let bytes = more(written.lsn)?;
        Some(Refusal::WouldLose {
            node: node.clone(),
            bytes,
            allowed,
        })
    });
    behind.into_iter().chain(lost).collect()
}
