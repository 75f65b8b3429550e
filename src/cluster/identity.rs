//! Which names of nodes stand for one server, and to which database they lead.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use super::member::Member;
use crate::config::DeclaredRole;
use crate::node::{Node, Run};

/// What the pool knows of the names.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    /// Two names that reported the same run of a server.
    pairs: Vec<Pair>,
    database: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
struct Pair {
    names: [Arc<Node>; 2],
    run: Run,
    /// When one of them was first heard to report another run.
    parted: Option<Instant>,
}

impl Identities {
    /// Sets `twin` and `elsewhere` of each node.
    pub(super) fn tell(&mut self, members: &mut [Member], primary: Option<&Arc<Node>>) {
        self.compare(members);
        let twins: Vec<_> = members
            .iter()
            .map(|member| self.preferred(member, members, primary))
            .collect();
        for (member, twin) in members.iter_mut().zip(twins) {
            member.twin = twin;
        }
        self.database = database(members).or_else(|| self.database.take());
        for member in members {
            let its = member.database.as_ref();
            let other = |ours: &&Arc<str>| its.is_some_and(|its| its != *ours);
            member.elsewhere = self.database.as_ref().filter(other).cloned();
        }
    }

    /// Whether one name of a pair reports a new run, and the other was not asked since. Its next report decides.
    pub(super) fn are_pending(&self) -> bool {
        self.pairs.iter().any(|pair| pair.parted.is_some())
    }

    /// Finds names of one server.
    ///
    /// After a restart one name reports the new run before the other; they stay a pair meanwhile. If the other name
    /// still reports the old run when it is asked again, the first name leads to another server now.
    fn compare(&mut self, members: &[Member]) {
        let of = |node: &Arc<Node>| members.iter().find(|it| Arc::ptr_eq(&it.node, node));
        self.pairs.retain_mut(|pair| {
            let [Some(one), Some(other)] = pair.names.each_ref().map(of) else {
                return false;
            };
            let stays = |member: &&&Member| member.run == Some(pair.run);
            match [one, other].iter().filter(stays).collect::<Vec<_>>()[..] {
                [] => false,
                [stays] => {
                    let parted = *pair.parted.get_or_insert_with(Instant::now);
                    stays.reports.last().asked < parted
                }
                _ => {
                    pair.parted = None;
                    true
                }
            }
        });
        for (place, member) in members.iter().enumerate() {
            for other in &members[..place] {
                if let Some(run) = member.run.filter(|run| other.run == Some(*run)) {
                    self.pairs
                        .retain(|pair| !pair.is_of(&member.node, &other.node));
                    self.pairs.push(Pair {
                        names: [Arc::clone(&other.node), Arc::clone(&member.node)],
                        run,
                        parted: None,
                    });
                }
            }
        }
    }

    /// The name that the pool uses for this server, if it is not this one.
    fn preferred(
        &self,
        member: &Member,
        members: &[Member],
        primary: Option<&Arc<Node>>,
    ) -> Option<Arc<Node>> {
        if self.pairs.is_empty() {
            return None;
        }
        let is = |member: &Member, node: &Arc<Node>| Arc::ptr_eq(&member.node, node);
        let is_pair = |other: &Member| {
            let mut pairs = self.pairs.iter();
            pairs.any(|pair| pair.is_of(&member.node, &other.node))
        };
        let all = members.iter().enumerate();
        let same = all.filter(|(_, other)| is(other, &member.node) || is_pair(other));
        // It prefers a name that can be reached, then the one in use, then the declared primary, then the first.
        let (_, best) = same.max_by_key(|(place, other)| {
            let used = primary.is_some_and(|node| is(other, node));
            let declared = other.declared == DeclaredRole::Primary;
            (!other.health.is_down(), used, declared, Reverse(*place))
        })?;
        (!is(best, &member.node)).then(|| Arc::clone(&best.node))
    }
}

impl Pair {
    fn is_of(&self, one: &Arc<Node>, other: &Arc<Node>) -> bool {
        let has = |node: &Arc<Node>| self.names.iter().any(|name| Arc::ptr_eq(name, node));
        has(one) && has(other) && !Arc::ptr_eq(one, other)
    }
}

/// The database that is meant: the declared primary's, else that of most nodes.
fn database(members: &[Member]) -> Option<Arc<str>> {
    let declared = |member: &&Member| member.declared == DeclaredRole::Primary;
    let declared = members.iter().find(declared);
    if let Some(told) = declared.and_then(|member| member.database.clone()) {
        return Some(told);
    }
    let told = || members.iter().filter_map(|member| member.database.as_ref());
    let most = told().find(|its| told().filter(|other| other == its).count() * 2 > told().count());
    most.cloned()
}
