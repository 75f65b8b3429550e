//! Who is the primary, by what every node reports.
//!
//! A promotion begins a new timeline. So of two nodes that take writes, the one on the newer timeline was promoted
//! later; see [Timelines](https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES).
//! Nothing here asks anyone or knows the time.

#[cfg(feature = "promotion")]
pub(crate) mod promotion;
mod quorum;
#[cfg(test)]
#[cfg(feature = "promotion")]
mod simulation;
#[cfg(test)]
mod tests;

pub(crate) use quorum::{has_quorum, needed};

use crate::config::DeclaredRole;
use crate::wire::ServerRole;

/// What the election knows of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) declared: DeclaredRole,
    /// The role that the server last reported.
    pub(crate) role: Option<ServerRole>,
    /// It has answered, or failed to, at least once.
    pub(crate) asked: bool,
    /// It is not known to be down.
    pub(crate) reachable: bool,
    /// The system identifier that it reported.
    pub(crate) cluster: Option<u64>,
    /// The timeline that it reported; 0 while that is not known.
    pub(crate) timeline: u32,
    /// It is another name of a server that counts already.
    pub(crate) twin: bool,
    /// Its connections are to another database.
    pub(crate) elsewhere: bool,
}

impl Sight {
    /// The node as the election counts it. A second name of a server counts as nothing.
    fn counted(self) -> Self {
        if !self.twin {
            return self;
        }
        Self {
            declared: DeclaredRole::Unknown,
            role: None,
            asked: true,
            reachable: false,
            cluster: None,
            timeline: 0,
            ..self
        }
    }
}

/// The role of a node among the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// It was not heard of, and nothing was declared.
    #[default]
    Unknown,
    /// The one node that takes writes.
    Primary,
    /// A standby, or a node that was declared a replica and not heard of.
    Replica,
    /// It would take writes, and another primary is not ruled out yet.
    Candidate,
    /// It takes writes, and so does another on the same timeline.
    Rival,
    /// It takes writes, but the cluster has gone on to this timeline.
    Superseded { newest: u32 },
    /// It belongs to another cluster.
    Foreign,
    /// It is another name of a server that the pool uses.
    Twin,
    /// Its connections are to another database than the other nodes'.
    Elsewhere,
}

/// What is remembered of earlier elections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// The place of the primary, if there is one.
    pub(crate) primary: Option<usize>,
    /// The system identifier of the cluster, once it is known.
    pub(crate) cluster: Option<u64>,
    /// The newest timeline that any node of the cluster was ever on.
    pub(crate) newest: u32,
    /// There was a primary once.
    pub(crate) began: bool,
}

/// The primary, and the roles of the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elected {
    pub(crate) past: Past,
    pub(crate) standings: Vec<Standing>,
}

/// Finds the primary.
///
/// - A node of another cluster counts for nothing, nor does a second name of a server.
/// - One whose connections are to another database tells of its server, and is not used.
/// - A node that takes writes on a timeline older than the newest was overtaken. It never becomes the primary again
///   on that timeline.
/// - Of several on the newest timeline the one that is declared the primary is taken, else none:
///   writing to the wrong one is worse than not writing.
/// - A declaration does not help a node whose timeline is not known. If the timeline of another writable node is
///   known, that one rules. If none is known, none of several rules.
/// - The first primary is not known before every node was asked: whoever answers first may be one
///   that was overtaken.
pub(crate) fn elect(all: &[Sight], past: Past) -> Elected {
    let sights: &[Sight] = &all.iter().map(|sight| sight.counted()).collect::<Vec<_>>();
    let past = follow_all(all, past);
    let cluster = past.cluster.or_else(|| cluster_of(sights));
    let of_cluster = |sight: &Sight| is_of(sight, cluster);
    let newest = newest(sights, cluster, past);
    let takes_writes = |sight: &Sight| sight.role == Some(ServerRole::Primary);
    let may_rule = |place: usize| {
        sights.get(place).is_some_and(|sight| {
            let expected = sight.role.is_none() && sight.declared == DeclaredRole::Primary;
            // It does not tell its timeline, and nobody was ever promoted.
            let first = past.primary == Some(place) || !past.began;
            let only_ever = first && newest <= 1;
            let unknown = sight.timeline == 0 && (expected || only_ever);
            let up_to_date = sight.timeline == newest || unknown;
            of_cluster(sight) && (takes_writes(sight) || expected) && up_to_date
        })
    };
    let chosen = choose(sights, past, &may_rule);
    let primary = chosen.filter(|place| !sights[*place].elsewhere);
    let rivals = (0..sights.len())
        .filter(|place| {
            may_rule(*place) && sights[*place].reachable && takes_writes(&sights[*place])
        })
        .count();
    let standing = |(place, sight): (usize, &Sight)| match sight.role {
        _ if primary == Some(place) => Standing::Primary,
        _ if sight.twin => Standing::Twin,
        _ if !of_cluster(sight) => Standing::Foreign,
        _ if sight.elsewhere => Standing::Elsewhere,
        Some(ServerRole::Standby) => Standing::Replica,
        Some(ServerRole::Primary) if sight.timeline != 0 && sight.timeline < newest => {
            Standing::Superseded { newest }
        }
        Some(ServerRole::Primary) if rivals > 1 && may_rule(place) => Standing::Rival,
        Some(ServerRole::Primary) => Standing::Candidate,
        None if sight.declared == DeclaredRole::Replica => Standing::Replica,
        None => Standing::Unknown,
    };
    let standings = sights.iter().enumerate().map(standing).collect();
    let known = primary.and_then(|place| sights.get(place));
    Elected {
        past: Past {
            primary,
            cluster: cluster.filter(|_| {
                past.cluster.is_some() || known.is_some_and(|node| node.cluster.is_some())
            }),
            newest,
            began: past.began || known.is_some_and(takes_writes),
        },
        standings,
    }
}

fn is_of(sight: &Sight, cluster: Option<u64>) -> bool {
    match (sight.cluster, cluster) {
        (Some(its), Some(ours)) => its == ours,
        _ => true,
    }
}

/// The newest timeline. While nobody knows which of several clusters is meant, a timeline tells nothing. If no node
/// may tell its cluster, all count as one cluster, as they were declared.
fn newest(sights: &[Sight], cluster: Option<u64>, past: Past) -> u32 {
    let none_tells = sights.iter().all(|sight| sight.cluster.is_none());
    if cluster.is_none() && !none_tells {
        return past.newest;
    }
    let ours = sights.iter().filter(|sight| is_of(sight, cluster));
    let told = ours.map(|sight| sight.timeline).max();
    told.unwrap_or(0).max(past.newest)
}

/// If every server leads to one other cluster, somebody has put that in the old one's place. Nothing that was known
/// of the old one counts there.
fn follow_all(sights: &[Sight], past: Past) -> Past {
    let servers = || sights.iter().filter(|sight| !sight.twin);
    let mut told = servers().map(|sight| sight.cluster.filter(|_| sight.reachable));
    let next = told.next().flatten().filter(|_| past.cluster.is_some());
    let takes_writes = servers().any(|sight| sight.role == Some(ServerRole::Primary));
    match next {
        Some(_) if next != past.cluster && takes_writes && told.all(|its| its == next) => Past {
            primary: None,
            cluster: next,
            newest: 0,
            began: past.began,
        },
        _ => past,
    }
}

/// The place of the primary among the nodes that may be it.
fn choose(sights: &[Sight], past: Past, may_rule: &impl Fn(usize) -> bool) -> Option<usize> {
    let places = || (0..sights.len()).filter(|place| may_rule(*place));
    let takes_writes = |place: &usize| sights[*place].role == Some(ServerRole::Primary);
    let up = places().filter(|place| sights[*place].reachable && takes_writes(place));
    let (known, unknown): (Vec<usize>, Vec<usize>) =
        up.partition(|place| sights[*place].timeline != 0);
    match (&known[..], &unknown[..]) {
        ([only], _) | ([], [only]) => {
            let all_asked = sights.iter().all(|sight| sight.asked);
            (past.began || all_asked).then_some(*only)
        }
        ([_, _, ..], _) => {
            let declared = |place: &usize| sights[*place].declared == DeclaredRole::Primary;
            known.iter().copied().find(declared)
        }
        ([], [_, _, ..]) => None,
        // It is down. Those who wait for it are told.
        ([], []) => {
            let current = past.primary.filter(|place| may_rule(*place));
            current.or_else(|| places().next())
        }
    }
}

/// The cluster that is meant: the declared primary's, else that of most nodes.
fn cluster_of(sights: &[Sight]) -> Option<u64> {
    let declared = sights
        .iter()
        .find(|sight| sight.declared == DeclaredRole::Primary);
    if let Some(told) = declared.and_then(|sight| sight.cluster) {
        return Some(told);
    }
    let told = || sights.iter().filter_map(|sight| sight.cluster);
    told().find(|id| told().filter(|other| other == id).count() * 2 > told().count())
}
