//! After a failure: whether and where the statement may run again.

use crate::error::SqlState;
use crate::wire::Remark;

/// What a failed statement may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// The error goes to the caller.
    Return,
    /// The replica cannot serve, for reasons of its own: another node, and leave this one out.
    LeaveReplica,
    /// The replica cancelled the statement, and is well: another node.
    OtherNode,
    /// The connection has a plan that the server no longer runs: one without it, anywhere.
    FreshConnection,
    /// The replica refuses what the primary may accept. `learn` if the primary does accept it:
    /// the statement is not what it was taken for.
    Primary { learn: bool },
}

/// Decides for a statement that a replica failed and that may move: it was taken for a plain
/// select, no transaction is open and no row has been handed out.
///
/// Codes decide, never texts: the server may speak any language. A plain select is repeated
/// without harm, so a code with several meanings may be taken for the one that helps.
pub(crate) fn recover(remark: Option<Remark>, lost: bool) -> Recovery {
    if lost {
        return Recovery::LeaveReplica;
    }
    let Some(remark) = remark else {
        return Recovery::Return;
    };
    match remark.sqlstate {
        // Outside a transaction a standby knows one serialization failure: a conflict with
        // recovery.
        SqlState::SERIALIZATION_FAILURE => Recovery::OtherNode,
        SqlState::READ_ONLY_SQL_TRANSACTION => Recovery::Primary { learn: true },
        _ if remark.stale_plan => Recovery::FreshConnection,
        _ if remark.in_recovery => Recovery::Primary { learn: true },
        // Perhaps a lookup in a catalog that is behind: the primary knows.
        SqlState::INTERNAL_ERROR => Recovery::Primary { learn: false },
        // Its catalog is behind; in a moment it will not be.
        code if code.is_undefined_object() => Recovery::Primary { learn: false },
        code if code.ends_the_session() => Recovery::LeaveReplica,
        SqlState::CANNOT_CONNECT_NOW => Recovery::LeaveReplica,
        // Class 58: trouble outside PostgreSQL; XX001 and XX002: damaged data or index.
        code if code.is_of_class(b"58") || code.is_of_class(b"XX") => Recovery::LeaveReplica,
        _ => Recovery::Return,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(code: &str, in_recovery: bool) -> Recovery {
        let remark = Remark {
            sqlstate: code.parse().unwrap(),
            stale_plan: false,
            fatal: false,
            in_recovery,
        };
        recover(Some(remark), false)
    }

    #[test]
    fn each_code_has_its_way_out() {
        for code in ["25006", "0A000", "55000", "XX000"] {
            assert_eq!(
                after(code, true),
                Recovery::Primary { learn: true },
                "{code}"
            );
        }
        for code in ["XX000", "42P01", "42703", "42883", "42704", "3F000"] {
            assert_eq!(
                after(code, false),
                Recovery::Primary { learn: false },
                "{code}"
            );
        }
        for code in ["57P01", "57P02", "57P03", "57P04", "58030", "XX001"] {
            assert_eq!(after(code, false), Recovery::LeaveReplica, "{code}");
        }
        assert_eq!(after("40001", false), Recovery::OtherNode);
        for code in ["23505", "22012", "57014", "42601", "42501", "53200"] {
            assert_eq!(after(code, false), Recovery::Return, "{code}");
        }
        assert_eq!(recover(None, true), Recovery::LeaveReplica);
        assert_eq!(recover(None, false), Recovery::Return);
    }

    #[test]
    fn a_stale_plan_is_the_connections_fault_alone() {
        let remark = Remark {
            sqlstate: SqlState::FEATURE_NOT_SUPPORTED,
            stale_plan: true,
            fatal: false,
            in_recovery: false,
        };
        assert_eq!(recover(Some(remark), false), Recovery::FreshConnection);
    }
}
