//! A connection over several groups of one primary each: it writes where its key is at home, and reads where it is near.
//!
//! It holds a connection to each group that it has used. Their sessions know what was written and seen in each group. A
//! read may run in a group that has applied what the session needs of all others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use diesel::QueryResult;
use futures_core::future::BoxFuture;
use parking_lot::Mutex;

use super::ReplicatedConnection;
use super::action::Action;
use super::cancel_token::Running;
use super::guarded::{Guarded, Refused};
use super::homes::{PAUSE, look_up, try_to_finish};
use super::session_settings::SessionSettings;
use crate::classify::{Leaves, Shape, TransactionControl, Verdict};
use crate::config::Consistency;
use crate::deadline;
use crate::error::{Error, ErrorExt, GroupsError, Outcome};
use crate::groups::{Groups, GroupsHistory, Place, Refusal, check};
use crate::position::Position;
use crate::route::{NodeKind, Route, RouteReason};

/// Of so many reads whose requirements are not clear one waits until they are.
const PATIENT: usize = 8;

/// How long that one waits: longer than a question to another continent takes.
const CLEARS: Duration = Duration::from_millis(300);

/// What a connection over several groups has beside its own.
pub(crate) struct Keyed {
    groups: Arc<Groups>,
    /// Without one nothing is written.
    key: Option<Box<str>>,
    /// What the session has written and seen.
    history: Arc<GroupsHistory>,
    /// What a cancel token may have to reach, in whichever group.
    running: Arc<Running>,
    /// A connection to each group, once used.
    parts: Box<[OnceLock<Arc<ReplicatedConnection>>]>,
    /// Where a transaction is open.
    open: Mutex<Option<Open>>,
    /// The settings that the session has made, in whichever group.
    settings: Mutex<SessionSettings>,
    /// The group of the last statement.
    last: AtomicUsize,
    /// How many reads have gone home because it was not clear what the near group must show.
    unclear: AtomicUsize,
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

impl Keyed {
    pub(crate) fn new(
        groups: Arc<Groups>,
        key: Option<Box<str>>,
        history: Arc<GroupsHistory>,
        running: Arc<Running>,
    ) -> Self {
        let parts = groups.members.iter().map(|_| OnceLock::new()).collect();
        Self {
            last: AtomicUsize::new(groups.local),
            groups,
            key,
            history,
            running,
            parts,
            unclear: AtomicUsize::new(0),
            open: Mutex::new(None),
            settings: Mutex::default(),
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
        let mut new = ReplicatedConnection::new(cluster, history)?;
        new.running = Arc::clone(&self.running);
        Ok(part.get_or_init(|| Arc::new(new)))
    }

    pub(super) fn lost_write(&self) -> Option<Position> {
        let groups = self.groups.members.iter().zip(&*self.history.of);
        let mut lost = groups.filter_map(|(group, history)| history.lost(&group.cluster.write_log));
        lost.next()
    }

    pub(super) fn last_is_unconfirmed(&self) -> bool {
        let last = AtomicUsize::load(&self.last, Ordering::Acquire);
        self.history.of[last].last_is_unconfirmed()
    }

    fn name(&self, group: usize) -> String {
        self.groups.members[group].name.clone()
    }

    pub(super) fn last_route(&self) -> Option<Route> {
        let group = AtomicUsize::load(&self.last, Ordering::Acquire);
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

    /// The group that serves a read now: the local one if it has what the session needs, else the key's home. Without a home
    /// any other group is better than a local one that is not whole.
    fn reader(
        &self,
        level: Consistency,
        home: Option<usize>,
        local: bool,
    ) -> Option<(usize, Place)> {
        let near = Some(self.groups.local).filter(|_| local);
        let candidates = near
            .into_iter()
            .chain(home.filter(|home| near != Some(*home)));
        let anywhere = home.is_none() && near.is_none();
        let others = (0..self.groups.members.len()).filter(|group| self.groups.is_whole(*group));
        let others = others.chain([self.groups.local]).filter(|_| anywhere);
        candidates
            .chain(others)
            .find_map(|group| Some((group, self.shows(group, level, home)?)))
    }

    /// The group where the session has left what no other connection can have.
    fn pinned_to(&self) -> Option<usize> {
        let pinned = |part: &OnceLock<Arc<ReplicatedConnection>>| {
            part.get().is_some_and(|part| {
                let mut session = part.session();
                session.settle_doubts(&part.cluster.classifier);
                session.pinned
            })
        };
        self.parts.iter().position(pinned)
    }

    /// Whether it is not known yet that the session has left something in this group.
    fn is_in_doubt(&self, group: usize) -> bool {
        let part = self.parts[group].get();
        part.is_some_and(|part| part.session().doubts.is_some())
    }

    /// After a statement over the connection to this group.
    fn ran_in(&self, group: usize) {
        if let Some(part) = self.parts[group].get() {
            let session = part.session();
            self.settings.lock().follow(&session.settings);
        }
    }

    /// Runs a statement, which may begin a transaction. If it is dropped on the way, the transaction counts as open, as
    /// over one group.
    async fn begins<T>(
        &self,
        begins: bool,
        open: Open,
        running: impl Future<Output = QueryResult<T>>,
    ) -> QueryResult<T> {
        if !begins {
            return running.await;
        }
        *self.open.lock() = Some(open);
        let result = running.await;
        if result.is_err() {
            *self.open.lock() = None;
        }
        result
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
        let running = Arc::clone(&connection.running);
        connection.keyed = Some(Box::new(Keyed::new(groups, key, history, running)));
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
                    let place = self.shown_at(keyed, home).await?;
                    keyed.last.store(home, Ordering::Release);
                    let part = self.part_of(keyed, home).await?;
                    part.session().must_show(place);
                    part.run(action).await
                }
            };
            let group = AtomicUsize::load(&keyed.last, Ordering::Acquire);
            keyed.ran_in(group);
            if result.is_ok() {
                keyed.history.has_read_in(group);
            }
            result
        })
    }

    /// Refuses what means the connection of one group.
    pub(super) fn is_of_one_group(&self, what: &'static str) -> Result<(), Error> {
        match self.keyed {
            None => Ok(()),
            Some(_) => Err(GroupsError::OfOneGroup { what }.into()),
        }
    }

    /// What becomes of a statement, by what it is.
    fn course(&self, keyed: &Keyed, verdict: Verdict, sql: &str) -> Result<Course, Error> {
        // A question guards one transaction.
        let several = verdict.control.is_some() || sql.contains(';');
        let shape = several.then(|| Shape::of(sql));
        if shape.is_some_and(|shape| shape.divides) {
            return Err(GroupsError::OwnTransaction.into());
        }
        let open = *keyed.open.lock();
        if let Some(open) = open {
            let sets = verdict.control == Some(TransactionControl::Setting)
                || verdict.leaves != Leaves::Nothing;
            if !open.guarded && (sets || shape.is_some_and(|shape| shape.sets)) {
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
        let plain = verdict.control.is_none() && verdict.reason == RouteReason::PlainSelect;
        // What must be seen of the key, only its home knows, and only the home's database knows that it is the home.
        let strong = forced == Some(NodeKind::Primary) || self.reads_all();
        let strong = strong && keyed.key.is_some();
        if (plain || read_only) && !strong {
            return Ok(Course::Reads);
        }
        let begins = matches!(verdict.control, Some(TransactionControl::Begin { .. }));
        let reads = verdict.control.is_none() && verdict.leaves == Leaves::Nothing;
        if verdict.writes || begins || strong && reads {
            return Ok(Course::Writes);
        }
        Ok(Course::AtHome)
    }

    /// Whether reads must see what everybody has written, or how old it is.
    fn reads_all(&self) -> bool {
        matches!(
            self.consistency(),
            Consistency::Strong | Consistency::BoundedStaleness(_)
        )
    }

    /// The connection to a group, with the scope of this one.
    async fn part_of<'k>(&self, keyed: &'k Keyed, group: usize) -> Result<&'k Arc<Self>, Error> {
        let elsewhere = || keyed.pinned_to().filter(|pinned| *pinned != group);
        if elsewhere().is_some() {
            // A catalog that is being loaded may tell that nothing was left there.
            let settles = async {
                let deadline = deadline::after(Instant::now(), keyed.groups.wait);
                while elsewhere().is_some_and(|pinned| keyed.is_in_doubt(pinned))
                    && Instant::now() < deadline
                {
                    tokio::time::sleep(PAUSE).await;
                }
            };
            self.cluster.within(settles).await;
            if elsewhere().is_some() {
                return Err(GroupsError::StateElsewhere.into());
            }
        }
        let part = keyed.part(group)?;
        let scope = self.session().scope();
        let mut session = part.session();
        session.within_scope(scope);
        session.follow(&keyed.settings.lock());
        drop(session);
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
        let part = self.part_of(keyed, group).await?;
        let result = part.run(action).await;
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
        let level = self.consistency();
        // Without a home that is known, the local group serves what it can.
        let home = match keyed.key {
            Some(_) => self.home_of(keyed).await.ok(),
            None => None,
        };
        let (mut group, mut place) = self.reading_group(keyed, level, home).await?;
        loop {
            let part = self.part_of(keyed, group).await?;
            part.session().must_show(place);
            keyed.last.store(group, Ordering::Release);
            let guarded = false;
            let result = keyed.begins(begins, Open { group, guarded }, part.run(action));
            let result = result.await;
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
        let pinned = keyed.pinned_to();
        let home = pinned.or(home);
        let near = keyed.groups.local;
        let local = pinned.map_or_else(|| keyed.groups.is_whole(near), |pinned| pinned == near);
        let unclear = || keyed.history.is_unclear(&keyed.groups, near, level, home);
        if local && home.is_some_and(|home| home != near) && unclear() {
            // Each read at home is one more whose position has to be told. Now and then it is waited for.
            let count = keyed.unclear.fetch_add(1, Ordering::Relaxed);
            if count % PATIENT == PATIENT - 1 {
                let clears = async {
                    let end = Instant::now() + CLEARS;
                    while unclear() && Instant::now() < end {
                        tokio::time::sleep(PAUSE).await;
                    }
                };
                self.cluster.within(clears).await;
            }
        }
        self.applied(keyed, || keyed.reader(level, home, local))
            .await
    }

    /// What the home must show to what reads there, waited for.
    async fn shown_at(&self, keyed: &Keyed, home: usize) -> Result<Place, Error> {
        let level = self.consistency();
        self.applied(keyed, || keyed.shows(home, level, Some(home)))
            .await
    }

    /// What `look` finds when groups have applied enough.
    async fn applied<T>(&self, keyed: &Keyed, look: impl Fn() -> Option<T>) -> Result<T, Error> {
        if let Some(found) = look() {
            return Ok(found);
        }
        let deadline = deadline::after(Instant::now(), keyed.groups.wait);
        let waiting = async {
            loop {
                if let Some(found) = look() {
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
            // A write by itself waits for no other group: each goes on while others are away.
            let place = match begins || !verdict.writes {
                true => self.shown_at(keyed, home).await?,
                false => Place::default(),
            };
            let part = self.part_of(keyed, home).await?;
            part.session().must_show(place);
            keyed.last.store(home, Ordering::Release);
            if !begins && !verdict.writes {
                // A replica cannot be asked whether the key is at home.
                part.session().forced = Some(NodeKind::Primary);
            }
            let mut guarded = Guarded::new(action, check(key), begins);
            let open = Open {
                group: home,
                guarded: true,
            };
            let running = keyed.begins(begins, open, part.run(&mut guarded));
            let result = running.await;
            let not_run = |error: &diesel::result::Error| error.outcome() == Outcome::NotRun;
            let not_run = result.as_ref().err().is_some_and(not_run);
            match guarded.take_refusal() {
                Some(refused) => self.learns(keyed, key, (home, refused), deadline).await?,
                None if not_run => {
                    // The home is away. Another group may have taken over.
                    let _ = look_up(&keyed.groups, key).await;
                    if self.home_of(keyed).await? == home {
                        return result;
                    }
                }
                None => return result,
            }
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
        (asked, refused): (usize, Refused),
        deadline: Instant,
    ) -> Result<(), Error> {
        let homes = &keyed.groups.homes;
        let told = match refused {
            Refused::Moved => return Ok(()),
            Refused::NotAtHome(Refusal::Unknown) => None,
            Refused::NotAtHome(Refusal::Elsewhere {
                group, generation, ..
            }) => {
                let known = keyed.groups.names();
                let place = keyed.groups.find(&group);
                let place = place.ok_or(GroupsError::UnknownGroup { name: group, known })?;
                Some((place, generation))
            }
        };
        if let Some((group, generation)) = told {
            homes.learn(key, group, generation);
        }
        if homes.get(key).is_some_and(|(group, _)| group != asked) {
            return Ok(());
        }
        // It asks for the row meanwhile: each refused write would be an error in the server's log. Whoever moves the key
        // may be gone, and anybody can finish that.
        let settles = async {
            while Instant::now() < deadline {
                tokio::time::sleep(PAUSE).await;
                let Some((place, generation)) = homes.get(key) else {
                    return;
                };
                let finished = try_to_finish(&keyed.groups, key, place, generation).await;
                if matches!(finished, Ok(Some(_))) {
                    return;
                }
            }
        };
        self.cluster.within(settles).await;
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
