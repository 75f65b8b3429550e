//! Gives the keys of a group that is gone another home, without asking it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::MultiPrimaryPool;
use crate::connection::{finish_move, row_at};
use crate::deadline;
use crate::error::{Error, GroupsError};
use crate::position::Lsn;

/// How often it looks whether a group still applies.
const PAUSE: Duration = Duration::from_millis(20);

/// What a forced move has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Forced {
    /// How many keys have another home.
    pub keys: u64,
    /// What each group that is left has applied of the one that is gone. What that wrote later may be lost. Where they
    /// differ, one of them lacks what others have.
    pub survivors: Vec<Survivor>,
}

/// A group that is left after a forced move.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Survivor {
    /// Its name.
    pub group: String,
    /// It has applied the log of the group that is gone up to here. `None` if that is not known: the role may not ask for
    /// the progress of replication origins, and this pool has not heard of it before.
    pub applied: Option<Lsn>,
}

#[derive(QueryableByName)]
struct Key {
    #[diesel(sql_type = Text)]
    key: String,
}

#[derive(QueryableByName)]
struct Workers {
    #[diesel(sql_type = BigInt)]
    workers: i64,
}

#[derive(QueryableByName)]
struct Progress {
    #[diesel(sql_type = Nullable<Text>)]
    applied: Option<String>,
}

const WORKERS: &str = "SELECT count(*) AS workers FROM pg_catalog.pg_stat_subscription w \
    JOIN pg_catalog.pg_subscription s ON s.oid = w.subid WHERE w.subname = $1 AND w.pid IS NOT NULL AND s.subdbid = \
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

const PROGRESS: &str = "SELECT pg_catalog.pg_replication_origin_progress('pg_' || s.oid, true)::text AS applied \
    FROM pg_catalog.pg_subscription s WHERE s.subname = $1 AND s.subdbid = \
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

/// The new row comes after all that the groups that are left have heard.
const TAKE: &str = "INSERT INTO diesel_replicated.homes VALUES ($1, diesel_replicated.this_group(), $2, true) \
    ON CONFLICT (key) DO UPDATE SET home = excluded.home, generation = excluded.generation, settled = true \
    WHERE homes.generation < excluded.generation";

const TAKE_ALL: &str = "UPDATE diesel_replicated.homes \
    SET home = diesel_replicated.this_group(), generation = generation + 1, settled = true WHERE home = $1";

impl MultiPrimaryPool {
    /// Gives all keys of a group another home without asking it, because it is gone.
    ///
    /// What it wrote and nobody has applied may be lost. **Make sure that it takes no writes any more**: its own database
    /// does not know that its keys have moved until it hears of the others.
    ///
    /// First the other groups stop to apply what it writes (`ALTER SUBSCRIPTION … DISABLE`, which takes their owner), so
    /// that nothing that it wrote last comes later, over what others have written since. Keys that were on their way to or
    /// from it go to `to` as well, unless they have arrived elsewhere.
    ///
    /// # Errors
    ///
    /// There is no group of this name, or another group than the one that is gone cannot be reached or does not stop to
    /// apply within [`wait`](super::MultiPrimaryBuilder::wait). It may be called again.
    pub async fn force_move_home(&self, from: &str, to: &str) -> Result<Forced, Error> {
        let (gone, target) = (self.find(from)?, self.find(to)?);
        if gone == target {
            let name = from.to_owned();
            return Err(GroupsError::SameGroup { name }.into());
        }
        let others = 0..self.groups.members.len();
        let others: Vec<usize> = others.filter(|at| *at != gone).collect();
        let mut survivors = Vec::new();
        for at in &others {
            survivors.push(self.cuts_off(*at, gone).await?);
        }
        let mut keys = self.take_those_under_way(&others, gone, target).await?;
        let mut conn = self.pools[target].get().await?;
        let take = sql_query(TAKE_ALL).bind::<Text, _>(from);
        let taken = take
            .execute(&mut conn)
            .await
            .map_err(GroupsError::not_done)?;
        keys += u64::try_from(taken).unwrap_or_default();
        self.groups.homes.clear();
        tracing::warn!(target: "diesel_replicated", from, to, keys, "home_forced");
        Ok(Forced { keys, survivors })
    }

    /// Has a group apply nothing more of the one that is gone. Returns when its worker has ended, which may be in the middle
    /// of a transaction.
    async fn cuts_off(&self, at: usize, gone: usize) -> Result<Survivor, Error> {
        let group = &self.groups.members[at];
        let subscription = &group.subscriptions[gone];
        let mut conn = self.pools[at].get().await?;
        let quoted = subscription.replace('"', "\"\"");
        let disable = format!("ALTER SUBSCRIPTION \"{quoted}\" DISABLE");
        conn.batch_execute(&disable)
            .await
            .map_err(GroupsError::not_done)?;
        let deadline = deadline::after(Instant::now(), self.groups.wait);
        loop {
            let look = sql_query(WORKERS).bind::<Text, _>(subscription);
            let found: Workers = look
                .get_result(&mut conn.primary())
                .await
                .map_err(GroupsError::not_done)?;
            if found.workers == 0 {
                break;
            }
            if Instant::now() >= deadline {
                let (name, waited) = (group.name.clone(), self.groups.wait);
                return Err(GroupsError::StillApplies { name, waited }.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        let ask = sql_query(PROGRESS).bind::<Text, _>(subscription);
        let told: diesel::QueryResult<Progress> = ask.get_result(&mut conn.primary()).await;
        let told = told.ok().and_then(|told| told.applied?.parse().ok());
        Ok(Survivor {
            group: group.name.clone(),
            applied: told.or_else(|| group.applied.latest(gone)),
        })
    }

    /// Gives keys a home that were on their way: of those that have arrived at a group that is left it settles, the others
    /// go to `target`.
    async fn take_those_under_way(
        &self,
        others: &[usize],
        gone: usize,
        target: usize,
    ) -> Result<u64, Error> {
        let mut under_way = BTreeSet::new();
        for at in others {
            let look = "SELECT key FROM diesel_replicated.homes WHERE NOT settled";
            let mut conn = self.pools[*at].get().await?;
            let found: Vec<Key> = sql_query(look)
                .load(&mut conn.primary())
                .await
                .map_err(GroupsError::not_done)?;
            under_way.extend(found.into_iter().map(|row| row.key));
        }
        let mut taken = 0;
        for key in under_way {
            let mut rows = Vec::new();
            for at in others {
                let row = row_at(&self.groups, *at, &key)
                    .await
                    .map_err(GroupsError::not_done)?;
                rows.extend(row.map(|row| (*at, row)));
            }
            let newest = rows.iter().map(|(_, row)| *row);
            let Some(newest) = newest.max_by_key(|row| (row.generation, row.settled)) else {
                continue;
            };
            let has_arrived = |(at, row): &(usize, crate::connection::HomeAt)| {
                *at == newest.group && row.generation == newest.generation
            };
            if newest.settled && newest.group != gone {
                continue;
            }
            if newest.group != gone && rows.iter().any(has_arrived) {
                finish_move(&self.groups, &key, newest.group, newest.generation).await?;
                continue;
            }
            let mut conn = self.pools[target].get().await?;
            let take = sql_query(TAKE).bind::<Text, _>(&key);
            let take = take.bind::<BigInt, _>(newest.generation + 1);
            let done = take
                .execute(&mut conn)
                .await
                .map_err(GroupsError::not_done)?;
            taken += u64::try_from(done).unwrap_or_default();
        }
        Ok(taken)
    }
}
