//! Decides after a failure whether and where a statement may run again.
//!
//! A statement's error never speaks of its node. Only the end of a connection, and attempts to open one, do. An error
//! may speak of the statement, of the connection's memory, or of the server where it ran.

use crate::error::SqlState;
use crate::wire::{Remark, Says};

/// How a statement failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symptoms {
    /// What the server reported, if it did.
    pub(crate) remark: Option<Remark>,
    /// The connection is gone.
    pub(crate) lost: bool,
    /// Nothing that the server runs was sent yet.
    pub(crate) unsent: bool,
    /// The server refused it before anything of it ran.
    pub(crate) refused: bool,
    /// Custom types are among its values.
    pub(crate) custom_types: bool,
}

/// The part of a connection's memory that may be outdated. The statement has not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    /// The prepared statements of this connection are gone.
    Statements,
    /// What every connection remembers of the catalog: prepared statements and types.
    Catalog,
    /// Perhaps the types of the statement's values. If looking them up again helps, the catalog.
    Types,
}

/// What follows the failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// The error goes to the caller.
    Return,
    /// The connection is gone, and the node is checked: another node.
    LeaveReplica,
    /// The replica cancelled the statement or cannot run it, and is well: another node.
    OtherNode,
    /// The replica refuses everything on this connection, but not on a new one.
    FreshConnection,
    /// The replica refuses what the primary may accept. With `learn`, if the primary accepts it, the statement was
    /// misjudged.
    Primary { learn: bool },
}

impl Recovery {
    /// The name, as it stands in logs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Return => "return",
            Self::LeaveReplica => "leave_replica",
            Self::OtherNode => "other_node",
            Self::FreshConnection => "fresh_connection",
            Self::Primary { .. } => "primary",
        }
    }
}

/// Which part of the connection's memory is outdated, if the failure says so.
///
/// Only a refusal before anything has run counts. A plan within a function, or of the user's own `EXECUTE`, is not
/// ours, and what came before it may have had effects.
pub(crate) fn stale(symptoms: Symptoms) -> Option<Stale> {
    let remark = symptoms.remark.filter(|_| !symptoms.lost)?;
    if !symptoms.refused {
        return None;
    }
    match remark.says {
        Says::StalePlan => Some(Stale::Catalog),
        Says::NoStatement => Some(Stale::Statements),
        // "cache lookup failed for type": the type was dropped.
        Says::Nothing if remark.sqlstate == SqlState::INTERNAL_ERROR => Some(Stale::Catalog),
        Says::Nothing if symptoms.custom_types && remark.sqlstate.may_mean_stale_types() => {
            // A statement that was prepared earlier keeps the types that it had then.
            let kept = !symptoms.unsent;
            Some(if kept { Stale::Catalog } else { Stale::Types })
        }
        _ => None,
    }
}

/// Decides for a plain select that a replica failed, while no transaction is open and no row was handed out.
///
/// Codes and routines decide, never texts: the server may speak any language. A plain select can be repeated without
/// harm, so of several meanings of a code the helpful one is taken.
pub(crate) fn recover(symptoms: Symptoms) -> Recovery {
    if symptoms.lost {
        return Recovery::LeaveReplica;
    }
    let Some(remark) = symptoms.remark else {
        return Recovery::Return;
    };
    match (remark.sqlstate, remark.says) {
        // If the user's code says that it failed, that is believed: it may have acted elsewhere.
        (_, Says::Raised) => Recovery::Return,
        // Outside a transaction a plain read on a standby waits for nobody but recovery. It fails so by a conflict with
        // that, of which a deadlock is one kind.
        (SqlState::SERIALIZATION_FAILURE | SqlState::DEADLOCK_DETECTED, _) => Recovery::OtherNode,
        (_, Says::InRecovery) => Recovery::Primary { learn: true },
        (_, Says::Isolation) => Recovery::FreshConnection,
        (_, Says::StalePlan | Says::NoStatement) => Recovery::Primary { learn: false },
        (code, Says::Nothing) if code.may_come_of_lag() => Recovery::Primary { learn: false },
        // Trouble with this server's own files, catalog memory or disk. Other servers have their own.
        (code, Says::Nothing) if code.is_trouble_of_a_server() => Recovery::OtherNode,
        (_, Says::Nothing) => Recovery::Return,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symptoms(code: &str, says: Says) -> Symptoms {
        let remark = Remark {
            sqlstate: code.parse().unwrap(),
            fatal: false,
            says,
        };
        Symptoms {
            remark: Some(remark),
            lost: false,
            unsent: false,
            refused: true,
            custom_types: false,
        }
    }

    fn after(code: &str, says: Says) -> Recovery {
        recover(symptoms(code, says))
    }

    #[test]
    fn each_code_has_its_way_out() {
        for code in ["25006", "0A000", "55000", "XX000"] {
            let learned = Recovery::Primary { learn: true };
            assert_eq!(after(code, Says::InRecovery), learned, "{code}");
        }
        for code in [
            "XX000", "42P01", "42703", "42883", "42704", "3F000", "42501", "22P02", "22P03",
            "42804", "55000", "0A000",
        ] {
            let asked = Recovery::Primary { learn: false };
            assert_eq!(after(code, Says::Nothing), asked, "{code}");
        }
        for code in ["58030", "58P01", "XX001", "XX002", "53100"] {
            assert_eq!(after(code, Says::Nothing), Recovery::OtherNode, "{code}");
        }
        for code in ["40001", "40P01"] {
            assert_eq!(after(code, Says::Nothing), Recovery::OtherNode, "{code}");
        }
        assert_eq!(after("0A000", Says::Isolation), Recovery::FreshConnection);
        for code in [
            "23505", "22012", "57014", "42601", "53200", "53300", "57P01", "57P03", "P0001",
        ] {
            assert_eq!(after(code, Says::Nothing), Recovery::Return, "{code}");
        }
    }

    #[test]
    fn what_users_code_raises_is_the_statements() {
        for code in [
            "25006", "0A000", "55000", "XX000", "XX001", "58P01", "42P01", "57P01", "53100",
            "40001",
        ] {
            assert_eq!(after(code, Says::Raised), Recovery::Return, "{code}");
            assert_eq!(stale(symptoms(code, Says::Raised)), None, "{code}");
        }
    }

    #[test]
    fn only_a_lost_connection_speaks_of_the_node() {
        let none = Symptoms {
            remark: None,
            ..symptoms("00000", Says::Nothing)
        };
        assert_eq!(recover(none), Recovery::Return);
        let lost = Symptoms { lost: true, ..none };
        assert_eq!(recover(lost), Recovery::LeaveReplica);
    }

    #[test]
    fn what_has_not_run_tells_which_memory_is_stale() {
        let plan = symptoms("0A000", Says::StalePlan);
        assert_eq!(stale(plan), Some(Stale::Catalog));
        let gone = symptoms("26000", Says::NoStatement);
        assert_eq!(stale(gone), Some(Stale::Statements));
        let lookup = symptoms("XX000", Says::Nothing);
        assert_eq!(stale(lookup), Some(Stale::Catalog));
        for symptoms in [plan, gone, lookup] {
            let ran = Symptoms {
                refused: false,
                ..symptoms
            };
            assert_eq!(stale(ran), None);
            let lost = Symptoms {
                lost: true,
                ..symptoms
            };
            assert_eq!(stale(lost), None);
        }
    }

    #[test]
    fn types_are_doubted_where_there_are_some() {
        for code in ["42704", "42883", "42804"] {
            let plain = symptoms(code, Says::Nothing);
            assert_eq!(stale(plain), None, "{code}");
            let bound = Symptoms {
                custom_types: true,
                ..plain
            };
            assert_eq!(stale(bound), Some(Stale::Catalog), "{code}");
            let parsed = Symptoms {
                unsent: true,
                ..bound
            };
            assert_eq!(stale(parsed), Some(Stale::Types), "{code}");
        }
    }
}
