//! The verdict on a text: what each of its statements is, and which of them weighs most.

use crate::route::RouteReason;

use super::Verdict;
use super::lexer;
use super::parse;
use super::scan::{self, Findings, Known};
use super::tokens::Tokens;
use super::transaction::{self, TransactionControl};

/// A verdict, and whether more knowledge of the catalog might change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    pub(super) wants_catalog: bool,
}

const READ: Verdict = Verdict {
    reason: RouteReason::PlainSelect,
    writes: false,
    session_state: false,
    control: None,
    ddl: false,
    idempotent: true,
};

/// Anything might happen.
const UNKNOWN: Verdict = Verdict {
    reason: RouteReason::UnknownStatement,
    writes: true,
    session_state: true,
    control: None,
    ddl: true,
    idempotent: false,
};

const fn primary(reason: RouteReason, writes: bool) -> Verdict {
    Verdict {
        reason,
        writes,
        idempotent: false,
        ..READ
    }
}

const NOTHING: Verdict = primary(RouteReason::UnknownStatement, false);

/// Judges a text of any number of statements.
pub(super) fn judge(text: &str, known: Known<'_>) -> Judgement {
    let mut judgement = Judgement {
        verdict: UNKNOWN,
        wants_catalog: false,
    };
    let Ok(tokens) = lexer::tokens(text) else {
        return judgement;
    };
    let tokens = Tokens::new(text, &tokens);
    let mut verdict: Option<Verdict> = None;
    let mut start = 0;
    while let Some(end) = end_of_statement(tokens, start) {
        let statement = tokens.slice(start, end);
        start = end + 1;
        if !statement.is_empty() {
            let next = judge_one(statement, known);
            judgement.wants_catalog |= next.reason == RouteReason::UnknownStatement && !next.ddl;
            verdict = Some(verdict.map_or(next, |before| combine(before, next)));
        }
    }
    judgement.verdict = verdict.unwrap_or(NOTHING);
    if judgement.verdict == READ && !parse::is_plain_query(text, tokens.len()) {
        judgement.verdict = primary(RouteReason::UnknownStatement, true);
    }
    judgement
}

/// Where the statement from `start` on ends: at a semicolon or with the text. Only rules and
/// bodies of functions have semicolons inside.
fn end_of_statement(tokens: Tokens<'_>, start: usize) -> Option<usize> {
    if start >= tokens.len() {
        return None;
    }
    let mut depth = 0_usize;
    let create = tokens.is_word(start, "create");
    let mut body = false;
    for at in start..tokens.len() {
        if create && tokens.is(at, "(") {
            depth += 1;
        } else if tokens.is(at, ")") {
            depth = depth.saturating_sub(1);
        } else if tokens.is(at, ";") && depth == 0 {
            return Some(at);
        } else if create && tokens.is_word(at, "begin") && tokens.is_word(at + 1, "atomic") {
            body = true;
            depth += 1;
        } else if body && tokens.is_word(at, "case") {
            depth += 1;
        } else if body && tokens.is_word(at, "end") {
            depth = depth.saturating_sub(1);
        }
    }
    Some(tokens.len())
}

fn combine(before: Verdict, next: Verdict) -> Verdict {
    Verdict {
        reason: if weight(next.reason) > weight(before.reason) {
            next.reason
        } else {
            before.reason
        },
        // What ends a transaction together with others may leave something behind.
        writes: before.writes || next.writes || ends(before) || ends(next),
        session_state: before.session_state || next.session_state,
        control: match (before.control, next.control) {
            (
                Some(control),
                None | Some(TransactionControl::Within | TransactionControl::Setting),
            ) => Some(control),
            (_, control) => control,
        },
        ddl: before.ddl || next.ddl,
        idempotent: before.idempotent && next.idempotent,
    }
}

fn ends(verdict: Verdict) -> bool {
    verdict.control == Some(TransactionControl::End)
}

const fn weight(reason: RouteReason) -> u8 {
    match reason {
        RouteReason::PlainSelect => 0,
        RouteReason::TransactionControl => 1,
        RouteReason::SessionState => 2,
        RouteReason::UnknownStatement => 3,
        RouteReason::VolatileFunction => 4,
        RouteReason::LockingClause => 5,
        _ => 6,
    }
}

fn judge_one(tokens: Tokens<'_>, known: Known<'_>) -> Verdict {
    if tokens.is_word(0, "explain") {
        return explain(tokens, known);
    }
    let found = scan::scan(tokens, known);
    let verdict = if let Some(control) = transaction::control(tokens) {
        Verdict {
            control: Some(control),
            ..primary(
                RouteReason::TransactionControl,
                tokens.is_word(0, "prepare"),
            )
        }
    } else if is_query(tokens) {
        query(found)
    } else {
        command(tokens)
    };
    Verdict {
        session_state: verdict.session_state || found.session,
        ..verdict
    }
}

fn is_query(tokens: Tokens<'_>) -> bool {
    let mut at = 0;
    while tokens.is(at, "(") {
        at += 1;
    }
    tokens.is_any(at, &["select", "values", "table", "with"])
}

fn query(found: Findings) -> Verdict {
    let Findings {
        write,
        into,
        temporary,
        locking,
        volatile,
        setting,
        session,
        unknown,
    } = found;
    let verdict = if write {
        // The `INTO` of an `INSERT` makes no table.
        primary(RouteReason::Write, true)
    } else if into {
        Verdict {
            ddl: true,
            session_state: temporary,
            ..primary(RouteReason::Write, true)
        }
    } else if locking {
        primary(RouteReason::LockingClause, true)
    } else if volatile {
        primary(RouteReason::VolatileFunction, true)
    } else if unknown {
        primary(RouteReason::UnknownStatement, true)
    } else if setting || temporary {
        primary(RouteReason::SessionState, false)
    } else {
        READ
    };
    Verdict {
        session_state: verdict.session_state || session,
        ..verdict
    }
}

/// `EXPLAIN` runs the statement only with `ANALYZE`, but goes where the statement would.
fn explain(tokens: Tokens<'_>, known: Known<'_>) -> Verdict {
    let mut at = 1;
    let mut analyze = false;
    // A list of options rather than `EXPLAIN (SELECT …)`.
    if tokens.is(1, "(") && !is_query(tokens.slice(1, tokens.len())) {
        while at < tokens.len() && !tokens.is(at, ")") {
            analyze |= tokens.is_any(at, &["analyze", "analyse"]);
            at += 1;
        }
        at += 1;
    }
    while tokens.is_any(at, &["analyze", "analyse", "verbose"]) {
        analyze |= !tokens.is_word(at, "verbose");
        at += 1;
    }
    let inner = tokens.slice(at, tokens.len());
    let found = scan::scan(inner, known);
    let verdict = if is_query(inner) {
        query(found)
    } else {
        Verdict {
            session_state: found.session,
            ..command(inner)
        }
    };
    Verdict {
        writes: verdict.writes && analyze,
        session_state: verdict.session_state && analyze,
        ddl: verdict.ddl && analyze,
        ..verdict
    }
}

/// Anything that is neither a query nor the control of a transaction.
fn command(tokens: Tokens<'_>) -> Verdict {
    let first = tokens.name(0).unwrap_or_default();
    let quoted = !tokens.is_word(0, &first);
    let session = Verdict {
        session_state: true,
        ..primary(RouteReason::SessionState, false)
    };
    let write = primary(RouteReason::Write, true);
    match &*first {
        _ if quoted => UNKNOWN,
        "show" => READ,
        "insert" | "update" | "delete" | "merge" | "copy" | "truncate" | "comment" | "grant"
        | "revoke" | "security" | "reassign" | "vacuum" | "analyze" | "analyse" | "reindex"
        | "cluster" | "refresh" | "checkpoint" | "notify" | "call" | "commit" | "rollback" => write,
        "lock" => primary(RouteReason::LockingClause, true),
        "alter" | "drop" | "import" => Verdict { ddl: true, ..write },
        "create" => create(tokens),
        "do" => Verdict {
            ddl: true,
            session_state: changes_session(tokens),
            ..write
        },
        "set" | "reset" | "load" | "listen" | "unlisten" | "prepare" | "deallocate" | "discard"
        | "close" => session,
        // What these run was said earlier, perhaps by somebody else's text.
        "declare" | "fetch" | "move" | "execute" => Verdict {
            writes: true,
            ..session
        },
        _ => UNKNOWN,
    }
}

fn create(tokens: Tokens<'_>) -> Verdict {
    let temporary = (1..tokens.len()).any(|at| {
        tokens.is_any(at, &["temp", "temporary"])
            || tokens
                .name(at)
                .is_some_and(|name| name.starts_with("pg_temp"))
    });
    Verdict {
        reason: if temporary {
            RouteReason::SessionState
        } else {
            RouteReason::Write
        },
        ddl: true,
        session_state: temporary,
        ..primary(RouteReason::Write, true)
    }
}

/// Whether the body of a `DO` might leave something behind in the session. Its language is not
/// known, so this looks for words rather than for statements.
fn changes_session(tokens: Tokens<'_>) -> bool {
    const WORDS: &[&str] = &[
        "set", "advisory", "temp", "listen", "load", "prepare", "discard", "declare", "execute",
    ];
    (0..tokens.len()).any(|at| {
        let body = tokens.raw(at).to_ascii_lowercase();
        WORDS.iter().any(|word| body.contains(word))
    })
}
