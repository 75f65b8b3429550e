//! Has a standby wait until it shows a position, by the `WAIT FOR LSN` of PostgreSQL 19.
//!
//! The wait is sent over the connection that will serve the read, before the read and together with it. The statement
//! knows no timeline. So the same message asks for it, too: what lies beyond the end of a timeline has the numbers of
//! something else.

use std::time::Duration;

use diesel::QueryResult;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};

use super::position_sql::OF_STANDBY;
use crate::position::Position;

/// The first version that has the statement, as servers report it.
const SINCE: u32 = 190_000;

/// A setting that nobody sets: asking for it is an error of its own.
const ELSEWHERE: &str = "diesel_replicated.server_is_on_another_timeline";

/// What a standby waits for, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitForLsn {
    /// It must be on this very timeline, and come so far.
    position: Position,
    milliseconds: u128,
}

impl WaitForLsn {
    /// `None` if there is no time left: the statement takes whole milliseconds, and none means for ever.
    pub(crate) fn new(position: Position, limit: Duration) -> Option<Self> {
        let milliseconds = limit.as_millis();
        (milliseconds > 0).then_some(Self {
            position,
            milliseconds,
        })
    }

    /// Whether a server of this version has the statement.
    pub(crate) fn is_known_to(version: u32) -> bool {
        version >= SINCE
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Waits. It fails if the server does not show the position in time. It is one message, so what is sent after it
    /// runs after it.
    pub(crate) async fn insist(&self, pg: &AsyncPgConnection) -> QueryResult<()> {
        (&mut &*pg).batch_execute(&self.sql()).await
    }

    fn sql(&self) -> String {
        let Position { timeline, lsn } = self.position;
        format!(
            "WAIT FOR LSN '{lsn}' WITH (TIMEOUT '{}ms'); SELECT CASE {OF_STANDBY} WHEN {timeline} THEN true \
             ELSE pg_catalog.current_setting('{ELSEWHERE}')::bool END",
            self.milliseconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Lsn;

    #[test]
    fn a_wait_has_an_end_and_a_timeline() {
        let position = Position::new(7, Lsn(0x1_0000_00A8));
        let wait = WaitForLsn::new(position, Duration::from_micros(4_900)).unwrap();
        let sql = wait.sql();
        assert!(
            sql.starts_with("WAIT FOR LSN '1/A8' WITH (TIMEOUT '4ms'); "),
            "{sql}"
        );
        assert!(sql.contains(" WHEN 7 THEN true "), "{sql}");
    }

    /// Zero is for ever to the server.
    #[test]
    fn less_than_a_millisecond_is_no_wait() {
        let position = Position::new(1, Lsn(1));
        assert_eq!(WaitForLsn::new(position, Duration::from_micros(999)), None);
    }

    #[test]
    fn only_versions_that_have_it_are_asked() {
        assert!(WaitForLsn::is_known_to(190_000));
        assert!(!WaitForLsn::is_known_to(180_006));
    }
}
