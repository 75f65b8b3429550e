//! What code that is stored in the database may do: bodies of functions, triggers, expressions.
//!
//! A body is scanned as a statement is. Beyond that it may hold statements of any kind, which show by
//! their first words. A name that no function has is no call: it was read together with the functions.

use super::catalog::Catalog;
use super::does::Does;
use super::lexer;
use super::scan::{self, Findings, Names};
use super::tokens::Tokens;

/// Words that begin a statement which changes the session.
const SESSION: &[&str] = &[
    "set",
    "reset",
    "listen",
    "unlisten",
    "load",
    "prepare",
    "deallocate",
    "discard",
    "do",
];

/// Words that begin a command which changes the catalog or maintains relations.
const COMMANDS: &[&str] = &[
    "alter", "analyse", "analyze", "cluster", "comment", "create", "drop", "grant", "import",
    "reassign", "refresh", "reindex", "revoke", "security", "truncate", "vacuum",
];

/// After these (and after a semicolon) a statement begins.
const OPENERS: &[&str] = &["begin", "atomic", "then", "else", "loop"];

/// What some code is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) does: Does,
    /// It does something, or changes data.
    pub(super) acts: bool,
}

/// What the code may do.
pub(super) fn judge(text: &str, known: Names<'_>) -> Body {
    let Ok(tokens) = lexer::tokens(text) else {
        return Body {
            does: Findings::anything().does(),
            acts: true,
        };
    };
    let tokens = Tokens::new(text, &tokens);
    let mut found = scan::scan(tokens, known);
    found.unknown = false;
    let (mut commands, mut truncates) = (false, false);
    for at in 0..tokens.len() {
        truncates |= tokens.is_word(at, "truncate");
        found.write |= tokens.is_word(at, "copy");
        found.anything |= changes_session(tokens, at);
        commands |= begins(tokens, at) && tokens.is_any(at, COMMANDS);
    }
    found.write |= truncates;
    // What makes temporary objects names or creates them.
    found.anything |= found.temporary;
    let mut does = found.does_as_body();
    if let Some(code) = known.catalog.map(Catalog::code) {
        if commands {
            does.add(code.of_commands());
        }
        if truncates {
            does.add(code.fired());
        }
    }
    let changes = found.write || found.locking || found.into || commands;
    Body {
        does,
        acts: changes || does != Does::NOTHING,
    }
}

/// Whether the word begins a command which changes the catalog or maintains relations.
pub(super) fn is_command(word: &str) -> bool {
    COMMANDS.binary_search(&word).is_ok()
}

/// Whether the code may change the catalog by a statement of its own.
pub(super) fn may_change_catalog(text: &str) -> bool {
    const WORDS: &[&str] = &["create", "alter", "drop", "import"];
    let Ok(tokens) = lexer::tokens(text) else {
        return true;
    };
    let tokens = Tokens::new(text, &tokens);
    (0..tokens.len()).any(|at| tokens.is_any(at, WORDS))
}

/// Whether a statement may begin there.
fn begins(tokens: Tokens<'_>, at: usize) -> bool {
    at == 0
        || tokens.is(at - 1, ";")
        || tokens.is_any(at - 1, OPENERS)
        || tokens.kind(at - 1).is_none()
}

fn changes_session(tokens: Tokens<'_>, at: usize) -> bool {
    if begins(tokens, at) && tokens.is_any(at, SESSION) {
        // These end with the transaction.
        return !tokens.is_word(at, "set")
            || !tokens.is_any(at + 1, &["local", "constraints", "transaction"]);
    }
    // Text that is run as a statement; a trigger names a function instead.
    let dynamic =
        tokens.is_word(at, "execute") && !tokens.is_any(at + 1, &["function", "procedure"]);
    let temporary = tokens.is_any(at, &["temp", "temporary"]);
    let holdable = tokens.is_word(at, "with") && tokens.is_word(at + 1, "hold");
    dynamic || temporary || holdable
}
