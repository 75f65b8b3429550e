//! Which statements begin, end or divide a transaction.

use super::tokens::Tokens;

/// What a statement does to the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransactionControl {
    /// A transaction begins.
    Begin {
        /// It was declared `READ ONLY`.
        read_only: bool,
        /// It was declared `SERIALIZABLE`, which no standby allows.
        serializable: bool,
    },
    /// The transaction ends, whether committed or not.
    End,
    /// Savepoints.
    Within,
    /// Settings of the transaction: `SET LOCAL`, `SET TRANSACTION`, `SET CONSTRAINTS`.
    Setting,
}

/// What the statement does to the transaction, if it does anything.
pub(super) fn control(tokens: Tokens<'_>) -> Option<TransactionControl> {
    if tokens.is_word(0, "begin") {
        return Some(begin(tokens));
    }
    if tokens.is_word(0, "start") && tokens.is_word(1, "transaction") {
        return Some(begin(tokens));
    }
    if tokens.is_any(0, &["commit", "end", "abort", "rollback"]) {
        return end(tokens);
    }
    if tokens.is_word(0, "prepare") && tokens.is_word(1, "transaction") {
        return Some(TransactionControl::End);
    }
    if is_local_setting(tokens) {
        return Some(TransactionControl::Setting);
    }
    let within = tokens.is_any(0, &["savepoint", "release"]);
    within.then_some(TransactionControl::Within)
}

fn begin(tokens: Tokens<'_>) -> TransactionControl {
    let mut read_only = false;
    let mut serializable = false;
    for at in 0..tokens.len() {
        // The server takes the last of contradictory modes.
        if tokens.is_word(at, "read") && tokens.is_any(at + 1, &["only", "write"]) {
            read_only = tokens.is_word(at + 1, "only");
        }
        if tokens.is_word(at, "level") {
            serializable = tokens.is_word(at + 1, "serializable");
        }
    }
    TransactionControl::Begin {
        read_only,
        serializable,
    }
}

fn end(tokens: Tokens<'_>) -> Option<TransactionControl> {
    let noise = usize::from(tokens.is_any(1, &["work", "transaction"]));
    let next = 1 + noise;
    if tokens.is_word(1, "prepared") {
        // Ends another transaction than the session's own.
        return None;
    }
    // `AND CHAIN` ends one transaction too, and begins the next; the server tells of that.
    if tokens.is_word(next, "to") {
        Some(TransactionControl::Within)
    } else {
        Some(TransactionControl::End)
    }
}

/// `SET LOCAL …`, `SET TRANSACTION …`, `SET CONSTRAINTS …`; but `SET local.x = …` is a setting of
/// the session.
fn is_local_setting(tokens: Tokens<'_>) -> bool {
    tokens.is_word(0, "set")
        && tokens.is_any(1, &["local", "transaction", "constraints"])
        && !tokens.is(2, ".")
        && !tokens.is_word(2, "to")
        && tokens.raw(2) != "="
}
