//! The only conversion to and from Diesel's errors.

use diesel::result::{
    ConnectionError, DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError,
};

use super::{Error, Outcome};

impl Outcome {
    /// The name, as it stands in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRun => "not_run",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// The sentence that carries the outcome through [`DatabaseErrorInformation::hint`].
    const fn hint(self) -> &'static str {
        match self {
            Self::NotRun => "The statement was not run: it is safe to do it again.",
            Self::Failed => "The statement failed and had no effect.",
            Self::Unknown => {
                "The outcome is unknown: the statement may have run. Find out before doing it again."
            }
        }
    }
}

/// What Diesel's error does not tell.
pub trait ErrorExt {
    /// What became of the statement that failed.
    ///
    /// Exact for every error of a [`ReplicatedConnection`](crate::ReplicatedConnection). What the server reports has
    /// failed; an error of this crate tells it itself.
    ///
    /// ```
    /// use diesel_replicated::{Error, ErrorExt, Outcome};
    ///
    /// let error = diesel::result::Error::from(Error::Closed);
    /// assert_eq!(error.outcome(), Outcome::NotRun);
    /// ```
    fn outcome(&self) -> Outcome;
}

impl ErrorExt for DieselError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::DatabaseError(
                DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection,
                information,
            ) => match information.hint() {
                Some(hint) if hint == Outcome::NotRun.hint() => Outcome::NotRun,
                Some(hint) if hint == Outcome::Failed.hint() => Outcome::Failed,
                // Not from this crate: it does not tell how far it got.
                _ => Outcome::Unknown,
            },
            Self::DatabaseError(..) | Self::NotFound | Self::RollbackTransaction => Outcome::Failed,
            Self::RollbackErrorOnCommit { commit_error, .. } => commit_error.outcome(),
            Self::DeserializationError(_) => Outcome::Unknown,
            _ => Outcome::NotRun,
        }
    }
}

#[derive(Debug)]
struct Information {
    message: String,
    outcome: Outcome,
}

impl DatabaseErrorInformation for Information {
    fn message(&self) -> &str {
        &self.message
    }
    fn details(&self) -> Option<&str> {
        None
    }
    fn hint(&self) -> Option<&str> {
        Some(self.outcome.hint())
    }
    fn table_name(&self) -> Option<&str> {
        None
    }
    fn column_name(&self) -> Option<&str> {
        None
    }
    fn constraint_name(&self) -> Option<&str> {
        None
    }
    fn statement_position(&self) -> Option<i32> {
        None
    }
}

impl From<Error> for DieselError {
    fn from(error: Error) -> Self {
        let kind = if error.is_outage() {
            DatabaseErrorKind::ClosedConnection
        } else {
            DatabaseErrorKind::UnableToSendCommand
        };
        Self::DatabaseError(
            kind,
            Box::new(Information {
                outcome: error.outcome(),
                message: error.to_string(),
            }),
        )
    }
}

impl From<Error> for ConnectionError {
    fn from(error: Error) -> Self {
        match error {
            Error::Config(errors) => Self::InvalidConnectionUrl(errors.to_string()),
            other => Self::BadConnection(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::{ConnectError, ConnectErrorKind};

    #[test]
    fn the_outcome_survives_diesel() {
        for outcome in [Outcome::NotRun, Outcome::Failed, Outcome::Unknown] {
            let error = Error::ConnectionLost {
                node: "db1".to_owned(),
                cause: "end of file".to_owned(),
                outcome,
            };
            assert_eq!(DieselError::from(error).outcome(), outcome);
        }
    }

    #[test]
    fn an_outage_is_where_users_of_diesel_look_for_it() {
        let kind = |error: Error| match DieselError::from(error) {
            DieselError::DatabaseError(kind, _) => kind,
            other => panic!("{other}"),
        };
        for outage in [
            Error::NoPrimary {
                waited: Duration::ZERO,
                nodes: Vec::new(),
            },
            Error::NoReplica { nodes: Vec::new() },
            Error::SessionLost {
                node: "db1".to_owned(),
                cause: "end of file".to_owned(),
            },
            ConnectError::new("db1", ConnectErrorKind::TimedOut, "no answer").into(),
        ] {
            let told = kind(outage);
            assert!(
                matches!(told, DatabaseErrorKind::ClosedConnection),
                "{told:?}"
            );
        }
        for mistake in [
            Error::StillInUse,
            ConnectError::new("db1", ConnectErrorKind::Authentication, "no").into(),
        ] {
            let told = kind(mistake);
            assert!(
                matches!(told, DatabaseErrorKind::UnableToSendCommand),
                "{told:?}"
            );
        }
    }

    #[test]
    fn what_the_server_reports_has_failed() {
        let error = DieselError::DatabaseError(
            DatabaseErrorKind::UniqueViolation,
            Box::new("duplicate key".to_owned()),
        );
        assert_eq!(error.outcome(), Outcome::Failed);
    }

    #[test]
    fn a_lost_connection_of_unknown_origin_is_in_doubt() {
        let error = DieselError::DatabaseError(
            DatabaseErrorKind::UnableToSendCommand,
            Box::new("connection closed".to_owned()),
        );
        assert_eq!(error.outcome(), Outcome::Unknown);
    }
}
