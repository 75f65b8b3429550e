//! The part of each page that tells who answered.

use diesel_replicated::status::{NodeHealth, NodeKind};
use diesel_replicated::{Consistency, PoolStatus};
use maud::{Markup, html};

use super::super::served::{Served, Step};

/// Who answered what, on this page and before.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) steps: Vec<Step>,
    pub(crate) served: Served,
    pub(crate) pool: PoolStatus,
}

impl Report {
    /// One line for the top of the page.
    pub(crate) fn summary(&self) -> Markup {
        html! {
            p.summary {
                "Answered by " (answerers(&self.steps)) ". "
                @if let Some(waited) = self.longest_wait() {
                    "Waited " (waited) " for a replica to have it. "
                }
                a href="#served" { "Details" }
            }
        }
    }

    pub(crate) fn details(&self) -> Markup {
        html! {
            section #served aria-labelledby="served-title" {
                h2 #served-title { "Who answered" }
                p {
                    "What you have written is on every page that you see from then on, whichever node "
                    "answers: a cookie tells how far a replica must be. If none is that far in time, "
                    "the primary answers."
                }
                (self.queries())
                (self.nodes())
                (self.requests())
            }
        }
    }

    fn longest_wait(&self) -> Option<String> {
        let waits = self.steps.iter().filter(|step| step.has_waited());
        let longest = waits.max_by(|one, other| one.waited_ms.total_cmp(&other.waited_ms));
        longest.map(wait)
    }

    fn queries(&self) -> Markup {
        html! {
            div.wide role="region" aria-label="Queries of this page" tabindex="0" {
                table {
                    caption { "The queries of this page" }
                    thead {
                        tr {
                            th scope="col" { "Query" } th scope="col" { "Node" }
                            th scope="col" { "Why" } th scope="col" { "Had to show" }
                            th.number scope="col" { "Waited" }
                        }
                    }
                    tbody {
                        @for step in &self.steps {
                            tr {
                                th scope="row" { (step.query) }
                                td { (node(&step.node, step.kind)) }
                                td { (step.reason) }
                                td { (level(step.level)) }
                                td.number { @if step.has_waited() { (wait(step)) } @else { "–" } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn nodes(&self) -> Markup {
        let most = self
            .served
            .nodes
            .values()
            .map(|counts| counts.all())
            .max()
            .unwrap_or(0)
            .max(1);
        html! {
            div.wide role="region" aria-label="Nodes" tabindex="0" {
                table {
                    caption { "The nodes, and what they answered before this page" }
                    thead {
                        tr {
                            th scope="col" { "Node" } th scope="col" { "State" }
                            th.number scope="col" { "Weight" } th.number scope="col" { "Queries" }
                            th scope="col" { span.unseen { "Share" } }
                        }
                    }
                    tbody {
                        @for state in &self.pool.nodes {
                            @let count = self.served.nodes.get(&state.name).map_or(0, |counts| counts.all());
                            tr {
                                th scope="row" {
                                    (node(&state.name, state.kind.unwrap_or(NodeKind::Replica)))
                                }
                                td { (health(state.health)) }
                                td.number { (state.weight) }
                                td.number { (count) }
                                td.bar { progress max=(most) value=(count) aria-hidden="true" {} }
                            }
                        }
                    }
                }
            }
        }
    }

    fn requests(&self) -> Markup {
        html! {
            @if !self.served.recent.is_empty() {
                h3 { "Before this page" }
                ol.requests {
                    @for answered in &self.served.recent {
                        li {
                            p { code { (answered.request) } " " (answered.status) }
                            p.meta {
                                (answered.at.format("%H:%M:%S")) " UTC, answered by "
                                (answerers(&answered.steps))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Each node with each of its reasons once.
fn answerers(steps: &[Step]) -> Markup {
    let mut answerers: Vec<(&str, NodeKind, &str)> = Vec::new();
    for step in steps {
        let answerer = (step.node.as_str(), step.kind, step.reason.as_str());
        if !answerers.contains(&answerer) {
            answerers.push(answerer);
        }
    }
    html! {
        @for (place, (name, kind, reason)) in answerers.iter().enumerate() {
            @if place > 0 { ", " }
            (node(name, *kind)) " (" (reason) ")"
        }
    }
}

fn node(name: &str, kind: NodeKind) -> Markup {
    let class = match kind {
        NodeKind::Primary => "node primary",
        NodeKind::Replica => "node replica",
    };
    html! { span class=(class) { (name) } }
}

fn wait(step: &Step) -> String {
    format!("{:.1} ms", step.waited_ms)
}

/// What a level of consistency promises, in words.
fn level(level: Consistency) -> String {
    match level {
        Consistency::Eventual => "whatever is there".to_owned(),
        Consistency::BoundedStaleness(bound) => format!("nothing older than {bound:?}"),
        Consistency::ReadYourWrites => "all that you wrote".to_owned(),
        Consistency::Causal => "all that you wrote or saw".to_owned(),
        Consistency::Strong => "all that anyone wrote".to_owned(),
        other => other.to_string(),
    }
}

fn health(health: NodeHealth) -> String {
    match health {
        NodeHealth::Unknown => "not known yet".to_owned(),
        known => known.to_string(),
    }
}
