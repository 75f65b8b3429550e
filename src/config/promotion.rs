//! Whether this pool promotes replicas by itself, and under which conditions.

use std::time::Duration;

use super::ConfigError;
use super::declare::settings;

settings! {
    /// Whether this pool promotes replicas, and what has to hold before it does.
    ///
    /// Leave it as it is where somebody else promotes (Patroni, `pg_auto_failover`, repmgr, a cloud): the
    /// pool follows whoever rules. With [`automatic`](Self::automatic) the application's own processes
    /// do it, without further infrastructure. One of them acts if all of this holds:
    ///
    /// - it has not reached the primary for [`after`](Self::after);
    /// - no replica has heard of the primary within [`witness_age`](Self::witness_age);
    /// - a majority of **all** configured nodes, the dead primary among them, can be reached and agrees.
    ///   They agree by a session advisory lock in [`database`](Self::database), so that of many processes
    ///   one acts. With three nodes two have to; with two nodes it can never be;
    /// - the replica with the most log, on the newest timeline, lacks no more of what the primary is known
    ///   to have written than [`max_loss_bytes`](Self::max_loss_bytes), and with synchronous replication
    ///   no acknowledged commit can be on unreachable replicas alone.
    ///
    /// What was decided is sent together with what it rests on: if the message comes to the replica later than
    /// twice [`HealthConfig::timeout`](super::HealthConfig::timeout) after that was asked, by its own clock, or
    /// the replica has heard of the primary again, nothing happens.
    ///
    /// What it needs: the right to call `pg_promote` (`GRANT EXECUTE ON FUNCTION pg_promote TO …`) and to
    /// see the receivers (`pg_monitor`); for as long as a replica receives what this role may not see, it
    /// counts as hearing of the primary. The other replicas follow the new primary with
    /// [`standbys_follow`](Self::standbys_follow), or if their `primary_conninfo` leads there by itself: by a name or
    /// an address that moves, or a list of all nodes with `target_session_attrs=primary`. See
    /// <https://www.postgresql.org/docs/current/warm-standby-failover.html>.
    ///
    /// What remains: standbys keep no vote when its connection ends. If a node is promoted and vanishes before
    /// any other has followed it, those that are left do not know of its timeline. Processes that saw it do,
    /// and refuse the old primary; one that starts afterwards does not, and writes to the old primary when
    /// that comes back, or takes part in another promotion. What was written to the node that vanished is
    /// missing there. So have the replicas follow a new primary at once (their number limits how many may
    /// vanish), and start neither the old primary nor new processes while the promoted node is gone: bring it
    /// back, or decide that it is given up, rebuild or remove it, and then start all processes anew.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PromotionConfig {
        /// Whether a replica is promoted when the primary is gone. Default: `false`.
        automatic: bool = false;
        /// How long the primary has to be gone. A server that restarts faster than this stays the
        /// primary. Default: 500 milliseconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        after: Duration = Duration::from_millis(500), set;
        /// A replica that heard of the primary within this time keeps it from being replaced. While
        /// automatic promotion is on, each process has an idle primary write a few bytes of log at each
        /// [`HealthConfig::interval`](super::HealthConfig::interval), so that there is something to hear.
        /// Default: 10 seconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        witness_age: Duration = Duration::from_secs(10), set;
        /// How much of what the primary is known to have written may be lost. Default: 1 MiB. Without
        /// synchronous replication 0 may keep a promotion from ever being possible.
        max_loss_bytes: u64 = 1 << 20, set;
        /// How long the promoted server may take to open for writes. Default: 30 seconds.
        #[cfg_attr(feature = "serde", serde(with = "super::duration::human"))]
        timeout: Duration = Duration::from_secs(30), set;
        /// Whether the other standbys are made to follow the new primary, so that another failover can come without an
        /// operator. Default: `false`.
        ///
        /// Of each standby whose `primary_conninfo` leads to a primary that was replaced, host and port are replaced by
        /// those by which this pool reaches the new one ([`NodeConfig::replication_address`] if standbys reach it
        /// elsewhere); all else of it stays. A standby that follows another standby stays as it is. One that has more log
        /// than the new primary is left. Each process with this setting does it, whoever has promoted, and as long
        /// as it takes: leave it off where something else does it (Patroni, repmgr, an operator's scripts).
        /// [The guide](crate::guide::failover#the-other-standbys) tells the rest.
        ///
        /// Reading `primary_conninfo` takes `pg_read_all_settings`, which is part of `pg_monitor`; changing it takes
        /// PostgreSQL 15 or a superuser. Run this once on the primary, in [`database`](Self::database):
        ///
        /// ```sql
        /// GRANT pg_monitor TO app;
        /// GRANT ALTER SYSTEM, SET ON PARAMETER primary_conninfo TO app;
        /// GRANT EXECUTE ON FUNCTION pg_reload_conf() TO app;
        /// -- Only if standbys have a `primary_slot_name`, whose slot is then made on the new primary.
        /// ALTER ROLE app REPLICATION;
        /// ```
        ///
        /// PostgreSQL writes each new `primary_conninfo` into the standby's own log, whoever changes it: have passwords
        /// in a `passfile`.
        ///
        /// [`NodeConfig::replication_address`]: crate::NodeConfig::replication_address
        standbys_follow: bool = false, set;
        /// The database in which processes agree. All that share the cluster have to name the same.
        /// Default: `postgres`.
        database: String = "postgres".to_owned(), into;
    }
}

impl PromotionConfig {
    /// The defaults, with [`automatic`](Self::automatic) promotion.
    #[must_use]
    pub fn automatic() -> Self {
        Self {
            automatic: true,
            ..Self::default()
        }
    }

    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        let checks = [
            ("witness_age", !self.witness_age.is_zero(), "more than zero"),
            ("timeout", !self.timeout.is_zero(), "more than zero"),
            (
                "database",
                !self.database.trim().is_empty(),
                "the name of a database",
            ),
        ];
        let wrong = checks.into_iter().filter(|(_, valid, _)| !valid);
        errors.extend(
            wrong.map(|(setting, _, expected)| ConfigError::Promotion { setting, expected }),
        );
    }
}
