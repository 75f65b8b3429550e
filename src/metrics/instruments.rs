//! The instruments: their names, units, and what they tell.

/// The kind of an instrument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstrumentKind {
    /// It only grows.
    Counter,
    /// The value of now.
    Gauge,
    /// A distribution of times.
    Histogram,
}

/// The bounds of the buckets of all histograms, in seconds, as the conventions have them, and some below for connections
/// and servers that are near.
pub const BUCKETS: [f64; 13] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
];

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Instrument {
    /// Its name. Exporters for Prometheus write `_` for `.`.
    pub name: &'static str,
    /// Its kind.
    pub kind: InstrumentKind,
    /// `s` for seconds, `By` for bytes; else what is counted, in braces, as in UCUM.
    pub unit: &'static str,
    /// Its labels. `node` is the node's name everywhere, and `pool` that of the first node of the pool.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

const fn instrument(
    name: &'static str,
    kind: InstrumentKind,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Instrument {
    Instrument {
        name,
        kind,
        unit,
        labels,
        help,
    }
}

use InstrumentKind::{Counter, Gauge, Histogram};

const POOL: &[&str] = &["db.client.connection.pool.name"];
const NODE: &[&str] = &["node"];
const DIRECTION: &[&str] = &["group", "from"];

pub(super) const OPERATION_DURATION: &str = "db.client.operation.duration";
pub(super) const CONNECTION_COUNT: &str = "db.client.connection.count";
pub(super) const CONNECTION_MAX: &str = "db.client.connection.max";
pub(super) const PENDING_REQUESTS: &str = "db.client.connection.pending_requests";
pub(super) const TIMEOUTS: &str = "db.client.connection.timeouts";
pub(super) const CREATE_TIME: &str = "db.client.connection.create_time";
pub(super) const WAIT_TIME: &str = "db.client.connection.wait_time";
pub(super) const USE_TIME: &str = "db.client.connection.use_time";
pub(super) const STATEMENTS: &str = "diesel_replicated.statements";
pub(super) const HELD_BACK: &str = "diesel_replicated.held_back";
pub(super) const FAR_READS: &str = "diesel_replicated.far_reads";
pub(super) const POSITION_WAIT: &str = "diesel_replicated.position_wait.duration";
pub(super) const NODE_UP: &str = "diesel_replicated.node.up";
pub(super) const NODE_SERVES: &str = "diesel_replicated.node.serves";
pub(super) const STRAY_PRIMARY: &str = "diesel_replicated.node.stray_primary";
pub(super) const LAG: &str = "diesel_replicated.replica.lag";
pub(super) const LAG_BYTES: &str = "diesel_replicated.replica.lag_bytes";
pub(super) const FALLBACK: &str = "diesel_replicated.fallback.in_use";
pub(super) const FALLBACK_LIMIT: &str = "diesel_replicated.fallback.limit";
pub(super) const TAKES: &str = "diesel_replicated.pool.takes";
pub(super) const LEARNED: &str = "diesel_replicated.learned_statements";
pub(super) const DEGRADATIONS: &str = "diesel_replicated.degradations";
pub(super) const FAILOVERS: &str = "diesel_replicated.failovers";
pub(super) const WRITE_PAUSE: &str = "diesel_replicated.write_pause.duration";
pub(super) const TOKENS_REFUSED: &str = "diesel_replicated.session_tokens.refused";
pub(super) const GROUP_APPLIES: &str = "diesel_replicated.group.applies";
pub(super) const GROUP_LAG: &str = "diesel_replicated.group.lag";
pub(super) const GROUP_LAG_BYTES: &str = "diesel_replicated.group.lag_bytes";
pub(super) const GROUP_ERRORS: &str = "diesel_replicated.group.apply_errors";
pub(super) const GROUP_CONFLICTS: &str = "diesel_replicated.group.conflicts";
pub(super) const HOME_MOVES: &str = "diesel_replicated.home_move.duration";
pub(super) const EVENTS: &str = "diesel_replicated.events";

/// All instruments, with the feature `metrics`. An exporter may take the buckets of its histograms from here.
#[rustfmt::skip]
pub const INSTRUMENTS: &[Instrument] = &[
    instrument(OPERATION_DURATION, Histogram, "s", &["db.system.name", "server.address", "server.port", "db.response.status_code", "error.type"],
        "How long statements took, with waiting and other attempts; of rows, up to the first. One that fails after its first row counts once more, as failed."),
    instrument(CONNECTION_COUNT, Gauge, "{connection}", &["db.client.connection.pool.name", "db.client.connection.state"],
        "Open connections, `used` or `idle`, without those for tags; waits and times are of these, too."),
    instrument(CONNECTION_MAX, Gauge, "{connection}", POOL, "The most connections that may be open."),
    instrument(PENDING_REQUESTS, Gauge, "{request}", POOL, "Statements that wait for a connection now."),
    instrument(TIMEOUTS, Counter, "{timeout}", POOL, "Statements that have waited for a connection in vain."),
    instrument(CREATE_TIME, Histogram, "s", POOL, "How long it took to open a connection."),
    instrument(WAIT_TIME, Histogram, "s", POOL, "How long statements waited for a connection, if none was free."),
    instrument(USE_TIME, Histogram, "s", POOL, "How long a connection was lent out."),
    instrument(STATEMENTS, Counter, "{statement}", &["node", "kind", "reason"],
        "Statements that succeeded: on which node, a `primary` or a `replica`, and why there."),
    instrument(HELD_BACK, Counter, "{statement}", &["ready"],
        "Statements that the routing mode kept on the primary; `ready` if a replica could have served them at once."),
    instrument(FAR_READS, Counter, "{statement}", &["zone"],
        "Reads that a zone has served because no node of a nearer one could; with `prefer_zones`."),
    instrument(POSITION_WAIT, Histogram, "s", &["kind"],
        "How long reads waited for a replica to show what they must see, and which kind of node served them then."),
    instrument(NODE_UP, Gauge, "1", NODE, "1 if the node is up, 0 if not."),
    instrument(NODE_SERVES, Gauge, "1", &["node", "what"],
        "1 if the node serves `reads`, or `writes`; NaN for `reads` if it is a replica with `no_reads`."),
    instrument(STRAY_PRIMARY, Gauge, "1", NODE,
        "1 if the server takes writes and is not the primary: another one has replaced it, or there are several. Nothing is written there."),
    instrument(LAG, Gauge, "s", NODE, "How old the data of a replica is at the most, which grows while the primary cannot be asked; NaN if that is not known."),
    instrument(LAG_BYTES, Gauge, "By", NODE, "How much log a replica has yet to replay; NaN if that is not known."),
    instrument(FALLBACK, Gauge, "{connection}", NODE,
        "Connections that serve reads which other nodes should have served; only the primary's may."),
    instrument(FALLBACK_LIMIT, Gauge, "{connection}", NODE, "The most of these."),
    instrument(TAKES, Gauge, "1", &["pool", "what"], "1 if the pool takes `reads`, or `writes`, now."),
    instrument(LEARNED, Gauge, "{statement}", &["pool"], "Statements that replicas have refused and that look like reads."),
    instrument(DEGRADATIONS, Gauge, "1", &["pool"], "Reasons for which the pool does less than it could."),
    instrument(FAILOVERS, Counter, "{failover}", &[], "Changes from one primary to another."),
    instrument(WRITE_PAUSE, Histogram, "s", &[], "How long no primary was known that takes writes, until one did again."),
    instrument(TOKENS_REFUSED, Counter, "{token}", &[], "Session tokens of requests that were not accepted."),
    instrument(GROUP_APPLIES, Gauge, "1", DIRECTION,
        "Over several groups: 1 if `group` applies what `from` writes, 0 if not; NaN if the primary of `group` cannot be asked."),
    instrument(GROUP_LAG, Gauge, "s", DIRECTION, "How long ago the other group was where this one is; NaN if that is not known."),
    instrument(GROUP_LAG_BYTES, Gauge, "By", DIRECTION, "How much of the other group's log is not applied; NaN if that is not known."),
    instrument(GROUP_ERRORS, Counter, "{error}", DIRECTION, "How many times the worker has failed that applies."),
    instrument(GROUP_CONFLICTS, Counter, "{conflict}", &["group", "from", "kind"],
        "Conflicts, as PostgreSQL 18 counts them by kinds. There must be none."),
    instrument(HOME_MOVES, Histogram, "s", DIRECTION, "How long the writes of a key were held while its home moved to `group`."),
    instrument(EVENTS, Counter, "{event}", &["event"], "What happened to the nodes, by the name of the event."),
];
