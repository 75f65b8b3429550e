//! A connection over several groups of one primary each: it writes where its key is at home, and reads where it is near.
//!
//! It holds a connection to each group that it has used. Their sessions know what was written and seen in each group. A
//! read may run in a group that has applied what the session needs of all others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use diesel::QueryResult;
use diesel::result::OptionalExtension;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::{QueryableByName, sql_query};
use futures_core::future::BoxFuture;
use parking_lot::Mutex;

use super::ReplicatedConnection;
use super::action::Action;
use super::guarded::{Guarded, Refused};
use crate::classify::{Leaves, TransactionControl, Verdict};
use crate::config::Consistency;
use crate::deadline;
use crate::error::{Error, ErrorExt, GroupsError, Outcome};
use crate::groups::{Groups, GroupsHistory, Place, Refusal, check};
use crate::route::{NodeKind, Route, RouteReason};

/// How long a statement waits before it asks again about a key that moves.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// What a connection over several groups has beside its own.
pub(crate) struct Keyed {
    groups: Arc<Groups>,
    /// Without one nothing is written.
    key: Option<Box<str>>,
    /// What the session has written and seen.
    history: Arc<GroupsHistory>,
    /// A connection to each group, once used.
    parts: Box<[OnceLock<Arc<ReplicatedConnection>>]>,
    /// Where a transaction is open.
    open: Mutex<Option<Open>>,
    /// The group of the last statement.
    last: AtomicUsize,
    /// Statements run one after the other: a write is a transaction of several messages.
    turn: tokio::sync::Mutex<()>,
}

/// An open transaction.
#[derive(Clone, Copy)]
struct Open {
    group: usize,
    /// The key was found at home when it began.
    guarded: bool,
}

/// What becomes of a statement.
enum Course {
    /// It runs in the group of the open transaction.
    Within(usize),
    Reads,
    Writes,
    /// It runs at the key's home, and writes nothing.
    AtHome,
}

#[derive(QueryableByName)]
struct HomeRow {
    #[diesel(sql_type = Text)]
    home: String,
    #[diesel(sql_type = BigInt)]
    generation: i64,
    #[diesel(sql_type = Bool)]
    settled: bool,
}

#[derive(QueryableByName)]
struct Is {
    #[diesel(sql_type = Bool)]
    is_so: bool,
}

/// Where a key is at home, as one group tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HomeAt {
    pub(crate) group: usize,
    pub(crate) generation: i64,
    pub(crate) settled: bool,
}

impl Keyed {
    pub(crate) fn new(
        groups: Arc<Groups>,
        key: Option<Box<str>>,
        history: Arc<GroupsHistory>,
    ) -> Self {
        let parts = groups.members.iter().map(|_| OnceLock::new()).collect();
        Self {
            last: AtomicUsize::new(groups.local),
            groups,
            key,
            history,
            parts,
            open: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// The connection to a group.
    fn part(&self, group: usize) -> Result<&Arc<ReplicatedConnection>, Error> {
        let part = &self.parts[group];
        if let Some(part) = part.get() {
            return Ok(part);
        }
        let cluster = Arc::clone(&self.groups.members[group].cluster);
        let history = Arc::clone(&self.history.of[group]);
        let new = Arc::new(ReplicatedConnection::new(cluster, history)?);
        Ok(part.get_or_init(|| new))
    }

    fn name(&self, group: usize) -> String {
        self.groups.members[group].name.clone()
    }

    pub(super) fn last_route(&self) -> Option<Route> {
        let group = self.last.load(Ordering::Acquire);
        let mut route = self.parts[group].get()?.last_route()?;
        route.group = Some(self.name(group));
        Some(route)
    }

    /// Whether a statement of an open transaction failed to serialize, in any group.
    pub(super) fn take_must_roll_back(&self) -> bool {
        let parts = self.parts.iter().filter_map(OnceLock::get);
        let mut taken = false;
        for part in parts {
            taken |= part.must_roll_back.swap(false, Ordering::AcqRel);
        }
        taken
    }

    /// What a group must show to serve a read.
    fn shows(&self, group: usize, level: Consistency, home: Option<usize>) -> Option<Place> {
        self.history.shown_by(&self.groups, group, level, home)
    }

    /// The group that serves a read now: the local one if it has what the session needs, else the key's home.
    fn reader(
        &self,
        level: Consistency,
        home: Option<usize>,
        local: bool,
    ) -> Option<(usize, Place)> {
        let near = Some(self.groups.local).filter(|_| local);
        let mut candidates = near
            .into_iter()
            .chain(home.filter(|home| near != Some(*home)));
        candidates.find_map(|group| Some((group, self.shows(group, level, home)?)))
    }

    /// Whether a connection holds what a read elsewhere would miss.
    fn has_state(&self, group: usize) -> bool {
        let part = self.parts[group].get();
        part.is_some_and(|part| part.session().has_state())
    }
}

impl ReplicatedConnection {
    /// A connection over several groups.
    pub(crate) fn keyed(
        groups: Arc<Groups>,
        key: Option<Box<str>>,
        history: Arc<GroupsHistory>,
    ) -> Result<Self, Error> {
        let local = groups.local;
        let cluster = Arc::clone(&groups.members[local].cluster);
        let mut connection = Self::new(cluster, Arc::clone(&history.of[local]))?;
        let level = connection.cluster.consistency().level;
        if level == Consistency::ReadYourWrites {
            // What a session has read in one group may not be in the other yet. Nobody expects time to go back.
            connection.set_consistency(Consistency::Causal);
        }
        connection.keyed = Some(Box::new(Keyed::new(groups, key, history)));
        Ok(connection)
    }

    /// Runs a statement in the group where it belongs.
    pub(super) fn run_keyed<'a, A: Action>(
        &'a self,
        keyed: &'a Keyed,
        action: &'a mut A,
    ) -> BoxFuture<'a, QueryResult<A::Output>> {
        Box::pin(async move {
            let _turn = keyed.turn.lock().await;
            let verdict = self.cluster.classifier.classify(action.id(), action.sql());
            let result = match self.course(keyed, verdict, action.sql())? {
                Course::Within(group) => self.within(keyed, group, verdict, action).await,
                Course::Reads => self.reads(keyed, verdict, action).await,
                Course::Writes => self.writes(keyed, verdict, action).await,
                Course::AtHome => {
                    let home = self.home_of(keyed).await?;
                    keyed.last.store(home, Ordering::Release);
                    self.part_of(keyed, home)?.run_here(action).await
                }
            };
            if result.is_ok() {
                keyed
                    .history
                    .has_read_in(AtomicUsize::load(&keyed.last, Ordering::Acquire));
            }
            result
        })
    }

    /// What becomes of a statement, by what it is.
    fn course(&self, keyed: &Keyed, verdict: Verdict, sql: &str) -> Result<Course, Error> {
        let open = *keyed.open.lock();
        if let Some(open) = open {
            let sets = verdict.control == Some(TransactionControl::Setting)
                || verdict.leaves != Leaves::Nothing;
            if !open.guarded && sets {
                return Err(GroupsError::SetsInReadOnly.into());
            }
            return Ok(Course::Within(open.group));
        }
        let forced = self.session().forced;
        let read_only = matches!(
            verdict.control,
            Some(TransactionControl::Begin {
                read_only: true,
                ..
            })
        );
        if verdict.control.is_some() && sql.trim_end_matches([';', ' ', '\n']).contains(';') {
            return Err(GroupsError::OwnTransaction.into());
        }
        let plain = verdict.control.is_none() && verdict.reason == RouteReason::PlainSelect;
        let strong = keyed.key.is_some() && self.reads_at_home();
        if (plain || read_only) && forced != Some(NodeKind::Primary) && !strong {
            return Ok(Course::Reads);
        }
        let begins = matches!(verdict.control, Some(TransactionControl::Begin { .. }));
        if !(verdict.writes || begins || plain && strong) {
            return Ok(Course::AtHome);
        }
        Ok(Course::Writes)
    }

    /// Whether reads must see what everybody has written for the key, or how old it is. Only the home knows, and only its
    /// database knows that it is the home.
    fn reads_at_home(&self) -> bool {
        let session = self.session();
        let level = self.level_of(&session);
        matches!(
            level,
            Consistency::Strong | Consistency::BoundedStaleness(_)
        )
    }

    /// The connection to a group, with the scope of this one.
    fn part_of<'k>(&self, keyed: &'k Keyed, group: usize) -> Result<&'k Arc<Self>, Error> {
        let part = keyed.part(group)?;
        let scope = self.session().scope();
        part.session().within_scope(scope);
        Ok(part)
    }

    /// A statement of the open transaction.
    async fn within<A: Action>(
        &self,
        keyed: &Keyed,
        group: usize,
        verdict: Verdict,
        action: &mut A,
    ) -> QueryResult<A::Output> {
        let part = self.part_of(keyed, group)?;
        let result = part.run_here(action).await;
        if verdict.control == Some(TransactionControl::End) || !part.session().is_in_transaction() {
            *keyed.open.lock() = None;
        }
        result
    }

    /// A read, which runs where it is near if what it must see is there.
    async fn reads<A: Action>(
        &self,
        keyed: &Keyed,
        verdict: Verdict,
        action: &mut A,
    ) -> QueryResult<A::Output> {
        let begins = verdict.control.is_some();
        let level = {
            let session = self.session();
            self.level_of(&session)
        };
        let home = match keyed.key {
            Some(_) => Some(self.home_of(keyed).await?),
            None => None,
        };
        let (mut group, mut place) = self.reading_group(keyed, level, home).await?;
        loop {
            let part = self.part_of(keyed, group)?;
            part.session().must_show(place);
            keyed.last.store(group, Ordering::Release);
            let result = part.run_here(action).await;
            if begins && result.is_ok() {
                let guarded = false;
                *keyed.open.lock() = Some(Open { group, guarded });
            }
            // A near group that cannot serve sends nobody away while the home can.
            let away = |error: &diesel::result::Error| error.outcome() != Outcome::Failed;
            let other = home.filter(|home| *home != group);
            match (&result, other) {
                (Err(error), Some(other)) if away(error) && group == keyed.groups.local => {
                    let Some(there) = keyed.shows(other, level, home) else {
                        return result;
                    };
                    (group, place) = (other, there);
                }
                _ => return result,
            }
        }
    }

    /// The group for a read, waited for if none has what the session needs.
    async fn reading_group(
        &self,
        keyed: &Keyed,
        level: Consistency,
        home: Option<usize>,
    ) -> Result<(usize, Place), Error> {
        let local = !home.is_some_and(|home| keyed.has_state(home));
        if let Some(found) = keyed.reader(level, home, local) {
            return Ok(found);
        }
        let deadline = deadline::after(Instant::now(), keyed.groups.wait);
        let waiting = async {
            loop {
                if let Some(found) = keyed.reader(level, home, local) {
                    return Some(found);
                }
                if Instant::now() >= deadline {
                    return None;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let found = self.cluster.within(waiting).await.flatten();
        found.ok_or_else(|| {
            let waited = keyed.groups.wait;
            GroupsError::Behind { waited }.into()
        })
    }

    /// A write, or a transaction that may write, which runs where the key is at home.
    async fn writes<A: Action>(
        &self,
        keyed: &Keyed,
        verdict: Verdict,
        action: &mut A,
    ) -> QueryResult<A::Output> {
        let Some(key) = &keyed.key else {
            return Err(Error::from(GroupsError::NoKey).into());
        };
        let begins = verdict.control.is_some();
        let deadline = deadline::after(Instant::now(), keyed.groups.wait);
        loop {
            let home = self.home_of(keyed).await?;
            let part = self.part_of(keyed, home)?;
            keyed.last.store(home, Ordering::Release);
            if !begins && !verdict.writes {
                // A replica cannot be asked whether the key is at home.
                part.session().forced = Some(NodeKind::Primary);
            }
            let mut guarded = Guarded::new(action, check(key), begins);
            let result = part.run_here(&mut guarded).await;
            let Some(refused) = guarded.take_refusal() else {
                if begins && result.is_ok() {
                    *keyed.open.lock() = Some(Open {
                        group: home,
                        guarded: true,
                    });
                }
                return result;
            };
            self.learns(keyed, key, home, refused).await?;
            if Instant::now() >= deadline {
                let waited = keyed.groups.wait;
                let group = keyed.name(home);
                return Err(Error::from(GroupsError::Moving { group, waited }).into());
            }
        }
    }

    /// Learns where the key is at home from the refusal of `asked`. Waits a little if it moves.
    async fn learns(
        &self,
        keyed: &Keyed,
        key: &str,
        asked: usize,
        refused: Refused,
    ) -> Result<(), Error> {
        let homes = &keyed.groups.homes;
        let told = match refused {
            Refused::Moved => return Ok(()),
            Refused::NotAtHome(Refusal::Unknown) => None,
            Refused::NotAtHome(Refusal::Elsewhere {
                group,
                generation,
                settled,
            }) => {
                let known = keyed.groups.names();
                let place = keyed.groups.find(&group);
                let place = place.ok_or(GroupsError::UnknownGroup { name: group, known })?;
                if place == asked && !settled {
                    // Whoever moves it may be gone. Anybody can finish that.
                    let finishing = try_to_finish(&keyed.groups, key, place, generation);
                    let finished = self.cluster.within(finishing).await;
                    if matches!(finished, Some(Ok(Some(_)))) {
                        return Ok(());
                    }
                }
                Some((place, generation))
            }
        };
        let before = homes.get(key);
        if let Some((group, generation)) = told {
            homes.learn(key, group, generation);
        }
        let now = homes.get(key);
        // The home has not heard of it yet, or not all groups have.
        if now == before || now.is_some_and(|(group, _)| group == asked) {
            let pause = async { tokio::time::sleep(PAUSE).await };
            self.cluster.within(pause).await;
        }
        Ok(())
    }

    /// The group where the key is at home, as far as is known here.
    async fn home_of(&self, keyed: &Keyed) -> Result<usize, Error> {
        let Some(key) = &keyed.key else {
            return Ok(keyed.groups.local);
        };
        if let Some((group, _)) = keyed.groups.homes.get(key) {
            return Ok(group);
        }
        let found = look_up(&keyed.groups, key).await?;
        Ok(found.ok_or(GroupsError::NoHome)?.group)
    }
}

/// Asks one group after the other, the local one first.
async fn look_up(groups: &Groups, key: &str) -> Result<Option<HomeAt>, Error> {
    let local = groups.local;
    let others = (0..groups.members.len()).filter(|group| *group != local);
    let mut failed = None;
    for group in std::iter::once(local).chain(others) {
        match row_at(groups, group, key).await {
            Ok(Some(home)) => {
                groups.homes.learn(key, home.group, home.generation);
                return Ok(Some(home));
            }
            Ok(None) => {}
            Err(error) => failed = failed.or(Some(error.to_string())),
        }
    }
    match failed {
        Some(cause) => Err(GroupsError::HomeNotKnown { cause }.into()),
        None => Ok(None),
    }
}

/// Where a key is at home, as the group says that is known to be its home, or that this one names, and so on.
pub(crate) async fn home_at(groups: &Groups, key: &str) -> Result<Option<HomeAt>, Error> {
    let Some(found) = look_up(groups, key).await? else {
        return Ok(None);
    };
    let mut newest = found;
    loop {
        let known = groups
            .homes
            .get(key)
            .map_or(newest.group, |(group, _)| group);
        let told = row_at(groups, known, key).await.map_err(not_known)?;
        let Some(told) = told else {
            return Ok(Some(newest));
        };
        groups.homes.learn(key, told.group, told.generation);
        if told.generation < newest.generation {
            return Ok(Some(newest));
        }
        newest = told;
        if told.group == known {
            return Ok(Some(told));
        }
    }
}

/// Waits until all groups have heard that `key` has moved to the group `to`, and has that settle.
pub(crate) async fn finish_move(
    groups: &Groups,
    key: &str,
    to: usize,
    generation: i64,
) -> Result<HomeAt, Error> {
    let deadline = deadline::after(Instant::now(), groups.wait);
    loop {
        if let Some(home) = try_to_finish(groups, key, to, generation).await? {
            return Ok(home);
        }
        if Instant::now() >= deadline {
            let (group, waited) = (groups.members[to].name.clone(), groups.wait);
            return Err(GroupsError::Moving { group, waited }.into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Has the new home of a key settle, if all groups have heard of it. What each has applied by then of the old home comes
/// before all that the new one writes.
async fn try_to_finish(
    groups: &Groups,
    key: &str,
    to: usize,
    generation: i64,
) -> Result<Option<HomeAt>, Error> {
    let asking = (0..groups.members.len()).map(|group| row_at(groups, group, key));
    let rows = futures_util::future::join_all(asking).await;
    for (group, row) in rows.into_iter().enumerate() {
        let home = match row {
            Ok(home) => home,
            // It was given up, and gets a new copy of everything if it is taken back.
            Err(_) if group != to && is_cut_off(groups, to, group).await? => continue,
            Err(error) => return Err(not_known(error)),
        };
        let Some(home) = home.filter(|home| home.generation >= generation) else {
            return Ok(None);
        };
        if home.generation > generation || home.settled {
            groups.homes.learn(key, home.group, home.generation);
            return Ok(Some(home));
        }
    }
    settle(groups, key, to, generation)
        .await
        .map_err(not_known)?;
    Ok(Some(HomeAt {
        group: to,
        generation,
        settled: true,
    }))
}

/// Whether the group `at` has stopped to apply what `from` writes, as a forced move makes it.
pub(crate) async fn is_cut_off(groups: &Groups, at: usize, from: usize) -> Result<bool, Error> {
    use diesel_async::RunQueryDsl;

    let sql = "SELECT subenabled AS is_so FROM pg_catalog.pg_subscription WHERE subname = $1 AND subdbid = \
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
    let row = sql_query(sql).bind::<Text, _>(&groups.members[at].subscriptions[from]);
    let row: QueryResult<Option<Is>> = row.get_result(&mut to_group(groups, at)?).await.optional();
    Ok(row
        .map_err(not_known)?
        .is_some_and(|enabled| !enabled.is_so))
}

async fn settle(groups: &Groups, key: &str, to: usize, generation: i64) -> QueryResult<()> {
    use diesel_async::RunQueryDsl;

    let settle = sql_query("SELECT diesel_replicated.settle_home($1, $2)");
    let settle = settle.bind::<Text, _>(key).bind::<BigInt, _>(generation);
    settle.execute(&mut to_group(groups, to)?).await?;
    Ok(())
}

fn not_known(error: diesel::result::Error) -> Error {
    let cause = error.to_string();
    GroupsError::HomeNotKnown { cause }.into()
}

/// A connection to the primary of a group, for questions about homes.
fn to_group(groups: &Groups, group: usize) -> Result<ReplicatedConnection, Error> {
    let cluster = Arc::clone(&groups.members[group].cluster);
    let connection = ReplicatedConnection::new(cluster, Arc::default())?;
    connection.session().forced = Some(NodeKind::Primary);
    Ok(connection)
}

/// The home of a key, as the primary of a group tells it.
pub(crate) async fn row_at(
    groups: &Groups,
    group: usize,
    key: &str,
) -> QueryResult<Option<HomeAt>> {
    use diesel_async::RunQueryDsl;

    let sql = "SELECT home, generation, settled FROM diesel_replicated.homes WHERE key = $1";
    let row = sql_query(sql).bind::<Text, _>(key);
    let row: Option<HomeRow> = row
        .get_result(&mut to_group(groups, group)?)
        .await
        .optional()?;
    let Some(row) = row else {
        return Ok(None);
    };
    let known = groups.names();
    let place = groups.find(&row.home);
    let place = place.ok_or_else(|| {
        let name = row.home.clone();
        Error::from(GroupsError::UnknownGroup { name, known })
    })?;
    Ok(Some(HomeAt {
        group: place,
        generation: row.generation,
        settled: row.settled,
    }))
}
