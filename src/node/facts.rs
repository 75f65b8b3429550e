//! What a server reports of itself: its role, its place in the log, its cluster and its timeline.

use std::sync::Arc;
use std::time::Duration;

use diesel::deserialize::{self, FromSql};
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::Error;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, SqlType, Text};
use diesel::{QueryResult, QueryableByName};
use diesel_async::RunQueryDsl;

use super::NodeConnection;
use super::asked_again::AskedAgain;
use super::rights::{MissingRight, Rights};
use super::run::Run;
use crate::error::SqlState;
use crate::position::Lsn;
use crate::wire::Remark;

/// PostgreSQL's type `pg_lsn`.
#[derive(SqlType)]
#[diesel(postgres_type(oid = 3220, array_oid = 3221))]
struct PgLsn;

impl FromSql<PgLsn, Pg> for Lsn {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(u64::from_be_bytes(value.as_bytes().try_into()?)))
    }
}

/// Asks where the node is. It is prepared once for each connection, and as cheap as `SELECT 1`.
struct Where(Arc<str>);

impl QueryId for Where {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl QueryFragment<Pg> for Where {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(&self.0);
        Ok(())
    }
}

impl Query for Where {
    type SqlType = (
        Bool,
        Nullable<PgLsn>,
        Nullable<PgLsn>,
        Nullable<Text>,
        Nullable<PgLsn>,
        Nullable<PgLsn>,
        Nullable<Text>,
        Text,
        Bool,
        Nullable<Integer>,
        Nullable<Text>,
        Nullable<Text>,
        Nullable<Integer>,
        Nullable<Double>,
        Nullable<Bool>,
    );
}

impl<Conn> diesel::RunQueryDsl<Conn> for Where {}

#[derive(diesel::Queryable)]
struct Row {
    in_recovery: bool,
    /// What a primary has flushed, or a standby has replayed.
    lsn: Option<Lsn>,
    inserted: Option<Lsn>,
    timeline: Option<String>,
    flushed: Option<Lsn>,
    written: Option<Lsn>,
    snapshot: Option<String>,
    standbys: String,
    paused: bool,
    received_timeline: Option<i32>,
    status: Option<String>,
    sender_host: Option<String>,
    sender_port: Option<i32>,
    silent_for: Option<f64>,
    receives: Option<bool>,
}

/// What seldom changes, and how to ask for the rest.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    seldom: Seldom,
    /// The rights that this role lacks.
    pub(super) limits: Arc<[MissingRight]>,
    sql: Arc<str>,
}

#[derive(Clone, Debug, QueryableByName)]
struct Seldom {
    #[diesel(sql_type = Nullable<BigInt>)]
    cluster: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    timeline: Option<i32>,
    #[diesel(sql_type = Integer)]
    version: i32,
    #[diesel(sql_type = Nullable<BigInt>)]
    started: Option<i64>,
    #[diesel(sql_type = Integer)]
    port: i32,
    #[diesel(sql_type = Nullable<Text>)]
    address: Option<String>,
    #[diesel(sql_type = Text)]
    database: String,
}

/// What a node reports of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// The system identifier that all nodes of one cluster share, if this role may ask.
    pub(crate) cluster: Option<u64>,
    /// A primary's timeline. A standby's log is on this timeline or on a newer one. 0 if that is not
    /// known.
    pub(crate) timeline: u32,
    /// Which run of which server it is, if this role may ask.
    pub(crate) run: Option<Run>,
    /// The database of the pool's connections, as the server calls it. `None` if this was reported over a connection
    /// to another database.
    pub(crate) database: Option<Arc<str>>,
    /// PostgreSQL's number of the version: 150018 is 15.18.
    pub(crate) version: u32,
    /// Transactions are read only by default on the server, for whoever connects.
    pub(crate) fenced: bool,
    pub(crate) place: Place,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    Primary {
        /// `None` if this role may not ask.
        flushed: Option<Lsn>,
        inserted: Option<Lsn>,
        /// How many standbys have to confirm a commit. They show it before the primary does.
        synchronous_standbys: usize,
    },
    Standby {
        /// `None` if nothing was replayed yet, or this role may not ask.
        replayed: Option<Lsn>,
        /// How much was received: flushed, and written.
        received: Option<(Lsn, Lsn)>,
        /// The transactions that it shows, as `pg_snapshot`.
        snapshot: Option<Arc<str>>,
        /// Its replay was paused by somebody.
        paused: bool,
        /// `None` if it receives nothing, or this role may not see it.
        receiver: Option<Receiver>,
        /// Whether it has a receiver. `None` if this role may not see even that.
        receives: Option<bool>,
        /// The timeline of the primary whose [`Mark`](super::Mark) it does not show, though it has replayed log
        /// beyond it. 0 if there is none.
        lacks: u32,
    },
}

/// What a page of the log has by default. Where a server sends less than whole records, it sends whole pages.
const PAGE: u64 = 8192;

impl Place {
    /// Whether what a standby has received does not tell where its log ends: it may end within a record, which the
    /// standby can never replay, or the standby has received nothing since it was started.
    pub(crate) fn hides_its_end(&self) -> bool {
        match self {
            Self::Standby {
                replayed: Some(replayed),
                received: Some((_, written)),
                ..
            } => written > replayed && written.0 % PAGE == 0,
            Self::Standby {
                replayed: Some(_),
                received: None,
                ..
            } => true,
            _ => false,
        }
    }

    /// The log of a standby ends here, with its last whole record, and is replayed.
    pub(crate) fn ends_at(&mut self, end: Lsn) {
        if let Self::Standby {
            replayed, received, ..
        } = self
        {
            *replayed = Some(end);
            *received = Some((end, end));
        }
    }
}

/// How a standby receives its log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Receiver {
    pub(crate) timeline: u32,
    /// As in `pg_stat_wal_receiver`: `streaming`, or `waiting` if there is nothing to follow.
    pub(crate) status: String,
    /// Whom it follows.
    pub(crate) sender: Option<(String, u16)>,
    /// How long ago it heard of that.
    pub(crate) silent_for: Option<Duration>,
}

impl Receiver {
    /// Whom it follows, if it does.
    pub(crate) fn followed(&self) -> Option<String> {
        let (host, port) = self.sender.as_ref()?;
        (self.status == "streaming").then(|| format!("{host}:{port}"))
    }
}

/// Asks for what seldom changes, and for this role's rights. Calls `answered` after each answer.
pub(super) async fn identify(
    connection: &mut NodeConnection,
    answered: impl Fn(),
) -> QueryResult<Identity> {
    let sql = Arc::clone(&connection.shows.sql);
    let mut rights = Rights::ask(connection.pg_mut(), sql).await?;
    answered();
    let place = Where(rights.place().into());
    let told: QueryResult<Row> = place.get_result(connection.pg_mut()).await;
    if told.is_err() && connection.is_usable() {
        rights.try_each(connection).await;
        answered();
    }
    let seldom = rights.seldom();
    let seldom = AskedAgain(&seldom).get_result(connection.pg_mut()).await;
    let mut limits = rights.limits();
    let hides = |row: &Row| row.in_recovery && row.lsn.is_none();
    if connection.shows.sql.is_given() && told.as_ref().is_ok_and(hides) {
        limits.push(Rights::without_position());
    }
    Ok(Identity {
        seldom: seldom.map_err(|error| of_source(connection, error))?,
        limits: limits.into(),
        sql: rights.place().into(),
    })
}

/// Names the application's source of positions as what an error is about, if it may be.
fn of_source(connection: &NodeConnection, error: Error) -> Error {
    if !connection.shows.sql.is_given() || !connection.is_usable() {
        return error;
    }
    Error::QueryBuilderError(format!("asking with the `PositionSource`: {error}").into())
}

/// Whether a server said that it is in recovery, and was not any more when it came to the functions for that. They refuse
/// with `55000`. What a `PositionSource` asks may do so for ever.
fn has_left_recovery(connection: &NodeConnection, error: &Error) -> bool {
    let Error::DatabaseError(_, said) = error else {
        return false;
    };
    let remark = connection.wire.remark_of(said.message());
    let refused = |remark: Remark| remark.sqlstate == SqlState::NOT_IN_PREREQUISITE_STATE;
    !connection.shows.sql.is_given() && connection.is_usable() && remark.is_some_and(refused)
}

/// Asks where the node is. `None` if it does not know itself: it is being promoted.
pub(super) async fn ask(
    connection: &mut NodeConnection,
    identity: &Identity,
) -> QueryResult<Option<Facts>> {
    let query = Where(Arc::clone(&identity.sql));
    let row: QueryResult<Row> = query.get_result(connection.pg_mut()).await;
    let row = match row {
        Err(error) if has_left_recovery(connection, &error) => return Ok(None),
        row => row.map_err(|error| of_source(connection, error))?,
    };
    let mut facts = row.into_facts(&identity.seldom);
    if let Some(facts) = &mut facts {
        facts.fenced = connection.is_fenced().await?;
    }
    Ok(facts)
}

impl Row {
    fn into_facts(self, identity: &Seldom) -> Option<Facts> {
        let known = identity.timeline.and_then(|id| u32::try_from(id).ok());
        let known = known.unwrap_or_default();
        let receiver = self.receiver();
        let timeline = if self.in_recovery {
            // A standby that receives nothing does not tell its timeline.
            receiver.as_ref().map(|receiver| receiver.timeline)
        } else {
            let text = self.timeline.as_deref();
            let told = text.and_then(|text| u32::from_str_radix(text, 16).ok());
            // The greatest ones stand for what is not known.
            told.filter(|told| i32::try_from(*told).is_ok())
        };
        let place = if self.in_recovery {
            let written = self.written;
            Place::Standby {
                replayed: self.lsn,
                received: self
                    .flushed
                    .map(|flushed| (flushed, written.unwrap_or(flushed))),
                snapshot: self.snapshot.map(Arc::from),
                paused: self.paused,
                receiver,
                receives: self.receives,
                lacks: 0,
            }
        } else {
            Place::Primary {
                flushed: self.lsn,
                inserted: self.inserted.map(Lsn::normalised),
                synchronous_standbys: to_confirm(&self.standbys),
            }
        };
        Some(Facts {
            // PostgreSQL's integers have signs; the identifier has none.
            cluster: identity
                .cluster
                .map(|cluster| u64::from_ne_bytes(cluster.to_ne_bytes())),
            timeline: match &place {
                // Its control file may tell it late.
                Place::Primary { .. } => timeline.unwrap_or_default(),
                Place::Standby { .. } => timeline.unwrap_or_default().max(known),
            },
            run: identity.started.map(|started| Run {
                started,
                port: identity.port,
                address: identity.address.as_deref().and_then(|it| it.parse().ok()),
            }),
            database: Some(identity.database.as_str().into()),
            version: u32::try_from(identity.version).unwrap_or_default(),
            fenced: false,
            place,
        })
    }

    fn receiver(&self) -> Option<Receiver> {
        let port = self.sender_port.and_then(|port| u16::try_from(port).ok());
        Some(Receiver {
            timeline: u32::try_from(self.received_timeline?).ok()?,
            status: self.status.clone().unwrap_or_default(),
            sender: self.sender_host.clone().zip(port),
            silent_for: self
                .silent_for
                .and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok()),
        })
    }
}

/// How many standbys have to confirm a commit by this value of `synchronous_standby_names`:
/// `FIRST n (…)`, `ANY n (…)`, `n (…)`, or a list of which one suffices.
///
/// See <https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES>.
fn to_confirm(names: &str) -> usize {
    let names = names.trim();
    let number = names.split_once('(').and_then(|(before, _)| {
        let number = before.split_whitespace().last()?;
        number.parse().ok()
    });
    number.unwrap_or(usize::from(!names.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_synchronous_standbys_is_read() {
        for (names, number) in [
            ("", 0),
            ("*", 1),
            ("s1, s2", 1),
            ("\"s 1\"", 1),
            ("2 (s1, s2, s3)", 2),
            ("FIRST 2 (s1, s2)", 2),
            ("any 3(s1, s2, s3)", 3),
            ("ANY 1 (*)", 1),
        ] {
            assert_eq!(to_confirm(names), number, "{names}");
        }
    }
}
