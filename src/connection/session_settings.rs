//! The settings of a session. Each is known by the statement that made it, and made again on the connection that
//! serves next.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use super::ReplicatedConnection;
use super::action::Action;
use crate::classify::{Argument, Change, Leaves, TransactionControl, Verdict, can_travel, changes};
use crate::node::Lease;
use crate::statement::Bound;

/// A setting's name, and the statement that makes it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: Box<str>,
    sql: Box<str>,
}

/// Without the statement: its value may be a secret.
impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The settings that a session has made. No other state of them has the same number.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionSettings {
    made: Vec<Setting>,
    pub(super) version: u64,
}

/// How a transaction ends in which settings were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    /// That is not known.
    #[default]
    Unknown,
    Committed,
    RolledBack,
}

impl SessionSettings {
    pub(super) fn is_empty(&self) -> bool {
        self.made.is_empty()
    }

    /// Whether names of types and tables mean the same as for others.
    pub(super) fn keep_names(&self) -> bool {
        !self.made.iter().any(changes_names)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.made.iter().map(|setting| &*setting.name)
    }

    /// The text that makes them all.
    fn sql(&self) -> String {
        let statements = self.made.iter().map(|setting| &*setting.sql);
        statements.collect::<Vec<_>>().join(";")
    }

    /// Adds settings that were made later.
    pub(super) fn make(&mut self, new: Vec<Setting>) {
        for setting in new {
            // The last value counts, and may depend on those before it.
            self.made.retain(|known| known.name != setting.name);
            self.made.push(setting);
        }
        self.version += 1;
    }

    /// Becomes the settings that another connection of the session has made.
    pub(super) fn follow(&mut self, other: &Self) {
        if self.made != other.made {
            self.go_back_to(other);
        }
    }

    /// Goes back to earlier settings. No connection is known to have them.
    pub(super) fn go_back_to(&mut self, before: &Self) {
        self.made.clone_from(&before.made);
        self.version += 1;
    }
}

/// Whether names of types mean the same after the statement.
pub(super) fn keeps_names(verdict: Verdict, made: &[Setting]) -> bool {
    match verdict.leaves {
        Leaves::Settings => !made.iter().any(changes_names),
        leaves => !leaves.pins() && !verdict.sets_for_the_transaction(),
    }
}

/// The role and the search path decide what a type's name means.
fn changes_names(setting: &Setting) -> bool {
    matches!(&*setting.name, "search_path" | "role")
}

impl ReplicatedConnection {
    /// The settings that the statement makes, if it does nothing else. `None` if another connection could not make
    /// them.
    pub(super) fn settings_of<A: Action>(action: &A, leaves: Leaves) -> Option<Vec<Setting>> {
        if leaves != Leaves::Settings {
            return Some(Vec::new());
        }
        let changes = changes(action.sql())?;
        let mut made = Vec::new();
        for change in changes {
            made.extend(setting(change, |number| action.bound(number))?);
        }
        Some(made)
    }

    /// What a connection must be told before it serves the session, and the number of these settings.
    pub(super) fn untold_settings(&self, lease: &Lease) -> Option<(String, u64)> {
        let session = self.session();
        let settings = &session.settings;
        if settings.is_empty() && settings.version == 0
            || lease.settings_version() == settings.version
        {
            return None;
        }
        lease.note_settings(settings.names());
        Some((settings.sql(), settings.version))
    }

    /// Tells a connection the settings of the session.
    pub(super) async fn tell_settings(
        &self,
        lease: &Arc<Lease>,
        (sql, version): (String, u64),
    ) -> diesel::QueryResult<()> {
        use diesel_async::SimpleAsyncConnection;

        if !sql.is_empty() {
            let using = lease.enter();
            let mut connection = lease.driven();
            let telling = pin!(connection.batch_execute(&sql));
            let told = lease.driver.run(telling).await;
            using.finish();
            told?;
        }
        // A transaction that rolls back takes them back.
        if !lease.wire.in_transaction() {
            lease.settings_told(version);
        }
        Ok(())
    }

    /// Notes how the statement ends the transaction that is open on the connection.
    pub(super) async fn note_ending(&self, verdict: Verdict, only_rolls_back: bool, lease: &Lease) {
        if verdict.control != Some(TransactionControl::End)
            || self.session().settings_before.is_none()
        {
            return;
        }
        // An error reaches the caller a moment before the server tells what became of the transaction.
        Box::pin(lease.wire.answered()).await;
        let alone = !verdict.writes;
        let ending = match lease.wire.transaction_status() {
            // The server turns COMMIT into ROLLBACK.
            b'E' if alone => Ending::RolledBack,
            _ if only_rolls_back => Ending::RolledBack,
            b'T' if alone => Ending::Committed,
            _ => Ending::Unknown,
        };
        self.session().settings_ending(ending);
    }
}

pub(super) fn starts_with(sql: &str, word: &str) -> bool {
    let start = sql.trim_start().get(..word.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(word))
}

/// The setting that a change makes. `Some(None)` if it lasts no longer than its transaction. `None` if another
/// connection could not make it.
fn setting(change: Change, bound: impl Fn(usize) -> Bound) -> Option<Option<Setting>> {
    let (name, value, is_local) = match change {
        Change::Said { name, sql } => {
            let (name, sql) = (name.into(), sql.into());
            return Some(Some(Setting { name, sql }));
        }
        Change::Called {
            name,
            value,
            is_local,
        } => (name, value, is_local),
    };
    let known = |argument: Argument| match argument {
        Argument::Text(text) => Bound::Text(text),
        Argument::Null => Bound::Null,
        Argument::True => Bound::Bool(true),
        Argument::False => Bound::Bool(false),
        Argument::Bind(number) => bound(number),
    };
    match known(is_local) {
        Bound::Bool(true) => return Some(None),
        Bound::Bool(false) => {}
        _ => return None,
    }
    let Bound::Text(name) = known(name) else {
        return None;
    };
    let name = name.to_ascii_lowercase();
    if !can_travel(&name) {
        return None;
    }
    let value = match known(value) {
        Bound::Text(value) => literal(&value),
        Bound::Null => "NULL".to_owned(),
        Bound::Bool(_) | Bound::Other => return None,
    };
    let sql = format!("SELECT pg_catalog.set_config('{name}', {value}, false)");
    Some(Some(Setting {
        name: name.into(),
        sql: sql.into(),
    }))
}

/// A constant that means the same whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str, binds: &[Bound]) -> Option<Vec<(String, String)>> {
        let bound = |number: usize| binds.get(number).cloned().unwrap_or(Bound::Other);
        let mut made = Vec::new();
        for change in changes(text)? {
            made.extend(setting(change, bound)?);
        }
        let pair = |setting: Setting| (setting.name.into_string(), setting.sql.into_string());
        Some(made.into_iter().map(pair).collect())
    }

    #[test]
    fn a_setting_is_said_again_as_it_was_said() {
        let one = |name: &str, sql: &str| Some(vec![(name.to_owned(), sql.to_owned())]);
        assert_eq!(
            made("SET App.Tenant = 'a' ;", &[]),
            one("app.tenant", "SET App.Tenant = 'a'")
        );
        let text = |text: &str| Bound::Text(text.to_owned());
        assert_eq!(
            made(
                "SELECT set_config('app.tenant', $1, false)",
                &[text("it's \\ a")]
            ),
            one(
                "app.tenant",
                r"SELECT pg_catalog.set_config('app.tenant', E'it\'s \\ a', false)"
            )
        );
        let all = [text("role"), text("x"), Bound::Bool(false)];
        assert_eq!(
            made("SELECT set_config($1, $2, $3)", &all),
            one("role", "SELECT pg_catalog.set_config('role', E'x', false)")
        );
    }

    #[test]
    fn a_setting_of_the_transaction_is_none_of_the_session() {
        let text = |text: &str| Bound::Text(text.to_owned());
        let local = [text("a.b"), text("x"), Bound::Bool(true)];
        assert_eq!(made("SELECT set_config($1, $2, $3)", &local), Some(vec![]));
    }

    #[test]
    fn what_cannot_be_read_is_not_said_again() {
        let text = |text: &str| Bound::Text(text.to_owned());
        let sql = "SELECT set_config($1, $2, $3)";
        for binds in [
            [text("a.b"), Bound::Other, Bound::Bool(false)],
            [text("a.b"), text("x"), Bound::Other],
            [text("a'b"), text("x"), Bound::Bool(false)],
            [text("seed"), text("0.5"), Bound::Bool(false)],
            [Bound::Null, text("x"), Bound::Bool(false)],
        ] {
            assert_eq!(made(sql, &binds), None);
        }
    }

    #[test]
    fn the_last_value_counts_and_no_two_states_have_one_version() {
        let setting = |name: &str, sql: &str| Setting {
            name: name.into(),
            sql: sql.into(),
        };
        let mut settings = SessionSettings::default();
        settings.make(vec![setting("a", "1"), setting("b", "2")]);
        let before = settings.clone();
        settings.make(vec![setting("a", "3")]);
        assert_eq!(settings.sql(), "2;3");
        let later = settings.version;
        settings.go_back_to(&before);
        assert_eq!(settings.sql(), "1;2");
        assert!(settings.version > later && later > before.version);
    }
}
