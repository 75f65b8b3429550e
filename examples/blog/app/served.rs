//! Which node served what: collected for each request, counted, and sent along as a header.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use chrono::{DateTime, Utc};
use diesel_replicated::status::{NodeKind, RouteReason};
use diesel_replicated::{Consistency, ReplicatedConnection};
use serde::Serialize;

use super::routes::App;

/// How many requests are remembered.
const RECENT: usize = 8;

/// One query of a request, and who answered it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) query: &'static str,
    pub(crate) node: String,
    pub(crate) kind: NodeKind,
    pub(crate) reason: String,
    pub(crate) write: bool,
    /// How long it waited for a replica to have what it had to see.
    pub(crate) waited_ms: f64,
    /// What it had to see.
    pub(crate) level: Consistency,
}

impl Step {
    pub(crate) fn has_waited(&self) -> bool {
        self.waited_ms > 0.0
    }
}

/// The queries of one request so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trail(Arc<Mutex<Vec<Step>>>);

impl Trail {
    /// Notes who served the last statement of the connection, under a name that people know.
    /// For a write that comes before its error is looked at: who refused it is of interest too.
    pub(crate) fn note(&self, query: &'static str, conn: &ReplicatedConnection) {
        if let Some(route) = conn.last_route() {
            lock(&self.0).push(Step {
                query,
                reason: route.reason.to_string().replace('_', " "),
                write: is_write(route.reason),
                node: route.node,
                kind: route.kind,
                waited_ms: route.waited.as_secs_f64() * 1000.0,
                level: conn.consistency(),
            });
        }
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        lock(&self.0).clone()
    }
}

/// A request that has been answered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answered {
    pub(crate) at: DateTime<Utc>,
    pub(crate) request: String,
    pub(crate) status: u16,
    pub(crate) steps: Vec<Step>,
}

/// How many queries a node has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

impl Counts {
    pub(crate) fn all(self) -> u64 {
        self.reads + self.writes
    }
}

/// The counts of each node, by its name.
pub(crate) type Counters = BTreeMap<String, Counts>;

/// How often reads have waited for a replica to have what they had to see, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Waits {
    reads: u64,
    /// Of these, those that had to wait.
    waited: u64,
    seconds: f64,
}

/// What has been served since the start.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Served {
    pub(crate) nodes: Counters,
    pub(crate) waits: Waits,
    /// The last requests, newest first.
    pub(crate) recent: VecDeque<Answered>,
}

impl Served {
    fn count(&mut self, node: String, write: bool, waited: f64) {
        let counts = self.nodes.entry(node).or_default();
        if write {
            counts.writes += 1;
            return;
        }
        counts.reads += 1;
        self.waits.reads += 1;
        self.waits.waited += u64::from(waited > 0.0);
        self.waits.seconds += waited;
    }
}

/// [`Served`], shared by all requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Served>>);

impl Log {
    pub(crate) fn read(&self) -> Served {
        lock(&self.0).clone()
    }

    pub(crate) fn counters(&self) -> (Counters, Waits) {
        let served = lock(&self.0);
        (served.nodes.clone(), served.waits)
    }

    /// Counts the last statement of the connection, for what no request asked for.
    pub(crate) fn count(&self, conn: &ReplicatedConnection) {
        if let Some(route) = conn.last_route() {
            let waited = route.waited.as_secs_f64();
            lock(&self.0).count(route.node, is_write(route.reason), waited);
        }
    }

    fn add(&self, request: String, status: StatusCode, steps: Vec<Step>) {
        let mut served = lock(&self.0);
        for step in &steps {
            served.count(step.node.clone(), step.write, step.waited_ms / 1000.0);
        }
        served.recent.truncate(RECENT - 1);
        served.recent.push_front(Answered {
            at: Utc::now(),
            request,
            status: status.as_u16(),
            steps,
        });
    }
}

/// Gives each request a [`Trail`], and writes down what has become of it.
pub(crate) async fn record(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let trail = Trail::default();
    request.extensions_mut().insert(trail.clone());
    let name = format!("{} {}", request.method(), request.uri().path());
    let mut response = next.run(request).await;
    let steps = trail.steps();
    if steps.is_empty() {
        return response;
    }
    let header: Vec<String> = steps
        .iter()
        .map(|step| match step.has_waited() {
            true => format!(
                "{} ({}; waited {:.1} ms)",
                step.node, step.reason, step.waited_ms
            ),
            false => format!("{} ({})", step.node, step.reason),
        })
        .collect();
    // A node may have a name that no header can carry.
    if let Ok(value) = HeaderValue::from_str(&header.join(", ")) {
        response.headers_mut().insert("x-served-by", value);
    }
    app.log.add(name, response.status(), steps);
    response
}

/// Whether a statement that went to the primary for this reason changes something. The blog's
/// transactions do: what is seen of them is their COMMIT.
fn is_write(reason: RouteReason) -> bool {
    matches!(
        reason,
        RouteReason::Write | RouteReason::InTransaction | RouteReason::TransactionControl
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
