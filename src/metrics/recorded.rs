//! Hands what is measured to the recorder. Handles are kept, so that a statement costs no look-up of names.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Unit, with_recorder,
};
use parking_lot::{Mutex, RwLock};

use super::instruments as names;
use super::{DirectionState, InstrumentKind, NodeState, PoolState, Route};
use crate::error::Outcome;
use crate::route::{NodeKind, RouteReason};

const METADATA: Metadata<'static> =
    Metadata::new("diesel_replicated", Level::INFO, Some(module_path!()));

/// How many SQLSTATEs are told apart, of PostgreSQL's classes and of others.
const CODES: usize = 100;

/// The classes of <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
const CLASSES: [&str; 44] = [
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22",
    "23", "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40",
    "42", "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX",
];

/// Stands for a recorder, as long as it is the one that is installed.
type RecorderId = usize;

/// The recorder that is installed. `None` if there is none: the facade's own has no fields.
fn recorder() -> Option<RecorderId> {
    with_recorder(|recorder| {
        let there = size_of_val(recorder) > 0;
        there.then(|| std::ptr::from_ref(recorder).cast::<()>().addr())
    })
}

pub(crate) fn is_recording() -> bool {
    recorder().is_some()
}

/// What one node's statements and connections are measured by.
#[derive(Debug)]
pub(crate) struct NodeMeter {
    name: Arc<str>,
    address: Arc<str>,
    port: u16,
    handles: RwLock<Option<(RecorderId, Handles)>>,
}

#[derive(Debug)]
struct Handles {
    operation: Histogram,
    pending: Gauge,
    timeouts: Counter,
    create: Histogram,
    wait: Histogram,
    used: Histogram,
    /// By kind and reason.
    statements: [[OnceLock<Counter>; RouteReason::ALL.len()]; 2],
    held_back: [OnceLock<Counter>; 2],
}

impl NodeMeter {
    pub(crate) fn new(name: &str, address: &str, port: u16) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            port,
            handles: RwLock::default(),
        }
    }

    /// A statement has succeeded.
    pub(crate) fn succeeded(&self, route: Route, took: Duration) {
        self.with(|handles| {
            handles.operation.record(took);
            let kind = usize::from(route.kind == NodeKind::Replica);
            let count = handles.statements[kind].get(route.reason as usize);
            if let Some(count) = count {
                count.get_or_init(|| self.statements(route)).increment(1);
            }
            if let Some(ready) = route.held_back {
                handles.held_back[usize::from(ready)]
                    .get_or_init(|| {
                        let ready = Label::new("ready", if ready { "true" } else { "false" });
                        counter(names::HELD_BACK, vec![ready])
                    })
                    .increment(1);
            }
        });
    }

    fn statements(&self, route: Route) -> Counter {
        let labels = vec![
            self.node(),
            Label::new("kind", route.kind.as_str()),
            Label::new("reason", route.reason.as_str()),
        ];
        counter(names::STATEMENTS, labels)
    }

    /// A statement waits for a connection, until the guard is dropped.
    pub(crate) fn waits(&self) -> Option<Pending> {
        let pending = self.with(|handles| handles.pending.clone())?;
        pending.increment(1.0);
        Some(Pending(pending))
    }

    pub(crate) fn waited_for_connection(&self, time: Duration) {
        self.with(|handles| handles.wait.record(time));
    }

    pub(crate) fn waited_in_vain(&self) {
        self.with(|handles| handles.timeouts.increment(1));
    }

    pub(crate) fn created_connection(&self, time: Duration) {
        self.with(|handles| handles.create.record(time));
    }

    pub(crate) fn used_connection(&self, time: Duration) {
        self.with(|handles| handles.used.record(time));
    }

    pub(crate) fn waited_for_position(&self, route: Route, time: Duration) {
        if is_recording() {
            let kind = Label::new("kind", route.kind.as_str());
            histogram(names::POSITION_WAIT, vec![kind]).record(time);
        }
    }

    /// How the node is now.
    pub(crate) fn is(&self, state: NodeState) {
        self.tell(Some(state));
    }

    /// The node has left the pool. A recorder forgets nothing, so its gauges are no numbers from now on.
    pub(crate) fn is_gone(&self) {
        self.tell(None);
    }

    fn tell(&self, state: Option<NodeState>) {
        if !is_recording() {
            return;
        }
        let value = |of: fn(NodeState) -> f64| state.map_or(f64::NAN, of);
        let set = |name, of| gauge(name, vec![self.node()]).set(value(of));
        set(names::NODE_UP, |state| of_bool(state.up));
        set(names::STRAY_PRIMARY, |state| of_bool(state.stray_primary));
        set(names::LAG, NodeState::lag_seconds);
        set(names::LAG_BYTES, NodeState::lag_in_bytes);
        set(names::FALLBACK, |state| of_usize(state.fallback));
        set(names::FALLBACK_LIMIT, |state| {
            of_usize(state.fallback_limit)
        });
        let serves = |what, of| {
            let labels = vec![self.node(), Label::new("what", what)];
            gauge(names::NODE_SERVES, labels).set(value(of));
        };
        serves("reads", |state| match state.no_reads {
            true => f64::NAN,
            false => of_bool(state.serves_reads),
        });
        serves("writes", |state| of_bool(state.serves_writes));
        let count = |what, of| {
            let labels = vec![self.pool(), Label::new("db.client.connection.state", what)];
            gauge(names::CONNECTION_COUNT, labels).set(value(of));
        };
        count("idle", |state| f64::from(state.idle));
        count("used", |state| {
            f64::from(state.connections.saturating_sub(state.idle))
        });
        let max_size = value(|state| f64::from(state.max_size));
        gauge(names::CONNECTION_MAX, vec![self.pool()]).set(max_size);
    }

    fn node(&self) -> Label {
        Label::new("node", Arc::clone(&self.name))
    }

    fn pool(&self) -> Label {
        Label::new("db.client.connection.pool.name", Arc::clone(&self.name))
    }

    fn server(&self) -> Vec<Label> {
        let mut labels = system();
        labels.push(Label::new("server.address", Arc::clone(&self.address)));
        labels.push(Label::new("server.port", self.port.to_string()));
        labels
    }

    /// Does something with the handles of the recorder that is installed, if there is one.
    fn with<T>(&self, act: impl FnOnce(&Handles) -> T) -> Option<T> {
        let id = recorder()?;
        if let Some((known, handles)) = &*self.handles.read() {
            if *known == id {
                return Some(act(handles));
            }
        }
        describe();
        let mut place = self.handles.write();
        let (_, handles) = place.insert((id, self.register()));
        Some(act(handles))
    }

    fn register(&self) -> Handles {
        Handles {
            operation: histogram(names::OPERATION_DURATION, self.server()),
            pending: gauge(names::PENDING_REQUESTS, vec![self.pool()]),
            timeouts: counter(names::TIMEOUTS, vec![self.pool()]),
            create: histogram(names::CREATE_TIME, vec![self.pool()]),
            wait: histogram(names::WAIT_TIME, vec![self.pool()]),
            used: histogram(names::USE_TIME, vec![self.pool()]),
            statements: Default::default(),
            held_back: Default::default(),
        }
    }
}

impl NodeState {
    fn lag_seconds(self) -> f64 {
        self.lag_or_none(|state| state.lag.map(|lag| lag.as_secs_f64()))
    }

    fn lag_in_bytes(self) -> f64 {
        self.lag_or_none(|state| state.lag_bytes.map(of_u64))
    }

    /// A replica that was promoted is behind nobody.
    fn lag_or_none(self, lag: impl FnOnce(Self) -> Option<f64>) -> f64 {
        match self.is_replica {
            true => lag(self).unwrap_or(f64::NAN),
            false => 0.0,
        }
    }
}

/// A statement that waits for a connection.
#[derive(Debug)]
pub(crate) struct Pending(Gauge);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// A statement has failed, on this node if on any. `sqlstate` is the server's.
pub(crate) fn failed(
    node: Option<&NodeMeter>,
    sqlstate: Option<&str>,
    outcome: Outcome,
    took: Duration,
) {
    if !is_recording() {
        return;
    }
    let mut labels = node.map_or_else(system, NodeMeter::server);
    if let Some(code) = sqlstate {
        labels.push(Label::new("db.response.status_code", bounded(code)));
    }
    labels.push(Label::new("error.type", outcome.as_str()));
    histogram(names::OPERATION_DURATION, labels).record(took);
}

/// A function may raise any of sixty million codes. The first ones are told as they are. Those of PostgreSQL's own classes
/// are counted apart, so that others do not take their place.
fn bounded(code: &str) -> String {
    static KNOWN: Mutex<[BTreeSet<String>; 2]> = Mutex::new([BTreeSet::new(), BTreeSet::new()]);
    let class = code.get(..2).unwrap_or_default();
    let known = &mut KNOWN.lock()[usize::from(CLASSES.contains(&class))];
    if known.contains(code) || known.len() < CODES {
        known.insert(code.to_owned());
        return code.to_owned();
    }
    "other".to_owned()
}

/// How the pool is now.
pub(crate) fn pool(name: &str, state: PoolState) {
    if !is_recording() {
        return;
    }
    let pool = || Label::new("pool", name.to_owned());
    for (what, takes) in [("reads", state.takes_reads), ("writes", state.takes_writes)] {
        let what = Label::new("what", what);
        gauge(names::TAKES, vec![pool(), what]).set(of_bool(takes));
    }
    gauge(names::LEARNED, vec![pool()]).set(of_usize(state.learned));
    gauge(names::DEGRADATIONS, vec![pool()]).set(of_usize(state.degradations));
}

/// Something has happened to the nodes.
pub(crate) fn event(name: &'static str) {
    if is_recording() {
        counter(names::EVENTS, vec![Label::new("event", name)]).increment(1);
    }
}

/// A node of another zone than the nearest has served a read.
pub(crate) fn far(zone: Option<&str>) {
    if is_recording() {
        let zone = Label::new("zone", zone.unwrap_or_default().to_owned());
        counter(names::FAR_READS, vec![zone]).increment(1);
    }
}

/// A primary takes writes again, perhaps another one. For so long none did.
pub(crate) fn writes_go_on(pause: Duration, by_another: bool) {
    if is_recording() {
        histogram(names::WRITE_PAUSE, Vec::new()).record(pause);
        if by_another {
            counter(names::FAILOVERS, Vec::new()).increment(1);
        }
    }
}

/// How what `group` gets from another group stands; `None` if nobody can tell.
pub(crate) fn direction(group: &str, from: &str, state: Option<DirectionState<'_>>) {
    if !is_recording() {
        return;
    }
    let labels = || of_direction(group, from);
    let tell = |name, value: Option<f64>| gauge(name, labels()).set(value.unwrap_or(f64::NAN));
    let lag = state.and_then(|state| state.lag);
    let lag_bytes = state.and_then(|state| state.lag_bytes);
    tell(names::GROUP_APPLIES, state.map(|it| of_bool(it.applies)));
    tell(names::GROUP_LAG, lag.map(|lag| lag.as_secs_f64()));
    tell(names::GROUP_LAG_BYTES, lag_bytes.map(of_u64));
    if let Some(state) = state {
        counter(names::GROUP_ERRORS, labels()).absolute(state.errors);
        for (kind, count) in state.conflicts {
            let mut labels = labels();
            labels.push(Label::new("kind", kind.clone()));
            counter(names::GROUP_CONFLICTS, labels).absolute(*count);
        }
    }
}

/// A key's home has moved. For so long its writes were held.
pub(crate) fn home_moved(from: &str, to: &str, held: Duration) {
    if is_recording() {
        histogram(names::HOME_MOVES, of_direction(to, from)).record(held);
    }
}

fn of_direction(group: &str, from: &str) -> Vec<Label> {
    let group = Label::new("group", group.to_owned());
    vec![group, Label::new("from", from.to_owned())]
}

#[cfg(feature = "tower")]
pub(crate) fn token_refused() {
    if is_recording() {
        counter(names::TOKENS_REFUSED, Vec::new()).increment(1);
    }
}

fn system() -> Vec<Label> {
    vec![Label::new("db.system.name", "postgresql")]
}

fn key(name: &'static str, labels: Vec<Label>) -> Key {
    Key::from_parts(name, labels)
}

fn counter(name: &'static str, labels: Vec<Label>) -> Counter {
    with_recorder(|recorder| recorder.register_counter(&key(name, labels), &METADATA))
}

fn gauge(name: &'static str, labels: Vec<Label>) -> Gauge {
    with_recorder(|recorder| recorder.register_gauge(&key(name, labels), &METADATA))
}

fn histogram(name: &'static str, labels: Vec<Label>) -> Histogram {
    with_recorder(|recorder| recorder.register_histogram(&key(name, labels), &METADATA))
}

fn describe() {
    with_recorder(|recorder| {
        for it in names::INSTRUMENTS {
            let unit = match it.unit {
                "s" => Some(Unit::Seconds),
                "By" => Some(Unit::Bytes),
                "1" => None,
                _ => Some(Unit::Count),
            };
            let (name, help) = (KeyName::from_const_str(it.name), it.help.into());
            match it.kind {
                InstrumentKind::Counter => recorder.describe_counter(name, unit, help),
                InstrumentKind::Gauge => recorder.describe_gauge(name, unit, help),
                InstrumentKind::Histogram => recorder.describe_histogram(name, unit, help),
            }
        }
    });
}

fn of_bool(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn of_u64(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn of_usize(value: usize) -> f64 {
    value as f64
}
