//! What comes to one group from another.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use crate::connection::ReplicatedConnection;
use crate::groups::Groups;
use crate::metrics::{self, DirectionState};
use crate::position::{Lsn, Position};

/// What one group gets from another.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Direction {
    /// The group that writes.
    pub from: String,
    /// The name of the subscription.
    pub subscription: String,
    /// Whether the subscription is there and not disabled.
    pub enabled: bool,
    /// Whether a worker applies: it is there, and has heard from the other group. One that fails again and again does so
    /// only for moments.
    pub applies: bool,
    /// The other's log is applied up to here.
    pub applied: Option<Lsn>,
    /// So many bytes of the other's log are not applied yet, if both are known.
    pub behind_bytes: Option<u64>,
    /// How long ago the other group was where this one is.
    pub behind: Option<Duration>,
    /// How many times the worker has failed
    /// ([`pg_stat_subscription_stats`](https://www.postgresql.org/docs/current/monitoring-stats.html)). The server's log
    /// tells why.
    pub errors: u64,
    /// Conflicts by their kinds, as PostgreSQL 18 counts them. There must be none. Not among them are `update_origin_differs` and
    /// `delete_origin_differs`: who changes a row of a key that has moved makes these.
    pub conflicts: BTreeMap<String, u64>,
}

#[derive(QueryableByName)]
pub(super) struct SubscriptionRow {
    #[diesel(sql_type = Text)]
    pub(super) name: String,
    #[diesel(sql_type = Bool)]
    pub(super) enabled: bool,
    #[diesel(sql_type = Text)]
    pub(super) origin: String,
    #[diesel(sql_type = Text)]
    pub(super) commits: String,
    #[diesel(sql_type = Array<Text>)]
    pub(super) publications: Vec<String>,
    #[diesel(sql_type = Bool)]
    pub(super) applies: bool,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) applied: Option<String>,
    #[diesel(sql_type = BigInt)]
    pub(super) errors: i64,
    #[diesel(sql_type = Array<Text>)]
    pub(super) kinds: Vec<String>,
    #[diesel(sql_type = Array<Text>)]
    pub(super) counts: Vec<String>,
    #[diesel(sql_type = Array<Text>)]
    pub(super) tables: Vec<String>,
    #[diesel(sql_type = Array<Text>)]
    pub(super) copying: Vec<String>,
}

/// Through `to_jsonb`, because the columns of conflicts came with PostgreSQL 18.
const SUBSCRIPTIONS: &str = "SELECT s.subname::text AS name, s.subenabled AS enabled, s.suborigin AS origin, \
        s.subsynccommit AS commits, s.subpublications::text[] AS publications, w.latest_end_lsn IS NOT NULL AS applies, w.latest_end_lsn::text AS applied, \
        coalesce(t.apply_error_count + t.sync_error_count, 0) AS errors, \
        coalesce(c.kinds, '{}') AS kinds, coalesce(c.counts, '{}') AS counts, \
        (SELECT coalesce(array_agg(srrelid::regclass::text), '{}') FROM pg_catalog.pg_subscription_rel \
            WHERE srsubid = s.oid) AS tables, \
        (SELECT coalesce(array_agg(srrelid::regclass::text), '{}') FROM pg_catalog.pg_subscription_rel \
            WHERE srsubid = s.oid AND srsubstate <> 'r') AS copying \
    FROM pg_catalog.pg_subscription s \
    LEFT JOIN pg_catalog.pg_stat_subscription w ON w.subid = s.oid AND w.relid IS NULL AND w.leader_pid IS NULL \
    LEFT JOIN pg_catalog.pg_stat_subscription_stats t ON t.subid = s.oid \
    LEFT JOIN LATERAL (SELECT array_agg(key ORDER BY key) AS kinds, array_agg(value ORDER BY key) AS counts \
        FROM pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(t)) WHERE key LIKE 'confl\\_%' AND value <> '0' \
            AND key NOT LIKE '%\\_origin\\_differs') c ON true \
    WHERE s.subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
    ORDER BY 1";

impl SubscriptionRow {
    /// Whether a table of the other group that is in these publications comes along.
    pub(super) fn brings(&self, publications: &[String]) -> bool {
        self.publications.iter().any(|it| publications.contains(it))
    }
}

impl Direction {
    /// From what the server says of the subscription, and from where the other group is.
    pub(super) fn new(
        groups: &Groups,
        (group, origin): (usize, usize),
        row: Option<&SubscriptionRow>,
        there: Option<Lsn>,
    ) -> Self {
        let from = &groups.members[origin];
        let applied = row.and_then(|row| row.applied.as_ref());
        let applied = applied.and_then(|text| text.parse::<Lsn>().ok());
        let write_log = &from.cluster.write_log;
        let behind = applied.and_then(|applied| {
            let position = Position::new(write_log.timeline(), applied);
            write_log.with(|view| view.history.age(position, Instant::now()))
        });
        let behind_bytes = there.zip(applied);
        let behind_bytes = behind_bytes.map(|(there, applied)| there.0.saturating_sub(applied.0));
        let conflicts = row
            .into_iter()
            .flat_map(|row| row.kinds.iter().zip(&row.counts));
        let conflicts = conflicts.filter_map(|(kind, count)| {
            let kind = kind.trim_start_matches("confl_").to_owned();
            Some((kind, count.parse().ok()?))
        });
        Self {
            from: from.name.clone(),
            subscription: groups.members[group].subscriptions[origin].clone(),
            enabled: row.is_some_and(|row| row.enabled),
            applies: row.is_some_and(|row| row.applies),
            applied,
            behind_bytes,
            behind: if behind_bytes == Some(0) {
                Some(Duration::ZERO)
            } else {
                behind
            },
            errors: row.map_or(0, |row| row.errors.unsigned_abs()),
            conflicts: conflicts.collect(),
        }
    }
}

pub(super) async fn subscriptions(
    conn: &mut ReplicatedConnection,
) -> QueryResult<Vec<SubscriptionRow>> {
    sql_query(SUBSCRIPTIONS).load(conn).await
}

/// Tells the recorder how each direction to a group stands, as its primary says by `rows`; or that nobody can tell.
pub(super) fn measure(groups: &Groups, group: usize, rows: Option<&[SubscriptionRow]>) {
    let member = &groups.members[group];
    for (origin, from) in groups.members.iter().enumerate() {
        if origin == group {
            continue;
        }
        let there = from.cluster.write_log.latest().map(|it| it.lsn);
        let named = |row: &&SubscriptionRow| row.name == member.subscriptions[origin];
        let direction = rows.map(|rows| {
            let row = rows.iter().find(named);
            Direction::new(groups, (group, origin), row, there)
        });
        let state = direction.as_ref().map(|direction| DirectionState {
            applies: direction.applies,
            lag: direction.behind,
            lag_bytes: direction.behind_bytes,
            errors: direction.errors,
            conflicts: &direction.conflicts,
        });
        metrics::direction(&member.name, &from.name, state);
    }
}
