//! The verdict on a text: what each of its statements is, and which of them weighs most.

use crate::route::RouteReason;

use super::Verdict;
use super::body;
use super::catalog::Catalog;
use super::code::Code;
use super::does::Does;
use super::leaves::Leaves;
use super::lexer;
use super::lists::SETTINGS_OF_SERVER;
use super::scan::{self, Findings, Names};
use super::set_statements;
use super::tokens::{TokenKind, Tokens, statements};
use super::transaction::{self, TransactionControl};

/// A verdict, and whether more knowledge of the catalog might change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    pub(super) verdict: Verdict,
    pub(super) wants_catalog: bool,
    /// The name of a function by whose declaration alone a query is not one for replicas.
    pub(super) declared: Option<String>,
    /// The name of what keeps the statement from replicas.
    pub(super) cause: Option<String>,
}

const READ: Verdict = Verdict {
    reason: RouteReason::PlainSelect,
    writes: false,
    leaves: Leaves::Nothing,
    indelible: false,
    locks: false,
    control: None,
    ddl: false,
    idempotent: true,
    cause: None,
};

/// What a change of the catalog must be about, and the words it must have, to call a function.
const FILLED: &[&str] = &["table", "materialized", "index", "domain"];
const CALLING: &[&str] = &["select", "values", "with", "default", "using"];

/// Whether a change of the catalog may call a function. What stands before a parenthesis in most of
/// them is only being named.
fn calls_functions(tokens: Tokens<'_>) -> bool {
    let has = |words, upto: usize| (0..upto).any(|at| tokens.is_any(at, words));
    has(FILLED, tokens.len().min(5)) && has(CALLING, tokens.len())
}

/// Anything might happen.
const UNKNOWN: Verdict = Verdict {
    reason: RouteReason::UnknownStatement,
    writes: true,
    leaves: Leaves::State,
    indelible: true,
    locks: true,
    control: None,
    ddl: true,
    idempotent: false,
    cause: None,
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
pub(super) fn judge(text: &str, known: Names<'_>) -> Judgement {
    let mut judgement = Judgement {
        verdict: UNKNOWN,
        wants_catalog: false,
        declared: None,
        cause: None,
    };
    let Ok(tokens) = lexer::tokens(text) else {
        // The server counts changes of its catalogs, and would tell.
        judgement.verdict.ddl = false;
        return judgement;
    };
    let tokens = Tokens::new(text, &tokens);
    let mut verdict: Option<Verdict> = None;
    for statement in statements(tokens) {
        let (next, declared, cause) = judge_one(statement, known);
        judgement.declared = judgement.declared.or(declared);
        let lighter = |before: Verdict| weight(before.reason) < weight(next.reason);
        if verdict.is_none_or(lighter) {
            judgement.cause = cause;
        }
        judgement.wants_catalog |= next.reason == RouteReason::UnknownStatement && !next.ddl;
        verdict = Some(verdict.map_or(next, |before| combine(before, next)));
    }
    judgement.verdict = verdict.unwrap_or(NOTHING);
    judgement
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
        // A setting in a text with other statements may depend on them.
        leaves: match (before.leaves, next.leaves) {
            (Leaves::Settings, Leaves::Settings) => Leaves::Settings,
            (Leaves::Settings, Leaves::Nothing) | (Leaves::Nothing, Leaves::Settings) => {
                Leaves::State
            }
            (one, other) => one.max(other),
        },
        indelible: before.indelible || next.indelible,
        locks: before.locks || next.locks,
        control: match (before.control, next.control) {
            (
                Some(control),
                None | Some(TransactionControl::Within | TransactionControl::Setting),
            ) => Some(control),
            (_, control) => control,
        },
        ddl: before.ddl || next.ddl,
        idempotent: before.idempotent && next.idempotent,
        cause: None,
    }
}

fn ends(verdict: Verdict) -> bool {
    verdict.control == Some(TransactionControl::End)
}

const fn weight(reason: RouteReason) -> u8 {
    match reason {
        RouteReason::PlainSelect => 0,
        RouteReason::ServerState | RouteReason::TransactionControl => 1,
        RouteReason::SessionState => 2,
        RouteReason::UnknownStatement => 3,
        RouteReason::VolatileFunction => 4,
        RouteReason::LockingClause => 5,
        _ => 6,
    }
}

/// The verdict on a statement; on a query the function by whose declaration alone it is not a plain one; and the name of
/// what keeps it from replicas.
fn judge_one(tokens: Tokens<'_>, known: Names<'_>) -> (Verdict, Option<String>, Option<String>) {
    if tokens.is_word(0, "explain") {
        return (explain(tokens, known), None, None);
    }
    let found = scan::scan(tokens, known);
    let verdict = judge_found(tokens, known, found);
    let cause = cause(tokens, verdict.reason, found);
    let alone = is_query(tokens) && found.is_plain_but_declared();
    let name = found
        .declared
        .filter(|_| alone)
        .and_then(|at| tokens.name(at as usize));
    (verdict, name.map(std::borrow::Cow::into_owned), cause)
}

/// The name of what keeps the statement from replicas for this reason: a function, a view, an operator, a setting.
fn cause(tokens: Tokens<'_>, reason: RouteReason, found: Findings) -> Option<String> {
    let first = found.first;
    let at = match reason {
        RouteReason::VolatileFunction => first.volatile,
        RouteReason::UnknownStatement => first.unknown,
        RouteReason::ServerState => first.of_server.or(Some(1)),
        RouteReason::SessionState if tokens.is_any(0, &["set", "reset"]) => {
            let at = 1 + usize::from(tokens.is_any(1, &["session", "local"]));
            Some(at)
        }
        RouteReason::SessionState => first.setting.or(Some(0)),
        _ => None,
    }?;
    match tokens.kind(at)? {
        TokenKind::Operator => Some(tokens.raw(at).to_owned()),
        _ => {
            let name = tokens.name(at)?;
            let schema = at.checked_sub(2).filter(|_| tokens.is(at - 1, "."));
            match schema.and_then(|at| tokens.name(at)) {
                Some(schema) => Some(format!("{schema}.{name}")),
                None => Some(name.into_owned()),
            }
        }
    }
}

fn judge_found(tokens: Tokens<'_>, known: Names<'_>, mut found: Findings) -> Verdict {
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
        command(tokens, known)
    };
    // Of a query, the key words tell what it writes itself.
    found.write |= verdict.writes && !is_query(tokens);
    found.unknown &= !verdict.ddl || calls_functions(tokens);
    let simple = || verdict.control.is_none() && set_statements::is_simple(tokens);
    let leaves = match verdict.leaves.max(found.leaves()) {
        Leaves::State if verdict.reason == RouteReason::SessionState && simple() => {
            Leaves::Settings
        }
        leaves => leaves,
    };
    Verdict {
        leaves,
        indelible: verdict.indelible || found.is_indelible(),
        locks: verdict.locks || found.locks,
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
        of_server,
        volatile,
        declared,
        anything,
        setting,
        unknown,
        ..
    } = found;
    if write {
        // The `INTO` of an `INSERT` makes no table.
        primary(RouteReason::Write, true)
    } else if into {
        Verdict {
            ddl: true,
            ..primary(RouteReason::Write, true)
        }
    } else if locking {
        primary(RouteReason::LockingClause, true)
    } else if volatile || anything || declared.is_some() {
        primary(RouteReason::VolatileFunction, true)
    } else if unknown {
        primary(RouteReason::UnknownStatement, true)
    } else if setting || temporary {
        primary(RouteReason::SessionState, false)
    } else if of_server {
        primary(RouteReason::ServerState, false)
    } else {
        READ
    }
}

/// `EXPLAIN` runs the statement only with `ANALYZE`, but goes where the statement would.
fn explain(tokens: Tokens<'_>, known: Names<'_>) -> Verdict {
    let mut at = 1;
    let mut analyze = false;
    // A list of options rather than `EXPLAIN (SELECT …)`.
    if tokens.is(1, "(") && !is_query(tokens.slice(1, tokens.len())) {
        while at < tokens.len() && !tokens.is(at, ")") {
            // An option may be quoted.
            let option = tokens.raw(at).trim_matches('"');
            analyze |= ["analyze", "analyse"]
                .iter()
                .any(|it| option.eq_ignore_ascii_case(it));
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
        command(inner, known)
    };
    let leaves = verdict.leaves.max(found.leaves());
    Verdict {
        writes: verdict.writes && analyze,
        leaves: if analyze { leaves } else { Leaves::Nothing },
        indelible: (verdict.indelible || found.is_indelible()) && analyze,
        locks: (verdict.locks || found.locks) && analyze,
        ddl: verdict.ddl && analyze,
        ..verdict
    }
}

/// Anything that is neither a query nor the control of a transaction.
fn command(tokens: Tokens<'_>, known: Names<'_>) -> Verdict {
    let first = tokens.name(0).unwrap_or_default();
    let quoted = !tokens.is_word(0, &first);
    let here = primary(RouteReason::SessionState, false);
    let session = Verdict {
        leaves: Leaves::State,
        ..here
    };
    let write = primary(RouteReason::Write, true);
    match &*first {
        _ if quoted => UNKNOWN,
        "show" if !names_one_setting(tokens) => Verdict {
            ddl: false,
            ..UNKNOWN
        },
        "show" if is_setting_of_server(tokens) => primary(RouteReason::ServerState, false),
        "show" => READ,
        "insert" | "update" | "delete" | "merge" | "copy" | "checkpoint" | "notify" | "call"
        | "commit" | "rollback" => write,
        "lock" => primary(RouteReason::LockingClause, true),
        "alter" | "drop" | "import" => upkeep(Verdict { ddl: true, ..write }, known),
        "create" => upkeep(create(tokens), known),
        "truncate" => truncate(tokens, known),
        word if body::is_command(word) => upkeep(write, known),
        "do" => block(tokens, known),
        // A library stays loaded.
        "load" => Verdict {
            indelible: true,
            ..session
        },
        "set" | "reset" | "listen" | "unlisten" | "prepare" | "deallocate" | "discard" => session,
        // A cursor ends with its transaction, unless it is to be held.
        "declare" if holds(tokens) => Verdict {
            writes: true,
            ..session
        },
        "close" => here,
        "declare" | "fetch" | "move" => Verdict {
            writes: true,
            ..here
        },
        // An earlier text decided what it runs, perhaps one of somebody else.
        "execute" => Verdict {
            writes: true,
            ..session
        },
        _ => UNKNOWN,
    }
}

/// `DECLARE … CURSOR WITH HOLD FOR …`
fn holds(tokens: Tokens<'_>) -> bool {
    (1..tokens.len()).any(|at| tokens.is_word(at, "with") && tokens.is_word(at + 1, "hold"))
}

/// `SHOW` of one name and nothing else. What else the server may take for a `SHOW`, it refuses.
fn names_one_setting(tokens: Tokens<'_>) -> bool {
    const PHRASES: &[&[&str]] = &[
        &["time", "zone"],
        &["session", "authorization"],
        &["transaction", "isolation", "level"],
    ];
    let says = |phrase: &&[&str]| {
        tokens.len() == phrase.len() + 1
            && (1..)
                .zip(*phrase)
                .all(|(at, word)| tokens.is_word(at, word))
    };
    let is_part = |at: usize| {
        if at % 2 == 0 {
            tokens.is(at, ".")
        } else {
            tokens.name(at).is_some()
        }
    };
    PHRASES.iter().any(says) || (tokens.len() % 2 == 0 && (1..tokens.len()).all(is_part))
}

/// `SHOW` of what a standby answers otherwise.
fn is_setting_of_server(tokens: Tokens<'_>) -> bool {
    let name = tokens.name(1).unwrap_or_default();
    tokens.is_word(1, "transaction") || SETTINGS_OF_SERVER.contains(&&*name)
}

/// A command that changes the catalog or maintains relations, which runs code that it does not name: event
/// triggers, expressions of indexes.
fn upkeep(verdict: Verdict, known: Names<'_>) -> Verdict {
    let does = known.catalog.map(|catalog| catalog.code().of_commands());
    running(verdict, does.unwrap_or(Does::NOTHING))
}

/// `TRUNCATE`: with `CASCADE` triggers of tables run that it does not name.
fn truncate(tokens: Tokens<'_>, known: Names<'_>) -> Verdict {
    let cascade = (1..tokens.len()).any(|at| tokens.is_word(at, "cascade"));
    let code = known.catalog.map(Catalog::code).filter(|_| cascade);
    running(
        upkeep(primary(RouteReason::Write, true), known),
        code.map_or(Does::NOTHING, Code::fired),
    )
}

/// The same verdict, where such code is run.
fn running(verdict: Verdict, does: Does) -> Verdict {
    let leaves = if does.leaves {
        Leaves::Unknown
    } else {
        Leaves::Nothing
    };
    Verdict {
        leaves: verdict.leaves.max(leaves),
        indelible: verdict.indelible || does.indelible,
        locks: verdict.locks || does.locks,
        ..verdict
    }
}

/// `DO`: a body that is run at once.
fn block(tokens: Tokens<'_>, known: Names<'_>) -> Verdict {
    let mut does = Does::NOTHING;
    let mut ddl = false;
    for at in 1..tokens.len() {
        does.add(match tokens.kind(at) {
            Some(TokenKind::Text) => {
                tokens
                    .string(at)
                    .map_or(Findings::anything().does(), |text| {
                        ddl |= body::may_change_catalog(&text);
                        body::judge(&text, known).does
                    })
            }
            // Of other languages nothing is known.
            _ if tokens.is_word(at, "language") && !tokens.is_word(at + 1, "plpgsql") => {
                Findings::anything().does()
            }
            _ => continue,
        });
    }
    let write = primary(RouteReason::Write, true);
    running(
        Verdict {
            ddl: ddl || does.leaves,
            ..write
        },
        does,
    )
}

/// `CREATE TEMP TABLE`: others see nothing of it.
fn is_temporary_table(tokens: Tokens<'_>) -> bool {
    let at = if tokens.is_any(1, &["local", "global"]) {
        2
    } else {
        1
    };
    tokens.is_any(at, &["temp", "temporary"]) && tokens.is_word(at + 1, "table")
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
        leaves: if temporary {
            Leaves::State
        } else {
            Leaves::Nothing
        },
        ddl: !is_temporary_table(tokens),
        ..primary(RouteReason::Write, true)
    }
}
