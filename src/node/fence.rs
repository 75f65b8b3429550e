//! Why a session's transactions are read only by default.

use diesel::sql_types::{Bool, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::RunQueryDsl;

use super::NodeConnection;
use crate::wire::ReadOnly;

/// Where the setting of a session comes from, and whether a new session would have it.
///
/// See <https://www.postgresql.org/docs/current/view-pg-settings.html>.
const SOURCE: &str = "SELECT source, EXISTS (SELECT FROM pg_catalog.pg_db_role_setting, \
    pg_catalog.unnest(setconfig) AS entry \
    WHERE setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database \
    WHERE datname = pg_catalog.current_database())) \
    AND setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)) \
    AND entry ~* '^default_transaction_read_only=(on|t|true|y|ye|yes|1)$') AS stands \
    FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    source: String,
    #[diesel(sql_type = Bool)]
    stands: bool,
}

/// Who made the session's transactions read only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Nobody any more.
    Nobodys,
    /// The server, for whoever connects: somebody keeps it from being written to.
    Servers,
    /// The session's role or database when it began. They do not any more.
    Outdated,
    /// The session's role, database or URL, in words.
    Logins(&'static str),
    /// The session itself.
    Sessions,
}

impl NodeConnection {
    /// Asks whose setting it is. By the answer the server has read its configuration files.
    pub(crate) async fn whose_read_only(&self) -> QueryResult<Whose> {
        let mut pg = self.pg();
        let row: Row = sql_query(SOURCE).get_result(&mut pg).await?;
        if self.wire.read_only() == ReadOnly::Off {
            return Ok(Whose::Nobodys);
        }
        let whose = match &*row.source {
            "session" | "interactive" => Whose::Sessions,
            "client" => Whose::Logins("options of the connection"),
            "database" | "user" | "database user" | "global" if !row.stands => Whose::Outdated,
            "database" => Whose::Logins("database"),
            "user" | "database user" | "global" => Whose::Logins("role"),
            _ => Whose::Servers,
        };
        self.wire.learn_read_only(whose != Whose::Servers);
        Ok(whose)
    }

    /// Whether transactions are read only on the server, for whoever connects.
    pub(super) async fn is_fenced(&self) -> QueryResult<bool> {
        if self.wire.read_only() == ReadOnly::On {
            self.whose_read_only().await?;
        }
        Ok(self.wire.read_only() == ReadOnly::Server)
    }
}
