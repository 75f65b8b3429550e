//! What an operator must see of groups: how each direction stands, and what is not as it must be.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use diesel::sql_types::{Array, BigInt, Bool, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::MultiPrimaryPool;
use super::direction::{Direction, SubscriptionRow, subscriptions};
use crate::connection::ReplicatedConnection;
use crate::groups::Groups;
use crate::position::Lsn;

/// How one group stands.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Why its primary cannot be asked; then the rest is empty.
    pub error: Option<String>,
    /// How many keys are at home there.
    pub keys: u64,
    /// What comes from each other group.
    pub directions: Vec<Direction>,
    /// What is not as it must be.
    pub findings: Vec<Finding>,
}

/// Something that is not as it must be. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Finding {
    /// The database calls itself another group.
    OtherName(String),
    /// Other groups name another group for births.
    OtherBirths(String),
    /// There is no such subscription.
    NoSubscription(String),
    /// The subscription is disabled, as a forced move leaves it.
    Disabled(String),
    /// The table of another group is not in the subscription, because it came later.
    NotSubscribed {
        /// The table.
        table: String,
        /// The subscription.
        subscription: String,
    },
    /// The table is still being copied. Until then keys do not move.
    Copying {
        /// The table.
        table: String,
        /// The subscription.
        subscription: String,
    },
    /// The publication leaves out some kinds of change, or rows or columns of a table.
    PublishesNotAll(String),
    /// There are standbys, and none is synchronous. A failover loses what was applied from others last, and they do not send it
    /// again.
    NoSynchronousStandby,
    /// The subscription does not wait for the synchronous standbys: the same.
    CommitsBeforeStandbys(String),
    /// The others get what no standby has yet. After a failover they have what this group has lost, such as a move.
    SendsBeforeStandbys,
    /// The subscription passes on what others have written, in circles.
    OriginNotNone(String),
    /// The subscription commits without waiting for its disk: after a crash reads may go back in time.
    CommitsBeforeDisk(String),
    /// Another subscription, also enabled, gets something from somewhere. What comes through two is applied in no order.
    OtherSubscription(String),
    /// The slot of a subscriber does not survive a failover of this group, by which its subscription ends.
    SlotWithoutFailover(String),
    /// The table, which may be unlogged, does not go to all other groups.
    NotPublished(String),
    /// The table has no replica identity, so that its updates and deletes fail.
    NoReplicaIdentity(String),
    /// The sequence gives the same numbers in several groups. The second is the SQL that makes it disjoint here.
    SequenceCollides(String, String),
    /// The table has other columns in the other group.
    TableDiffers {
        /// The table.
        table: String,
        /// The other group.
        group: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherName(name) => {
                write!(
                    f,
                    "the database is of group `{name}`: lead the URL to the right one"
                )
            }
            Self::OtherBirths(name) => write!(
                f,
                "keys get their first home in `{name}`, and other groups say otherwise: run the same `setup_sql` everywhere"
            ),
            Self::NoSubscription(name) => write!(f, "there is no subscription `{name}`"),
            Self::Disabled(name) => write!(f, "subscription `{name}` is disabled"),
            Self::NotSubscribed {
                table,
                subscription,
            } => write!(
                f,
                "table {table} is not in subscription `{subscription}`: ALTER SUBSCRIPTION {subscription} REFRESH \
                 PUBLICATION"
            ),
            Self::Copying {
                table,
                subscription,
            } => write!(
                f,
                "table {table} is still being copied by subscription `{subscription}`"
            ),
            Self::PublishesNotAll(name) => {
                write!(
                    f,
                    "publication `{name}` leaves out kinds of change, rows or columns: publish all"
                )
            }
            Self::OriginNotNone(name) => {
                write!(
                    f,
                    "subscription `{name}` passes on what others wrote: set origin = none"
                )
            }
            Self::CommitsBeforeDisk(name) => write!(
                f,
                "subscription `{name}` commits before its disk has it: set synchronous_commit = on"
            ),
            Self::OtherSubscription(name) => write!(
                f,
                "subscription `{name}` is enabled beside those of the groups: all that moves with a key must come in one"
            ),
            Self::SlotWithoutFailover(name) => write!(
                f,
                "slot `{name}` does not survive a failover here: set failover = true for its subscription (PostgreSQL 17)"
            ),
            other => other.of_the_rest(f),
        }
    }
}

impl Finding {
    fn of_the_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SendsBeforeStandbys => f.write_str(
                "others get what no standby has yet: set synchronized_standby_slots (PostgreSQL 17)",
            ),
            Self::CommitsBeforeStandbys(name) => write!(
                f,
                "subscription `{name}` does not wait for the synchronous standbys: set synchronous_commit = on"
            ),
            Self::NoSynchronousStandby => f.write_str(
                "a failover loses what was applied last, for good: set synchronous_standby_names",
            ),
            Self::NotPublished(table) => write!(
                f,
                "table {table} does not go to all other groups: make it logged, and put it into what they subscribe to"
            ),
            Self::NoReplicaIdentity(table) => {
                write!(
                    f,
                    "table {table} has no replica identity: give it a primary key"
                )
            }
            Self::SequenceCollides(name, sql) => {
                write!(
                    f,
                    "sequence {name} gives numbers that other groups give, too: {sql}"
                )
            }
            Self::TableDiffers { table, group } => {
                write!(f, "table {table} has other columns in group `{group}`")
            }
            // The rest is told above.
            _ => Ok(()),
        }
    }
}

#[derive(QueryableByName)]
struct Own {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    keys: i64,
    #[diesel(sql_type = Text)]
    here: String,
    #[diesel(sql_type = Text)]
    births: String,
    #[diesel(sql_type = Bool)]
    has_standbys: bool,
    #[diesel(sql_type = Bool)]
    synchronous: bool,
    #[diesel(sql_type = Bool)]
    sends_after: bool,
    #[diesel(sql_type = Array<Text>)]
    incomplete: Vec<String>,
}

#[derive(QueryableByName)]
struct TableRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Array<Text>)]
    publications: Vec<String>,
    #[diesel(sql_type = Bool)]
    identified: bool,
    #[diesel(sql_type = Text)]
    columns: String,
}

#[derive(QueryableByName)]
struct SequenceRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    step: i64,
    #[diesel(sql_type = BigInt)]
    next: i64,
}

#[derive(QueryableByName)]
struct SqlRow {
    #[diesel(sql_type = Text)]
    sql: String,
}

#[derive(QueryableByName)]
struct SlotRow {
    #[diesel(sql_type = Text)]
    name: String,
}

const OWN: &str = "SELECT diesel_replicated.this_group() AS name, \
    (SELECT count(*) FROM diesel_replicated.homes WHERE home = diesel_replicated.this_group()) AS keys, \
    pg_catalog.pg_current_wal_insert_lsn()::text AS here, diesel_replicated.births() AS births, \
    EXISTS (SELECT FROM pg_catalog.pg_stat_replication r WHERE NOT EXISTS (SELECT FROM \
        pg_catalog.pg_replication_slots o WHERE o.active_pid = r.pid AND o.slot_type = 'logical')) AS has_standbys, \
    pg_catalog.current_setting('synchronous_standby_names') <> '' AS synchronous, \
    coalesce(pg_catalog.current_setting('synchronized_standby_slots', true), '') <> '' AS sends_after, \
    (SELECT coalesce(array_agg(pubname::text), '{}') FROM pg_catalog.pg_publication \
        WHERE NOT (pubinsert AND pubupdate AND pubdelete AND pubtruncate) OR oid IN ( \
            SELECT prpubid FROM pg_catalog.pg_publication_rel WHERE prqual IS NOT NULL OR prattrs IS NOT NULL)) AS incomplete";

const TABLES: &str = "SELECT c.oid::regclass::text AS name, \
        (SELECT coalesce(array_agg(p.pubname::text), '{}') FROM pg_catalog.pg_publication_tables p \
            WHERE p.schemaname = n.nspname AND p.tablename = c.relname) AS publications, \
        c.relreplident IN ('f', 'i') OR c.relreplident = 'd' AND EXISTS ( \
            SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS identified, \
        (SELECT coalesce(string_agg(a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), ', ' \
            ORDER BY a.attname), '') FROM pg_catalog.pg_attribute a \
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'r' AND c.relpersistence IN ('p', 'u') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
    ORDER BY 1";

/// The names of the sequences, and SQL that tells the next number of each: only the sequence itself knows it exactly.
const SEQUENCES: &str = "SELECT format('SELECT %L AS name, %s::bigint AS step, \
        CASE WHEN is_called THEN last_value + %s ELSE last_value END AS next FROM %I.%I', \
        quote_ident(schemaname) || '.' || quote_ident(sequencename), increment_by, increment_by, schemaname, \
        sequencename) AS sql \
    FROM pg_catalog.pg_sequences WHERE pg_catalog.has_sequence_privilege( \
        quote_ident(schemaname) || '.' || quote_ident(sequencename), 'SELECT') ORDER BY 1";

/// Slots of subscribers that are active and do not survive a failover, where a standby could take over.
const SLOTS: &str = "SELECT s.slot_name::text AS name FROM pg_catalog.pg_replication_slots s \
    WHERE s.slot_type = 'logical' AND NOT s.temporary AND s.database = pg_catalog.current_database() \
        AND NOT coalesce((pg_catalog.to_jsonb(s) ->> 'failover')::boolean, false) \
        AND EXISTS (SELECT FROM pg_catalog.pg_stat_replication r WHERE NOT EXISTS (SELECT FROM \
            pg_catalog.pg_replication_slots o WHERE o.active_pid = r.pid AND o.slot_type = 'logical')) \
    ORDER BY 1";

/// What a group has answered.
#[derive(Default)]
struct Answer {
    error: Option<String>,
    own: Option<Own>,
    subscriptions: Vec<SubscriptionRow>,
    tables: Vec<TableRow>,
    sequences: Vec<SequenceRow>,
    slots: Vec<SlotRow>,
}

impl MultiPrimaryPool {
    /// Asks the primary of each group how it stands, for at most `limit`: what comes from the others, and what is not as it
    /// must be. For a page that operators look at, and for a check after each change of the schema.
    pub async fn check(&self, limit: Duration) -> Vec<GroupStatus> {
        let asking = (0..self.groups.members.len()).map(|group| async move {
            let answer = tokio::time::timeout(limit, ask(&self.groups, group)).await;
            let late = |_| {
                Ok(Answer {
                    error: Some(format!("no answer within {limit:?}")),
                    ..Answer::default()
                })
            };
            answer
                .unwrap_or_else(late)
                .unwrap_or_else(|error: diesel::result::Error| Answer {
                    error: Some(error.to_string()),
                    ..Answer::default()
                })
        });
        let answers: Vec<Answer> = futures_util::future::join_all(asking).await;
        let groups = 0..self.groups.members.len();
        groups
            .map(|group| self.status_of(group, &answers))
            .collect()
    }

    fn status_of(&self, group: usize, answers: &[Answer]) -> GroupStatus {
        let (member, answer) = (&self.groups.members[group], &answers[group]);
        let mut status = GroupStatus {
            name: member.name.clone(),
            error: answer.error.clone(),
            keys: answer.own.as_ref().map_or(0, |own| own.keys.unsigned_abs()),
            directions: Vec::new(),
            findings: Vec::new(),
        };
        let Some(own) = &answer.own else {
            return status;
        };
        if own.name != member.name {
            status.findings.push(Finding::OtherName(own.name.clone()));
        }
        for (origin, other) in answers.iter().enumerate() {
            if origin != group {
                let name = &member.subscriptions[origin];
                let row = answer.subscriptions.iter().find(|row| row.name == *name);
                let published = &other.tables;
                let found = of_subscription(name, row, own.has_standbys, published);
                status.findings.extend(found);
                let there = other.own.as_ref();
                let there = there.and_then(|own| own.here.parse::<Lsn>().ok());
                let direction = Direction::new(&self.groups, (group, origin), row, there);
                status.directions.push(direction);
            }
        }
        let known: BTreeSet<&String> = member.subscriptions.iter().collect();
        let others = answer.subscriptions.iter();
        let others = others.filter(|row| row.enabled && !known.contains(&row.name));
        let others = others.map(|row| Finding::OtherSubscription(row.name.clone()));
        status.findings.extend(others);
        let slots = answer.slots.iter();
        let slots = slots.map(|row| Finding::SlotWithoutFailover(row.name.clone()));
        status.findings.extend(slots);
        status.findings.extend(of_server(group, answers));
        status
            .findings
            .extend(of_tables(&self.groups, group, answers));
        status.findings.extend(of_sequences(group, answers));
        status
    }
}

async fn ask(groups: &Groups, group: usize) -> QueryResult<Answer> {
    let cluster = std::sync::Arc::clone(&groups.members[group].cluster);
    let mut conn = ReplicatedConnection::new(cluster, std::sync::Arc::default())?;
    let mut conn = conn.primary();
    Ok(Answer {
        error: None,
        own: Some(sql_query(OWN).get_result(&mut conn).await?),
        subscriptions: subscriptions(&mut conn).await?,
        tables: sql_query(TABLES).load(&mut conn).await?,
        sequences: sequences(&mut conn).await?,
        slots: sql_query(SLOTS).load(&mut conn).await?,
    })
}

async fn sequences(conn: &mut ReplicatedConnection) -> QueryResult<Vec<SequenceRow>> {
    let each: Vec<SqlRow> = sql_query(SEQUENCES).load(conn).await?;
    if each.is_empty() {
        return Ok(Vec::new());
    }
    let each: Vec<String> = each.into_iter().map(|row| row.sql).collect();
    sql_query(each.join(" UNION ALL ")).load(conn).await
}

/// What stands in the settings of the server.
fn of_server(group: usize, answers: &[Answer]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(own) = &answers[group].own else {
        return findings;
    };
    let others = answers.iter().filter_map(|answer| answer.own.as_ref());
    if others.into_iter().any(|other| other.births != own.births) {
        findings.push(Finding::OtherBirths(own.births.clone()));
    }
    if own.has_standbys && !own.synchronous {
        findings.push(Finding::NoSynchronousStandby);
    }
    if own.has_standbys && !own.sends_after {
        findings.push(Finding::SendsBeforeStandbys);
    }
    let incomplete = own.incomplete.iter().cloned();
    findings.extend(incomplete.map(Finding::PublishesNotAll));
    findings
}

/// `published`: the tables of the other group.
fn of_subscription(
    name: &str,
    row: Option<&SubscriptionRow>,
    has_standbys: bool,
    published: &[TableRow],
) -> Vec<Finding> {
    let Some(row) = row else {
        return vec![Finding::NoSubscription(name.to_owned())];
    };
    let mut findings = Vec::new();
    if !row.enabled {
        findings.push(Finding::Disabled(name.to_owned()));
    }
    if matches!(&*row.commits, "local" | "remote_write") && has_standbys {
        findings.push(Finding::CommitsBeforeStandbys(name.to_owned()));
    }
    let subscription = || name.to_owned();
    let missing = published
        .iter()
        .filter(|table| row.brings(&table.publications));
    let missing = missing.filter(|table| !row.tables.contains(&table.name));
    findings.extend(missing.map(|table| Finding::NotSubscribed {
        table: table.name.clone(),
        subscription: subscription(),
    }));
    findings.extend(row.copying.iter().map(|table| Finding::Copying {
        table: table.clone(),
        subscription: subscription(),
    }));
    if row.origin != "none" {
        findings.push(Finding::OriginNotNone(name.to_owned()));
    }
    if row.commits == "off" {
        findings.push(Finding::CommitsBeforeDisk(name.to_owned()));
    }
    findings
}

fn of_tables(groups: &Groups, group: usize, answers: &[Answer]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for table in &answers[group].tables {
        let comes = |(other, answer): (usize, &Answer)| {
            let name = &groups.members[other].subscriptions[group];
            let mut rows = answer.subscriptions.iter();
            let row = rows.find(|row| other != group && row.name == *name);
            row.is_none_or(|row| row.brings(&table.publications))
        };
        let comes = answers.iter().enumerate().all(comes);
        if table.publications.is_empty() || !comes {
            findings.push(Finding::NotPublished(table.name.clone()));
            continue;
        }
        if !table.identified {
            findings.push(Finding::NoReplicaIdentity(table.name.clone()));
        }
        for (other, answer) in answers.iter().enumerate() {
            let there = answer.tables.iter().find(|it| it.name == table.name);
            let same = there.is_some_and(|there| there.columns == table.columns);
            if answer.own.is_some() && !same {
                findings.push(Finding::TableDiffers {
                    table: table.name.clone(),
                    group: groups.members[other].name.clone(),
                });
            }
        }
    }
    findings
}

/// Sequences are disjoint if they go in steps as large as there are groups, each from another start.
fn of_sequences(group: usize, answers: &[Answer]) -> Vec<Finding> {
    let groups = i64::try_from(answers.len()).unwrap_or(i64::MAX);
    let mut findings = Vec::new();
    for sequence in &answers[group].sequences {
        let collides = |(other, answer): (usize, &Answer)| {
            let there = answer.sequences.iter().find(|it| it.name == sequence.name);
            let shares = there.is_some_and(|there| {
                there.step != sequence.step
                    || there.step.abs() < groups
                    || there.next.rem_euclid(there.step) == sequence.next.rem_euclid(there.step)
            });
            other != group && shares
        };
        if answers.iter().enumerate().any(collides) {
            let number = i64::try_from(group).unwrap_or_default();
            let most = answers.iter().flat_map(|answer| &answer.sequences);
            let most = most
                .filter(|it| it.name == sequence.name)
                .map(|it| it.next)
                .max();
            let most = most.unwrap_or(sequence.next);
            // The first number from there on that leaves this group's rest.
            let start = most + (number - most).rem_euclid(groups);
            let sql = format!(
                "ALTER SEQUENCE {} INCREMENT BY {groups} RESTART WITH {start}",
                sequence.name
            );
            findings.push(Finding::SequenceCollides(sequence.name.clone(), sql));
        }
    }
    findings
}
