//! Settings that a text makes for its session and that can be made again on another connection.
//!
//! `SET name = value`, `RESET name`, and `SELECT set_config(name, value, false)` with literals or binds.
//! Others depend on the connection that they were made on, or on more than they say.

use super::lexer;
use super::tokens::{TokenKind, Tokens, statements};

/// What one statement of the text does to a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// `SET` or `RESET`, to be said again as it is.
    Said { name: String, sql: String },
    /// `set_config(name, value, is_local)`
    Called {
        name: Argument,
        value: Argument,
        is_local: Argument,
    },
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    Text(String),
    Null,
    True,
    False,
    /// The bind of this number; the first has 0.
    Bind(usize),
}

/// Settings that a plain connection has as well, but that mean something for its transactions, its
/// protocol or its identity; those stay where they were made.
const BOUND: &[&str] = &[
    "client_encoding",
    "default_transaction_isolation",
    "seed",
    "session_authorization",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
];

/// Whether a setting of this name can be made on any connection.
pub(crate) fn can_travel(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
    !name.is_empty() && name.bytes().all(plain) && !BOUND.contains(&name)
}

/// What the text does to settings, if it does nothing else and all of that can be done again.
pub(crate) fn changes(text: &str) -> Option<Vec<Change>> {
    let tokens = lexer::tokens(text).ok()?;
    let mut found = Vec::new();
    for statement in statements(Tokens::new(text, &tokens)) {
        found.extend(of_statement(statement)?);
    }
    (!found.is_empty()).then_some(found)
}

/// Whether the statement does nothing but that.
pub(super) fn is_simple(statement: Tokens<'_>) -> bool {
    of_statement(statement).is_some()
}

fn of_statement(statement: Tokens<'_>) -> Option<Vec<Change>> {
    if statement.is_any(0, &["set", "reset"]) {
        return Some(vec![said(statement)?]);
    }
    statement.is_word(0, "select").then(|| calls(statement))?
}

/// `SET [SESSION] name { TO | = } value`, and its special forms.
fn said(statement: Tokens<'_>) -> Option<Change> {
    let reset = statement.is_word(0, "reset");
    let first = if !reset && statement.is_word(1, "session") {
        2
    } else {
        1
    };
    let (name, next) = name_of(statement, first)?;
    let rest = statement.slice(next, statement.len());
    let simple = match name.as_str() {
        _ if reset => rest.is_empty(),
        "role" if !rest.is_word(0, "to") && rest.raw(0) != "=" => {
            rest.len() == 1 && is_value(rest, 0)
        }
        "timezone" if statement.is_word(first, "time") => rest.len() == 1 && is_value(rest, 0),
        _ => is_assignment(rest),
    };
    let sql = statement.text()?.to_owned();
    (simple && can_travel(&name)).then_some(Change::Said { name, sql })
}

/// The name of the setting, as the server knows it, and where it ends.
fn name_of(statement: Tokens<'_>, at: usize) -> Option<(String, usize)> {
    if statement.is_word(at, "time") && statement.is_word(at + 1, "zone") {
        return Some(("timezone".to_owned(), at + 2));
    }
    let special = [
        "authorization",
        "characteristics",
        "xml",
        "names",
        "schema",
        "all",
        "constraints",
        "transaction",
        "local",
    ];
    // As names of settings they do not exist, but for `local.x`.
    if statement.is_any(at, &special) && !statement.is(at + 1, ".") {
        return None;
    }
    let mut name = statement.name(at)?.to_ascii_lowercase();
    let mut next = at + 1;
    while statement.is(next, ".") {
        name.push('.');
        name.push_str(&statement.name(next + 1)?.to_ascii_lowercase());
        next += 2;
    }
    Some((name, next))
}

/// `{ TO | = } value [, …]`
fn is_assignment(rest: Tokens<'_>) -> bool {
    if !rest.is_word(0, "to") && rest.raw(0) != "=" {
        return false;
    }
    let mut at = 1;
    loop {
        // A sign before a number.
        at += usize::from(matches!(rest.raw(at), "-" | "+"));
        if !is_value(rest, at) {
            return false;
        }
        match rest.len() - at {
            1 => return true,
            _ if rest.is(at + 1, ",") => at += 2,
            _ => return false,
        }
    }
}

fn is_value(tokens: Tokens<'_>, at: usize) -> bool {
    matches!(
        tokens.kind(at),
        Some(TokenKind::Word | TokenKind::Quoted | TokenKind::Text | TokenKind::Number)
    )
}

/// `SELECT set_config(…) [AS name] [, …]`
fn calls(statement: Tokens<'_>) -> Option<Vec<Change>> {
    let mut found = Vec::new();
    let mut at = 1;
    loop {
        if statement.is_word(at, "pg_catalog") && statement.is(at + 1, ".") {
            at += 2;
        }
        if statement.name(at)? != "set_config" || !statement.is(at + 1, "(") {
            return None;
        }
        let (name, comma) = argument(statement, at + 2)?;
        let (value, second) = argument(statement, comma + 1)?;
        let (is_local, close) = argument(statement, second + 1)?;
        if !statement.is(comma, ",") || !statement.is(second, ",") || !statement.is(close, ")") {
            return None;
        }
        let known = match &name {
            Argument::Text(name) => can_travel(&name.to_ascii_lowercase()),
            Argument::Bind(_) => true,
            _ => false,
        };
        let flag = !matches!(is_local, Argument::Text(_) | Argument::Null);
        if !known || !flag || matches!(value, Argument::True | Argument::False) {
            return None;
        }
        found.push(Change::Called {
            name,
            value,
            is_local,
        });
        at = close + 1;
        if statement.is_word(at, "as") {
            statement.name(at + 1)?;
            at += 2;
        }
        if at == statement.len() {
            return Some(found);
        }
        if !statement.is(at, ",") {
            return None;
        }
        at += 1;
    }
}

/// An argument and where it ends. A cast to a text changes nothing.
fn argument(statement: Tokens<'_>, at: usize) -> Option<(Argument, usize)> {
    let raw = statement.raw(at);
    let argument = match statement.kind(at)? {
        TokenKind::Text => Argument::Text(statement.string(at)?.into_owned()),
        TokenKind::Parameter => {
            let number: usize = raw.get(1..)?.parse().ok()?;
            Argument::Bind(number.checked_sub(1)?)
        }
        TokenKind::Word if statement.is_word(at, "true") => Argument::True,
        TokenKind::Word if statement.is_word(at, "false") => Argument::False,
        TokenKind::Word if statement.is_word(at, "null") => Argument::Null,
        _ => return None,
    };
    let cast = statement.is(at + 1, "::")
        && statement.is_any(at + 2, &["text", "varchar", "bool", "boolean"]);
    Some((argument, if cast { at + 3 } else { at + 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        let name = |change| match change {
            Change::Said { name, .. }
            | Change::Called {
                name: Argument::Text(name),
                ..
            } => name,
            Change::Called { .. } => "?".to_owned(),
        };
        changes(text).map(|changes| changes.into_iter().map(name).collect())
    }

    #[test]
    fn settings_that_travel() {
        for (text, expected) in [
            ("SET app.tenant = 'a'", vec!["app.tenant"]),
            ("set search_path to app, public", vec!["search_path"]),
            (
                "SET SESSION statement_timeout = -1;",
                vec!["statement_timeout"],
            ),
            ("SET role admin", vec!["role"]),
            ("SET ROLE 'admin'", vec!["role"]),
            ("SET ROLE NONE", vec!["role"]),
            ("SET role TO admin", vec!["role"]),
            ("RESET ROLE", vec!["role"]),
            ("SET TIME ZONE 'UTC'", vec!["timezone"]),
            ("RESET TIME ZONE", vec!["timezone"]),
            ("SET local.flag = 1", vec!["local.flag"]),
            ("SET a.b TO DEFAULT; RESET c.d", vec!["a.b", "c.d"]),
            ("SELECT set_config('a.b', $1, false)", vec!["a.b"]),
            (
                "SELECT pg_catalog.set_config('a.b', 'it''s', false) AS x",
                vec!["a.b"],
            ),
            ("SELECT set_config($1, $2, $3)", vec!["?"]),
            (
                "select set_config('a.b', $1::text, false), set_config('c.d', NULL, false)",
                vec!["a.b", "c.d"],
            ),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(names(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn settings_that_stay() {
        for text in [
            "",
            "SELECT 1",
            "SET a.b = 'c'; SELECT 1",
            "SET LOCAL a.b = 'c'",
            "SET SESSION AUTHORIZATION x",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET TRANSACTION READ ONLY",
            "SET default_transaction_isolation = 'serializable'",
            "SET NAMES 'UTF8'",
            "SET XML OPTION DOCUMENT",
            "RESET ALL",
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            "SET a.b",
            "SET a.b =",
            "SET a.b = 1 2",
            "SELECT set_config('a.b', 'c', false) FROM users",
            "SELECT set_config('a.b', name, false)",
            "SELECT set_config('a.b', E'c', false)",
            "SELECT set_config('a' || 'b', 'c', false)",
            "SELECT set_config('a.b', 'c', not true)",
            "SELECT set_config('a.b', lower('c'), false)",
            "SELECT set_config('seed', '1', false)",
        ] {
            assert_eq!(names(text), None, "{text}");
        }
    }
}
