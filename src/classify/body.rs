//! What code that is stored in the database may do: bodies of functions, triggers, expressions.
//!
//! A body is scanned as a statement is. Beyond that it may hold statements of any kind, which show by
//! their first words. A name that no function has is no call: it was read together with the functions.

use super::lexer;
use super::scan::{self, Findings, Known};
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

/// After these (and after a semicolon) a statement begins.
const OPENERS: &[&str] = &["begin", "atomic", "then", "else", "loop"];

/// What the code may do.
pub(super) fn findings(text: &str, known: Known<'_>) -> Findings {
    let Ok(tokens) = lexer::tokens(text) else {
        return Findings::anything();
    };
    let tokens = Tokens::new(text, &tokens);
    let mut found = scan::scan(tokens, known);
    found.unknown = false;
    found.write |= (0..tokens.len()).any(|at| tokens.is_any(at, &["truncate", "copy"]));
    found.anything |= (0..tokens.len()).any(|at| changes_session(tokens, at));
    // What makes temporary objects names or creates them.
    found.anything |= found.temporary;
    found
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

fn changes_session(tokens: Tokens<'_>, at: usize) -> bool {
    let first = at == 0
        || tokens.is(at - 1, ";")
        || tokens.is_any(at - 1, OPENERS)
        || tokens.kind(at - 1).is_none();
    if first && tokens.is_any(at, SESSION) {
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
