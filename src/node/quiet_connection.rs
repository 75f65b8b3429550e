//! A connection for a statement whose text is a secret.
//!
//! The driver writes the texts of statements into the application's log, at the level `debug`, but for those of which it
//! is told all types. And of an error this tells the code alone: the message may quote the statement.

use tokio_postgres::Client;

use crate::wire::Driver;

/// A connection that tells nobody what it is asked.
pub(crate) struct QuietConnection {
    pub(super) client: Client,
    pub(super) _driver: Driver,
}

impl QuietConnection {
    /// Runs one statement. The error is fit to be shown.
    pub(super) async fn run(&self, sql: &str) -> Result<(), String> {
        let done = self.client.execute_typed(sql, &[]).await;
        done.map(drop).map_err(|error| match error.code() {
            Some(code) => format!("the server refuses it with SQLSTATE {}", code.code()),
            None => "the connection ended".to_owned(),
        })
    }
}
