//! Several clusters, each with a primary of its own, that replicate to each other logically.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::cluster::wait_replayed;
use super::node::conninfo;
use super::proxy::Proxy;
use super::{Binaries, ClusterError, LocalCluster, LocalNode, wait_for};

/// Groups of one primary each. What one writes goes to all others by logical replication with
/// [`origin = none`](https://www.postgresql.org/docs/current/sql-createsubscription.html), which takes PostgreSQL 16 or later.
///
/// Each direction between two groups is a [`cable`](Self::cable), which can be cut or delayed.
pub struct LocalGroups {
    groups: Vec<(String, LocalCluster)>,
    /// The names of the nodes that took over, by group.
    leaders: Mutex<BTreeMap<String, String>>,
    cables: Vec<Cable>,
    database: String,
    failover_slots: bool,
}

/// What carries the writes of one group to another.
struct Cable {
    from: String,
    to: String,
    proxy: Proxy,
}

impl LocalGroups {
    /// Starts to describe groups.
    pub fn builder() -> LocalGroupsBuilder {
        LocalGroupsBuilder::default()
    }

    /// The name of the subscription by which a group gets what `from` writes.
    #[must_use]
    pub fn subscription(from: &str) -> String {
        format!("from_{from}")
    }

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&LocalCluster> {
        let mut groups = self.groups.iter();
        groups.find(|(other, _)| other == name).map(|(_, it)| it)
    }

    /// The names of the groups.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(|(name, _)| name.as_str())
    }

    /// The database that they share.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// A URL to all nodes of a group; empty if there is no such group.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        let group = self.group(name);
        group.map_or_else(String::new, |group| group.url(&self.database))
    }

    /// What carries the writes of one group to another.
    #[must_use]
    pub fn cable(&self, from: &str, to: &str) -> Option<&Proxy> {
        let mut cables = self.cables.iter();
        let cable = cables.find(|cable| cable.from == from && cable.to == to);
        cable.map(|cable| &cable.proxy)
    }

    /// The node that takes the writes of a group: its first one, or the one that has taken over.
    #[must_use]
    pub fn primary_of(&self, name: &str) -> Option<&LocalNode> {
        let group = self.group(name)?;
        let leaders = self.leaders.lock();
        let leader = leaders.get(name).and_then(|leader| group.node(leader));
        Some(leader.unwrap_or_else(|| group.primary()))
    }

    /// The nodes of a group that follow its primary, or are to.
    fn standbys_of(&self, name: &str) -> Vec<&LocalNode> {
        let primary = self.primary_of(name).map(LocalNode::name);
        let nodes = self.group(name).into_iter().flat_map(LocalCluster::nodes);
        nodes.filter(|node| Some(node.name()) != primary).collect()
    }

    /// Kills the primary of a group and promotes its first standby, once that has the slots of the subscribers and what the
    /// primary has written by now. What the others subscribe to is the promoted node then. Returns that.
    ///
    /// # Errors
    ///
    /// The slots do not come to the standby, or a node cannot be asked.
    pub fn fail_over(&self, name: &str) -> Result<&LocalNode, ClusterError> {
        if self.failover_slots {
            self.wait_slots(name)?;
        }
        let none = || ClusterError::Config(format!("group `{name}` has no standby"));
        let standby = self.standbys_of(name).into_iter().next();
        let (primary, standby) = self.primary_of(name).zip(standby).ok_or_else(none)?;
        wait_replayed(primary, [standby])?;
        primary.kill()?;
        standby.promote()?;
        self.lead_from(name, standby);
        Ok(standby)
    }

    /// Has the other nodes of a group follow the one that has taken over: they are made anew.
    ///
    /// # Errors
    ///
    /// A node cannot be made or asked.
    pub fn rejoin(&self, name: &str) -> Result<(), ClusterError> {
        let (Some(group), Some(primary)) = (self.group(name), self.primary_of(name)) else {
            return Ok(());
        };
        for standby in self.standbys_of(name) {
            group.rebuild(standby, primary)?;
        }
        // A receiver that goes from one timeline to the next does not hear of a new slot.
        wait_replayed(primary, self.standbys_of(name))?;
        self.keep_standbys(name)?;
        wait_for(&format!("the standbys of `{name}` stream"), || {
            let unused = "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active";
            let unused = primary.value("postgres", unused)?;
            Ok((unused.as_deref() == Some("0")).then_some(()))
        })
    }

    /// Leads what carries the writes of `from` to this node, as after a failover in that group.
    pub fn lead_from(&self, from: &str, node: &LocalNode) {
        let mut leaders = self.leaders.lock();
        leaders.insert(from.to_owned(), node.name().to_owned());
        drop(leaders);
        for cable in self.cables.iter().filter(|cable| cable.from == from) {
            cable.proxy.lead_to(node.port());
        }
    }

    /// Waits until each group that runs has applied what all others have written by now.
    ///
    /// # Errors
    ///
    /// A group does not catch up, or cannot be asked.
    pub fn wait_applied(&self) -> Result<(), ClusterError> {
        let primaries = self.groups.iter();
        let primaries = primaries.filter_map(|(name, _)| Some((name, self.primary_of(name)?)));
        let running: Vec<_> = primaries.filter(|(_, it)| it.is_running()).collect();
        for (from, source) in &running {
            let position = "SELECT pg_current_wal_insert_lsn()";
            let position = source.value(&self.database, position)?;
            let position = position.unwrap_or_default();
            let reached = format!(
                "SELECT latest_end_lsn >= '{position}' FROM pg_stat_subscription \
                 WHERE subname = '{}' AND leader_pid IS NULL AND relid IS NULL",
                Self::subscription(from)
            );
            for (to, target) in running.iter().filter(|(to, _)| to != from) {
                wait_for(&format!("`{to}` applies what `{from}` wrote"), || {
                    let reached = target.value(&self.database, &reached)?;
                    Ok((reached.as_deref() == Some("t")).then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// Waits until the slots of the subscribers of this group are on its standbys, from where a failover can go on with
    /// them.
    ///
    /// # Errors
    ///
    /// They do not come, or a node cannot be asked.
    pub fn wait_slots(&self, name: &str) -> Result<(), ClusterError> {
        let synced = format!(
            "SELECT count(*) = {} FROM pg_replication_slots WHERE synced AND NOT temporary",
            self.groups.len() - 1
        );
        let Some(primary) = self.primary_of(name) else {
            return Ok(());
        };
        // A slot comes to a standby once its subscriber has confirmed what is younger than the standby's own start.
        let younger =
            "SELECT pg_log_standby_snapshot(), pg_logical_emit_message(false, 'slots', '')";
        for standby in self.standbys_of(name) {
            let look = || {
                let synced = standby.value("postgres", &synced)?;
                Ok((synced.as_deref() == Some("t")).then_some(()))
            };
            if look()?.is_some() {
                continue;
            }
            // While there is news, the standby's worker sleeps for less than a second.
            wait_for(&format!("`{}` has the slots", standby.name()), || {
                primary.sql(&self.database, younger)?;
                look()
            })?;
        }
        Ok(())
    }

    /// Has the commits of a group wait for one of its standbys, and each of these keep the slots of the subscribers, who get
    /// nothing before them.
    fn keep_standbys(&self, name: &str) -> Result<(), ClusterError> {
        let (Some(primary), standbys) = (self.primary_of(name), self.standbys_of(name)) else {
            return Ok(());
        };
        if standbys.is_empty() {
            return Ok(());
        }
        let mut slots = Vec::new();
        for (number, standby) in standbys.iter().enumerate().filter(|_| self.failover_slots) {
            let slot = format!("standby_{number}");
            let make = format!("SELECT pg_create_physical_replication_slot('{slot}')");
            primary.sql("postgres", &make)?;
            let upstream = conninfo(primary, standby.name());
            for setting in [
                format!("primary_conninfo = '{upstream} dbname={}'", self.database),
                format!("primary_slot_name = '{slot}'"),
                "hot_standby_feedback = on".to_owned(),
                "sync_replication_slots = on".to_owned(),
            ] {
                standby.sql("postgres", &format!("ALTER SYSTEM SET {setting}"))?;
            }
            standby.sql("postgres", "SELECT pg_reload_conf()")?;
            slots.push(slot);
        }
        if self.failover_slots {
            let wait = slots.join(",");
            let wait = format!("ALTER SYSTEM SET synchronized_standby_slots = '{wait}'");
            primary.sql("postgres", &wait)?;
        }
        // The subscribers of a group are no standbys, so these are named.
        let names = standbys.iter().map(|it| format!("\"{}\"", it.name()));
        let names = names.collect::<Vec<_>>().join(",");
        let wait = format!("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({names})'");
        primary.sql("postgres", &wait)?;
        primary.sql("postgres", "SELECT pg_reload_conf()").map(drop)
    }

    fn connect(&mut self) -> Result<(), ClusterError> {
        let everything = "CREATE PUBLICATION everything FOR ALL TABLES";
        for (name, group) in &self.groups {
            group.primary().sql(&self.database, everything)?;
            self.keep_standbys(name)?;
        }
        let failover = match self.failover_slots {
            true => ", failover = true",
            false => "",
        };
        for (from, source) in &self.groups {
            for (to, target) in self.groups.iter().filter(|(to, _)| to != from) {
                let proxy = Proxy::start(source.primary().port())?;
                let subscribe = format!(
                    "CREATE SUBSCRIPTION {} CONNECTION 'host=127.0.0.1 port={} user=postgres dbname={}' \
                     PUBLICATION everything WITH (origin = none, copy_data = false, synchronous_commit = on, slot_name = 'to_{to}'{failover})",
                    Self::subscription(from),
                    proxy.port(),
                    self.database
                );
                target.primary().sql(&self.database, &subscribe)?;
                let (from, to) = (from.clone(), to.clone());
                self.cables.push(Cable { from, to, proxy });
            }
        }
        self.wait_applied()
    }
}

impl fmt::Debug for LocalGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalGroups")
            .field("groups", &self.groups)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// Builds [`LocalGroups`].
#[derive(Clone, Debug)]
#[must_use]
pub struct LocalGroupsBuilder {
    groups: Vec<(String, usize)>,
    database: String,
    /// For one group, or for all.
    schema: Vec<(Option<String>, String)>,
    settings: Vec<(String, String)>,
    binaries: Option<PathBuf>,
    failover_slots: bool,
}

impl Default for LocalGroupsBuilder {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            database: "app".to_owned(),
            schema: Vec::new(),
            settings: Vec::new(),
            binaries: None,
            failover_slots: true,
        }
    }
}

impl LocalGroupsBuilder {
    /// A group of one primary with so many replicas.
    pub fn group(mut self, name: impl Into<String>, replicas: usize) -> Self {
        self.groups.push((name.into(), replicas));
        self
    }

    /// The name of the database that all share. Defaults to `app`.
    pub fn database(mut self, name: impl Into<String>) -> Self {
        self.database = name.into();
        self
    }

    /// What makes the tables of every group, before anything is replicated.
    pub fn schema(mut self, sql: impl Into<String>) -> Self {
        self.schema.push((None, sql.into()));
        self
    }

    /// The same for one group.
    pub fn schema_of(mut self, group: impl Into<String>, sql: impl Into<String>) -> Self {
        self.schema.push((Some(group.into()), sql.into()));
        self
    }

    /// A failover of a group ends what the others get from it, as before PostgreSQL 17. By default the
    /// [slots](https://www.postgresql.org/docs/current/logical-replication-failover.html) of the subscribers survive it, where
    /// the server can do that.
    pub fn without_failover_slots(mut self) -> Self {
        self.failover_slots = false;
        self
    }

    /// A setting of `postgresql.conf` on every node.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// The folder of the server's programs. Defaults to what [`Binaries::find`](super::Binaries::find) finds; if that is too
    /// old, to the folder that `DIESEL_REPLICATED_NEW_PG_BIN` names.
    pub fn binaries(mut self, directory: impl Into<PathBuf>) -> Self {
        self.binaries = Some(directory.into());
        self
    }

    /// Starts the groups, and returns when all replicate.
    ///
    /// # Errors
    ///
    /// There is no PostgreSQL server of version 16 or later, or it cannot be started.
    pub fn start(self) -> Result<LocalGroups, ClusterError> {
        let binaries = match &self.binaries {
            Some(directory) => Binaries::in_directory(directory)?,
            None => Binaries::find_since(OLDEST)?,
        };
        let mut groups = Vec::new();
        for (name, replicas) in &self.groups {
            let mut cluster = LocalCluster::builder()
                .replicas(*replicas)
                .binaries(binaries.directory())
                .setting("wal_level", "logical")
                .setting("track_commit_timestamp", "on")
                .setting("max_logical_replication_workers", "20")
                .setting("max_worker_processes", "40");
            for (setting, value) in &self.settings {
                cluster = cluster.setting(setting, value);
            }
            let cluster = cluster.start()?;
            cluster.create_database(&self.database)?;
            let is_its = |of: &Option<String>| of.as_ref().is_none_or(|of| of == name);
            for (_, sql) in self.schema.iter().filter(|(of, _)| is_its(of)) {
                cluster.primary().sql(&self.database, sql)?;
            }
            groups.push((name.clone(), cluster));
        }
        let mut groups = LocalGroups {
            groups,
            leaders: Mutex::default(),
            cables: Vec::new(),
            database: self.database,
            failover_slots: self.failover_slots && binaries.major_version() >= KEEPS_SLOTS,
        };
        groups.connect()?;
        Ok(groups)
    }
}

/// `origin = none`.
const OLDEST: u32 = 16;

/// `failover = true`.
const KEEPS_SLOTS: u32 = 17;
