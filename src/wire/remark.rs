//! What an error that the server reports speaks about: the statement, or what else.
//!
//! SQLSTATEs can be raised by anybody (`RAISE … USING ERRCODE`, a foreign server's error passed on), so
//! a code alone says nothing of the server. What a user's code cannot forge is the severity and the C
//! function that raised the error, which no language setting translates.

use super::fields::Fields;
use crate::error::SqlState;

/// What the server said of an error and Diesel does not pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    pub(crate) sqlstate: SqlState,
    /// The server ended the session with it.
    pub(crate) fatal: bool,
    pub(crate) says: Says,
}

/// What an error says beyond its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// No more than its code.
    Nothing,
    /// A prepared statement would have another result than it once had: a table has changed.
    StalePlan,
    /// There is no prepared statement of that name.
    NoStatement,
    /// Refused because the server is in recovery, and for nothing else.
    InRecovery,
    /// A standby cannot run at the session's isolation level, whatever the statement.
    Isolation,
    /// The user's own code raised it, in this server or in another: the code may mean anything.
    Raised,
}

/// The C functions by which procedural languages and foreign data wrappers raise what users' code or
/// another server says.
const RAISERS: [&[u8]; 7] = [
    b"exec_stmt_raise",
    b"PLy_elog_impl",
    b"PLy_output",
    b"do_util_elog",
    b"pltcl_elog",
    b"dblink_res_error",
    b"pgfdw_report_error",
];

impl Remark {
    pub(super) fn of(fields: &Fields<'_>, sqlstate: SqlState) -> Self {
        Self {
            sqlstate,
            fatal: fields.is_fatal(),
            says: says(fields.routine, sqlstate),
        }
    }
}

fn says(routine: &[u8], sqlstate: SqlState) -> Says {
    if RAISERS.contains(&routine) {
        return Says::Raised;
    }
    match (sqlstate, routine) {
        (SqlState::FEATURE_NOT_SUPPORTED, b"RevalidateCachedQuery") => Says::StalePlan,
        (SqlState::FEATURE_NOT_SUPPORTED, b"GetSerializableTransactionSnapshot") => Says::Isolation,
        (SqlState::INVALID_STATEMENT_NAME, b"FetchPreparedStatement" | b"exec_bind_message") => {
            Says::NoStatement
        }
        (SqlState::READ_ONLY_SQL_TRANSACTION, _) => Says::InRecovery,
        // A table that is not logged: "cannot access temporary or unlogged relations during recovery".
        (SqlState::FEATURE_NOT_SUPPORTED, b"get_relation_info") => Says::InRecovery,
        // "recovery is in progress", by functions that bear their SQL names; and a lock that a standby
        // does not give. (A materialized view that is not populated has this code too.)
        (SqlState::NOT_IN_PREREQUISITE_STATE, b"LockAcquireExtended") => Says::InRecovery,
        (SqlState::NOT_IN_PREREQUISITE_STATE, name) if name.starts_with(b"pg_") => Says::InRecovery,
        // "cannot assign TransactionIds" or "OIDs during recovery".
        (SqlState::INTERNAL_ERROR, name) if name.starts_with(b"GetNew") => Says::InRecovery,
        _ => Says::Nothing,
    }
}

/// Whether a notice announces the end of the session: an immediate shutdown, a crash elsewhere, or the
/// end of one whose commit waited for a synchronous standby. Users' code may warn with the same codes.
pub(super) fn announces_the_end(fields: &Fields<'_>, code: SqlState) -> bool {
    code.ends_the_session() && matches!(fields.routine, b"quickdie" | b"SyncRepWaitForLSN")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remark(code: &str, severity: &'static str, routine: &'static str) -> Remark {
        let fields = Fields {
            severity: severity.as_bytes(),
            code: b"",
            message: b"",
            routine: routine.as_bytes(),
        };
        Remark::of(&fields, code.parse().unwrap())
    }

    #[test]
    fn each_routine_says_what_it_says() {
        for (code, routine, says) in [
            ("0A000", "RevalidateCachedQuery", Says::StalePlan),
            ("0A000", "exec_stmt_raise", Says::Raised),
            (
                "0A000",
                "GetSerializableTransactionSnapshot",
                Says::Isolation,
            ),
            ("0A000", "get_relation_info", Says::InRecovery),
            ("0A000", "transformLockingClause", Says::Nothing),
            ("26000", "FetchPreparedStatement", Says::NoStatement),
            ("25006", "PreventCommandIfReadOnly", Says::InRecovery),
            ("25006", "exec_stmt_raise", Says::Raised),
            ("55000", "pg_current_wal_lsn", Says::InRecovery),
            ("55000", "LockAcquireExtended", Says::InRecovery),
            ("55000", "ExecOpenScanRelation", Says::Nothing),
            ("XX000", "GetNewTransactionId", Says::InRecovery),
            ("XX000", "getBaseTypeAndTypmod", Says::Nothing),
            ("57P01", "exec_stmt_raise", Says::Raised),
        ] {
            assert_eq!(
                remark(code, "ERROR", routine).says,
                says,
                "{code} {routine}"
            );
        }
        assert!(remark("57P01", "FATAL", "ProcessInterrupts").fatal);
        assert!(!remark("57P01", "ERROR", "exec_stmt_raise").fatal);
    }

    #[test]
    fn only_the_servers_own_warning_announces_the_end() {
        for (code, routine, ends) in [
            ("57P01", "quickdie", true),
            ("57P02", "quickdie", true),
            ("57P01", "SyncRepWaitForLSN", true),
            ("57P01", "exec_stmt_raise", false),
            ("01000", "quickdie", false),
        ] {
            let fields = Fields {
                severity: b"WARNING",
                code: code.as_bytes(),
                message: b"",
                routine: routine.as_bytes(),
            };
            let announced = announces_the_end(&fields, code.parse().unwrap());
            assert_eq!(announced, ends, "{code} {routine}");
        }
    }
}
