//! Which run of which server a connection leads to.

use std::fmt;
use std::net::IpAddr;

use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel::{QueryResult, QueryableByName, sql_query};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

/// When the server was started, in microseconds.
pub(super) const START_TIME: &str =
    "(1000000 * EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()))::bigint";

/// Where a connection ends, as the server sees it. A server may have several.
pub(super) const ADDRESS: &str = "pg_catalog.host(pg_catalog.inet_server_addr())";

/// One run of one server. Two names of one server report the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// When the server was started, in microseconds.
    pub(crate) started: i64,
    pub(crate) port: i32,
    /// For people. Two addresses of one server are one server.
    pub(crate) address: Option<IpAddr>,
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        (self.started, self.port) == (other.started, other.port)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            Some(address) => write!(f, "{address}:{}", self.port),
            None => write!(f, "port {}", self.port),
        }
    }
}

impl Run {
    /// Whether both are known and differ.
    pub(crate) fn differ(one: Option<Self>, other: Option<Self>) -> bool {
        one.zip(other).is_some_and(|(one, other)| one != other)
    }

    /// Asks over a connection. Returns the number of the server's process, too.
    pub(super) async fn ask(pg: &mut AsyncPgConnection) -> QueryResult<(Self, i32)> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = BigInt)]
            started: i64,
            #[diesel(sql_type = Integer)]
            port: i32,
            #[diesel(sql_type = Nullable<Text>)]
            address: Option<String>,
            #[diesel(sql_type = Integer)]
            process: i32,
        }
        let look = format!(
            "SELECT {START_TIME} AS started, pg_catalog.current_setting('port')::int AS port, \
             {ADDRESS} AS address, pg_catalog.pg_backend_pid() AS process"
        );
        let row: Row = sql_query(look).get_result(pg).await?;
        let run = Self {
            started: row.started,
            port: row.port,
            address: row.address.and_then(|address| address.parse().ok()),
        };
        Ok((run, row.process))
    }
}
