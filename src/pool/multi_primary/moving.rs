//! Gives keys a home, and another one.

use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::MultiPrimaryPool;
use crate::connection::{finish_move, home_at, is_cut_off, row_at};
use crate::deadline;
use crate::error::{Error, GroupsError};
use crate::groups::{Home, checked_key};
use crate::metrics;
use crate::position::Lsn;

/// How often a move looks whether another group has heard of it.
const PAUSE: Duration = Duration::from_millis(5);

/// A key that has moved.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Moved {
    /// The key.
    pub key: String,
    /// Where it was.
    pub from: String,
    /// Where it is.
    pub to: Home,
    /// How long its writes were held.
    pub held: Duration,
}

#[derive(QueryableByName)]
struct Generation {
    #[diesel(sql_type = Nullable<BigInt>)]
    generation: Option<i64>,
}

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = Text)]
    place: String,
}

impl MultiPrimaryPool {
    /// Gives a key its first home. A key that has one keeps it. Returns the home, when writes may go there.
    ///
    /// The group that [`setup_sql`](crate::multi_primary::setup_sql) names for births writes this down; if another one is the
    /// home, it takes as long as replication there and back.
    ///
    /// # Errors
    ///
    /// There is no group of this name, the group of births cannot be reached, or the home has not heard of the key within
    /// [`wait`](super::MultiPrimaryBuilder::wait): then it will.
    pub async fn place(&self, key: impl AsRef<str>, group: &str) -> Result<Home, Error> {
        let key = checked_key(key.as_ref())?;
        let target = self.find(group)?;
        let births = self.births().await?;
        self.takes_keys(births, target).await?;
        let place = sql_query("SELECT diesel_replicated.place_home($1, $2)");
        let place = place.bind::<Text, _>(key).bind::<Text, _>(group);
        let mut conn = self.pools[births].get().await?;
        place
            .execute(&mut conn)
            .await
            .map_err(GroupsError::not_done)?;
        let born = row_at(&self.groups, births, key)
            .await
            .map_err(GroupsError::not_done)?;
        let born = born.ok_or(GroupsError::NoHome)?;
        self.groups.homes.learn(key, born.group, born.generation);
        let home = match born.settled {
            true => born,
            false => finish_move(&self.groups, key, born.group, born.generation).await?,
        };
        Ok(self.told(&home))
    }

    /// Refuses a group that `home` applies nothing of any more.
    async fn takes_keys(&self, home: usize, target: usize) -> Result<(), Error> {
        if home != target && is_cut_off(&self.groups, home, target).await? {
            let name = self.groups.members[target].name.clone();
            return Err(GroupsError::GivenUp { name }.into());
        }
        Ok(())
    }

    fn told(&self, home: &crate::connection::HomeAt) -> Home {
        Home {
            group: self.groups.members[home.group].name.clone(),
            generation: home.generation,
            settled: home.settled,
        }
    }

    /// The group where keys get their first home.
    async fn births(&self) -> Result<usize, Error> {
        let mut conn = self.pools[self.groups.local].get().await?;
        let asking = sql_query("SELECT diesel_replicated.births() AS place");
        let place: Place = asking
            .get_result(&mut conn)
            .await
            .map_err(GroupsError::not_done)?;
        self.find(&place.place)
    }

    /// Moves keys to another home, one after the other. No write fails: it waits until the new home has all that was
    /// written before. A key that is at home there already stays.
    ///
    /// # Errors
    ///
    /// There is no group of this name, a key has no home, or groups do not replicate in time
    /// ([`wait`](super::MultiPrimaryBuilder::wait)). Before a key's writes are held, the new home must have applied what
    /// the old one has written. If groups stop to replicate after that, writes of the key wait until they do again, or
    /// until its home is moved [by force](Self::force_move_home).
    pub async fn move_home<K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        to: &str,
    ) -> Result<Vec<Moved>, Error> {
        let target = self.find(to)?;
        let mut moved = Vec::new();
        for key in keys {
            moved.extend(self.move_one(key.as_ref(), target).await?);
        }
        Ok(moved)
    }

    async fn move_one(&self, key: &str, target: usize) -> Result<Option<Moved>, Error> {
        let key = checked_key(key)?;
        let deadline = deadline::after(Instant::now(), self.groups.wait);
        let to = &self.groups.members[target].name;
        loop {
            let home = home_at(&self.groups, key).await?;
            let home = home.ok_or(GroupsError::NoHome)?;
            if home.group == target {
                if !home.settled {
                    finish_move(&self.groups, key, target, home.generation).await?;
                }
                return Ok(None);
            }
            self.takes_keys(home.group, target).await?;
            if home.settled {
                self.catches_up(home.group, deadline).await?;
                let began = Instant::now();
                if let Some(generation) = self.let_go(key, home.group, to).await? {
                    self.groups.homes.learn(key, target, generation);
                    let new = finish_move(&self.groups, key, target, generation).await?;
                    let held = began.elapsed();
                    let from = &self.groups.members[home.group].name;
                    metrics::home_moved(from, to, held);
                    let seconds = held.as_secs_f64();
                    tracing::info!(target: "diesel_replicated", from, to, generation, held = seconds, "home_moved");
                    return Ok(Some(Moved {
                        key: key.to_owned(),
                        from: from.clone(),
                        to: self.told(&new),
                        held,
                    }));
                }
            } else {
                finish_move(&self.groups, key, home.group, home.generation).await?;
            }
            if Instant::now() >= deadline {
                let (group, waited) = (to.clone(), self.groups.wait);
                return Err(GroupsError::Moving { group, waited }.into());
            }
        }
    }

    /// Has the home let go of a key, when its writes are at their ends. `None` if the key is not at home there.
    async fn let_go(&self, key: &str, home: usize, to: &str) -> Result<Option<i64>, Error> {
        let limit = i64::try_from(self.groups.wait.as_millis()).unwrap_or(i64::MAX);
        let mut conn = self.pools[home].get().await?;
        let sql = "SELECT diesel_replicated.move_home($1, $2, $3) AS generation";
        let row = sql_query(sql).bind::<Text, _>(key).bind::<Text, _>(to);
        let row = row.bind::<BigInt, _>(limit.max(1));
        let row: Generation = row
            .get_result(&mut conn)
            .await
            .map_err(GroupsError::not_done)?;
        Ok(row.generation)
    }

    /// Waits until all other groups have applied what `from` has written by now.
    async fn catches_up(&self, from: usize, deadline: Instant) -> Result<(), Error> {
        let mut conn = self.pools[from].get().await?;
        let asking = sql_query("SELECT pg_catalog.pg_current_wal_flush_lsn()::text AS place");
        let place: Place = asking
            .get_result(&mut conn.primary())
            .await
            .map_err(GroupsError::not_done)?;
        let place: Lsn = place.place.parse().unwrap_or_default();
        for (at, group) in self.groups.members.iter().enumerate() {
            if at == from || is_cut_off(&self.groups, from, at).await? {
                continue;
            }
            while group.applied.latest(from).is_none_or(|it| it < place) {
                group.applied.want();
                if Instant::now() >= deadline {
                    return Err(GroupsError::NotReplicating {
                        from: self.groups.members[from].name.clone(),
                        to: group.name.clone(),
                        waited: self.groups.wait,
                    }
                    .into());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}
