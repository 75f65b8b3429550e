//! What keeps the pool from doing all that it could.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::member::{Member, SEVERAL_SERVERS};
use super::topology::{Gate, Topology};
use crate::election::Standing;
use crate::status::{Degradation, Degraded, Event, EventBus, FollowingState, PromotionStatus};
use crate::wire::Pooling;

/// A commit that waits longer for a synchronous standby is reported.
const LONG: Duration = Duration::from_secs(1);

/// All reasons that hold now.
pub(crate) fn degraded(
    topology: &Topology,
    zones: &[String],
    promotion: &PromotionStatus,
    learned: usize,
) -> Vec<Degraded> {
    let mut all: Vec<Degraded> = topology.members.iter().flat_map(of_node).collect();
    if topology.is_paused() {
        let detail = "somebody has paused new writes; `resume_writes` lets them go on";
        all.push(Degraded::of_pool(Degradation::Paused, detail));
    }
    if let Gate::NoQuorum { answer, needed } = topology.gate {
        let detail = format!("{answer} nodes answer, and {needed} have to for writes");
        all.push(Degraded::of_pool(Degradation::NoQuorum, detail));
    }
    if promotion.automatic && !promotion.hindrances.is_empty() {
        let detail = promotion.hindrances.join("; ");
        all.push(Degraded::of_pool(Degradation::PromotionUnable, detail));
    }
    let left = promotion.following.iter();
    for left in left.filter(|it| it.state == FollowingState::Left) {
        let detail = left.cause.clone().unwrap_or_default();
        all.push(Degraded::of(&left.node, Degradation::StandbyLeft, detail));
    }
    all.extend(no_preferred_zone(topology, zones));
    if learned > 0 {
        let detail = format!(
            "{learned} statements that look like reads were refused by replicas: `status().learned`"
        );
        all.push(Degraded::of_pool(Degradation::Learned, detail));
    }
    all
}

/// Whoever misspells a zone would read everywhere, and think that it is near.
fn no_preferred_zone(topology: &Topology, zones: &[String]) -> Option<Degraded> {
    let members = &topology.members;
    let preferred = |member: &Member| member.node.distance < zones.len();
    if zones.is_empty() || members.is_empty() || members.iter().any(preferred) {
        return None;
    }
    let zone = |member: &Member| member.node.zone.as_deref().map(str::to_owned);
    let known: BTreeSet<String> = members.iter().filter_map(zone).collect();
    let known = match known.is_empty() {
        true => "no node tells a zone".to_owned(),
        false => format!("nodes are in {}", Vec::from_iter(known).join(", ")),
    };
    let zones = zones.join(", ");
    let detail = format!(
        "`prefer_zones` is {zones}, and no node is there; {known}: give nodes their `zone`, or mend the name"
    );
    Some(Degraded::of_pool(Degradation::NoPreferredZone, detail))
}

fn of_node(member: &Member) -> Vec<Degraded> {
    let name = &member.node.name;
    let of = |reason, detail: String| Degraded::of(name, reason, detail);
    if is_unused(member.standing) {
        return vec![of(Degradation::NodeUnused, member.what())];
    }
    if !member.is_of_use() {
        return Vec::new();
    }
    let last = member.reports.last();
    let limits = last.limits.iter().map(|limit| {
        let detail = format!("{}: {}; {}", limit.right, limit.costs, limit.grant);
        of(Degradation::RightMissing, detail)
    });
    let mut all: Vec<Degraded> = limits.collect();
    if member.leads_to_several() {
        all.push(of(Degradation::SeveralServers, SEVERAL_SERVERS.to_owned()));
    }
    all.extend(of_pooler(member).map(|detail| of(Degradation::Pooler, detail.to_owned())));
    if let Some(cause) = member.health.hindrance() {
        all.push(of(Degradation::CannotGrow, cause.to_owned()));
    }
    if let Some(error) = last.error {
        all.push(of(Degradation::NotAsked, error.to_string()));
    } else if member.timeline == 0 && member.has_reported() {
        let detail = "it does not tell on which timeline it is, so that after a failover it serves less than it \
                      could";
        all.push(of(Degradation::TimelineUntold, detail.to_owned()));
    }
    if let Some(wait) = last.commits_wait.filter(|wait| *wait > LONG) {
        let detail = format!(
            "commits wait for a synchronous standby, one since {} s; see `synchronous_standby_names`",
            wait.as_secs()
        );
        all.push(of(Degradation::CommitsWait, detail));
    }
    if member.standing == Standing::Primary && member.fenced {
        all.push(of(Degradation::Fenced, member.what()));
    }
    all
}

/// What a pooler on the way to a node costs.
fn of_pooler(member: &Member) -> Option<&'static str> {
    let connector = member.node.pool.connector();
    match connector.pooling() {
        Pooling::Unknown => Some(
            "a pooler is on the way, and its mode is not known, so nothing is done that needs a connection for itself: \
             write `pooler=session` or `pooler=transaction` into the URL",
        ),
        Pooling::Transaction if !connector.vouches() => Some(
            "its pooler gives each transaction another server connection, so where it is cannot be asked: give the node \
             a URL that goes around the pooler, by `NodeConfig::monitor`",
        ),
        _ => None,
    }
}

fn is_unused(standing: Standing) -> bool {
    matches!(
        standing,
        Standing::Foreign
            | Standing::Twin
            | Standing::Elsewhere
            | Standing::Rival
            | Standing::Superseded { .. }
    )
}

/// Tells which reasons have begun and which are over since the last look.
pub(super) fn tell_changes(before: &[Degraded], now: &[Degraded], event_bus: &EventBus) {
    let at = SystemTime::now();
    for what in now.iter().filter(|it| !has(before, it)) {
        if is_told_here(what.reason) {
            let (node, reason, cause) = (&what.node, what.reason.as_str(), &what.detail);
            tracing::warn!(target: "diesel_replicated", node, reason, cause, "degraded");
        }
        let what = what.clone();
        event_bus.send(Event::Degraded { at, what });
    }
    for what in before.iter().filter(|it| !has(now, it)) {
        let (node, reason) = (&what.node, what.reason.as_str());
        tracing::info!(target: "diesel_replicated", node, reason, "degradation_over");
        let what = what.clone();
        event_bus.send(Event::DegradationOver { at, what });
    }
}

fn has(all: &[Degraded], one: &Degraded) -> bool {
    let same = |it: &Degraded| {
        let right = it.reason != Degradation::RightMissing || it.detail == one.detail;
        it.node == one.node && it.reason == one.reason && right
    };
    all.iter().any(same)
}

/// The others are told where they are found out, at once.
const fn is_told_here(reason: Degradation) -> bool {
    matches!(
        reason,
        Degradation::TimelineUntold
            | Degradation::CommitsWait
            | Degradation::SeveralServers
            | Degradation::Pooler
            | Degradation::NoPreferredZone
    )
}
