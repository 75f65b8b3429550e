//! What a general SQL parser finds in a statement never contradicts a verdict.

use std::ops::ControlFlow;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use sqlparser::ast::{Expr, Query, SetExpr, Statement, TableFactor, Visit, Visitor};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::fixtures::{cases, classifier};
use super::tokens::Tokens;
use super::*;

const CALLED: &[&str] = &[
    "log_visit",
    "nextval",
    "absent",
    "\"Camel\"",
    "next",
    "pg_advisory_lock",
];

/// Why the statement is no plain read, by the syntax tree.
struct Objection;

impl Visitor for Objection {
    type Break = String;

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<String> {
        match statement {
            Statement::Query(_) | Statement::Explain { .. } => ControlFlow::Continue(()),
            Statement::ShowVariable { .. } => ControlFlow::Continue(()),
            other => ControlFlow::Break(format!("statement {other}")),
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        let changes = matches!(
            &*query.body,
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)
        );
        let into = matches!(&*query.body, SetExpr::Select(select) if select.into.is_some());
        if changes || into || !query.locks.is_empty() {
            return ControlFlow::Break(format!("query {query}"));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        match expr {
            Expr::Function(call) => called(&call.name.to_string()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<String> {
        match table {
            TableFactor::Table {
                name,
                args: Some(_),
                ..
            }
            | TableFactor::Function { name, .. } => called(&name.to_string()),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn called(name: &str) -> ControlFlow<String> {
    let function = name.rsplit('.').next().unwrap_or_default();
    if CALLED
        .iter()
        .any(|called| function.eq_ignore_ascii_case(called))
    {
        ControlFlow::Break(format!("function {name}"))
    } else {
        ControlFlow::Continue(())
    }
}

/// `None` if the parser cannot read the text, which says nothing.
fn objection(sql: &str) -> Option<Option<String>> {
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
    Some(statements.visit(&mut Objection).break_value())
}

fn agree(classifier: &Classifier, sql: &str) -> Option<bool> {
    let objection = objection(sql)?;
    let verdict = classifier.classify(None, sql);
    if let Some(objection) = &objection {
        assert_ne!(
            verdict.reason,
            RouteReason::PlainSelect,
            "{objection}\n{sql}"
        );
    }
    Some(objection.is_some())
}

#[test]
fn on_the_tables() {
    let classifier = classifier();
    let (mut read, mut objected) = (0, 0);
    for case in cases() {
        if let Some(objection) = agree(&classifier, &case.sql) {
            read += 1;
            objected += usize::from(objection);
        }
    }
    println!("{read} statements parsed, {objected} of them no plain reads");
    assert!(read > 400 && objected > 150, "{read} {objected}");
}

/// The pieces of all statements of the tables, and calls.
fn pieces() -> Vec<String> {
    let mut pieces: Vec<String> = CALLED.iter().map(|name| format!("{name}(1)")).collect();
    pieces.push("FOR UPDATE".to_owned());
    for case in cases() {
        if let Ok(tokens) = lexer::tokens(&case.sql) {
            let tokens = Tokens::new(&case.sql, &tokens);
            pieces.extend((0..tokens.len()).map(|at| tokens.raw(at).to_owned()));
        }
    }
    pieces
}

#[test]
fn on_statements_with_a_piece_changed() {
    let classifier = classifier();
    let (pieces, cases) = (pieces(), cases());
    let mut parsed = 0;
    let change = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0..3_usize,
    );
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..20_000 {
        let (case, at, piece, mode) = change.new_tree(&mut runner).unwrap().current();
        let sql = &case.get(&cases).sql;
        let Ok(tokens) = lexer::tokens(sql) else {
            continue;
        };
        let tokens = Tokens::new(sql, &tokens);
        let mut texts: Vec<_> = (0..tokens.len()).map(|at| tokens.raw(at)).collect();
        if texts.is_empty() {
            continue;
        }
        // Calls are what matters most.
        let piece = if mode == 0 {
            &pieces[piece.index(CALLED.len() + 1)]
        } else {
            piece.get(&pieces)
        };
        let at = at.index(texts.len());
        if mode == 2 {
            texts.insert(at, piece);
        } else {
            texts[at] = piece;
        }
        parsed += usize::from(agree(&classifier, &texts.join(" ")).is_some());
    }
    println!("{parsed} statements parsed");
    assert!(parsed > 2_000, "{parsed}");
}
