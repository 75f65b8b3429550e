//! The second opinion of a full parser: a text is a read only if it is one by its grammar too.
//!
//! This file and `dialect` alone name the parser.

use std::ops::ControlFlow;
use std::thread;

use sqlparser::ast::{Query, SetExpr, Statement, Visit, Visitor};
use sqlparser::parser::Parser;
use tracing::subscriber::NoSubscriber;

use super::dialect::Bounded;
use super::tokens::{Kind, Tokens};

/// A text with more links is parsed on a stack of its own: chains such as `a OR b OR …` become
/// trees as deep as they are long, and no text may exhaust the stack of whoever sends it.
const SHORT: usize = if cfg!(debug_assertions) { 4 } else { 48 };

/// A text with more tokens is not parsed at all.
const LONG: usize = 20_000;

/// Room for whatever is nested as deep as the parser lets it be, and for each link of a chain. Built without
/// optimisation the parser needs ten times as much.
const STACK: usize = if cfg!(debug_assertions) {
    16 << 20
} else {
    4 << 20
};
const STACK_OF_LINK: usize = 8 << 10;

/// Whether the text is one or more statements that only read.
pub(super) fn is_plain_query(text: &str, tokens: Tokens<'_>) -> bool {
    match links(tokens) {
        _ if tokens.len() > LONG => false,
        ..=SHORT => parses_as_query(text, tokens.len()),
        links => thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("parse".to_owned())
                .stack_size(STACK + links * STACK_OF_LINK);
            // Without the memory for a thread nothing is known of the text.
            let parsed = thread.spawn_scoped(scope, || parses_as_query(text, tokens.len()));
            parsed.is_ok_and(|parsed| parsed.join().unwrap_or(false))
        }),
    }
}

/// How many tokens could each make the tree one deeper. Items of a list do not, nor values.
fn links(tokens: Tokens<'_>) -> usize {
    let is_link = |at: &usize| match tokens.kind(*at) {
        Some(Kind::Operator) => true,
        Some(Kind::Word) => !tokens.is(at + 1, ","),
        Some(Kind::Punctuation) => ![")", ",", ";", "."].contains(&tokens.raw(*at)),
        _ => false,
    };
    (0..tokens.len()).filter(is_link).count()
}

fn parses_as_query(text: &str, tokens: usize) -> bool {
    // The parser logs each step that it takes, which is nobody's business but its own.
    let parsed = tracing::subscriber::with_default(NoSubscriber::new(), || {
        Parser::parse_sql(&Bounded::new(tokens), text)
    });
    let Ok(statements) = parsed else {
        return false;
    };
    statements.iter().all(only_reads)
}

fn only_reads(statement: &Statement) -> bool {
    let query = match statement {
        Statement::Query(query) => query,
        Statement::Explain { statement, .. } => match &**statement {
            Statement::Query(query) => query,
            _ => return false,
        },
        // Reads a setting of the session.
        Statement::ShowVariable { .. } => return true,
        _ => return false,
    };
    query.visit(&mut Writes).is_continue()
}

/// Stops at whatever does more than read.
struct Writes;

impl Visitor for Writes {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let locks = !query.locks.is_empty() || query.for_clause.is_some();
        stop_if(locks || !body_reads(&query.body))
    }

    /// Statements inside of a query are those that change data.
    fn pre_visit_statement(&mut self, _: &Statement) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

fn body_reads(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => select.into.is_none(),
        // Its own query is visited for itself.
        SetExpr::Query(_) | SetExpr::Values(_) | SetExpr::Table(_) => true,
        SetExpr::SetOperation { left, right, .. } => body_reads(left) && body_reads(right),
        _ => false,
    }
}

fn stop_if(stop: bool) -> ControlFlow<()> {
    if stop {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
