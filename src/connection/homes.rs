//! Asks groups where a key is at home, and finishes moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryResult;
use diesel::result::OptionalExtension;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::ReplicatedConnection;
use crate::deadline;
use crate::error::{Error, GroupsError};
use crate::groups::Groups;
use crate::route::NodeKind;

/// How long somebody waits before he asks again about a key that moves.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

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

/// Asks one group after the other, the local one first. One that is not whole may not have heard of a move, and is asked
/// last.
pub(super) async fn look_up(groups: &Groups, key: &str) -> Result<Option<HomeAt>, Error> {
    let local = groups.local;
    let others = (0..groups.members.len()).filter(|group| *group != local);
    let mut failed = None;
    let mut order: Vec<usize> = std::iter::once(local).chain(others).collect();
    order.sort_by_key(|group| !groups.is_whole(*group));
    for group in order {
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
        Some(cause) => Err(GroupsError::NotDone { cause }.into()),
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
        let told = row_at(groups, known, key)
            .await
            .map_err(GroupsError::not_done)?;
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
pub(super) async fn try_to_finish(
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
            Err(error) => return Err(GroupsError::not_done(error).into()),
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
        .map_err(GroupsError::not_done)?;
    Ok(Some(HomeAt {
        group: to,
        generation,
        settled: true,
    }))
}

/// Whether the group `at` has stopped to apply what `from` writes, as a forced move makes it.
pub(crate) async fn is_cut_off(groups: &Groups, at: usize, from: usize) -> Result<bool, Error> {
    let sql = "SELECT subenabled AS is_so FROM pg_catalog.pg_subscription WHERE subname = $1 AND subdbid = \
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
    let row = sql_query(sql).bind::<Text, _>(&groups.members[at].subscriptions[from]);
    let row: QueryResult<Option<Is>> = row.get_result(&mut to_group(groups, at)?).await.optional();
    Ok(row
        .map_err(GroupsError::not_done)?
        .is_some_and(|enabled| !enabled.is_so))
}

async fn settle(groups: &Groups, key: &str, to: usize, generation: i64) -> QueryResult<()> {
    let settle = sql_query("SELECT diesel_replicated.settle_home($1, $2)");
    let settle = settle.bind::<Text, _>(key).bind::<BigInt, _>(generation);
    settle.execute(&mut to_group(groups, to)?).await?;
    Ok(())
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
