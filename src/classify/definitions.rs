//! Judges the code that a catalog lists, once the user's overrides of functions are known.

use super::body;
use super::catalog::Catalog;
use super::code::{CodeRow, Kind};
use super::functions::Functions;
use super::lexer;
use super::scan::{self, Findings, Names};
use super::tokens::Tokens;

/// Judges each object by the code that it runs, and its users by the object.
pub(super) fn judge_definitions(catalog: &mut Catalog, functions: &Functions) {
    let rows = catalog.take_rows();
    // Each round adds what the round before has found. So it ends.
    loop {
        let mut news = false;
        for row in &rows {
            news |= judge(catalog, row, functions);
        }
        if !news {
            return;
        }
    }
}

/// Whether the row told something new.
fn judge(catalog: &mut Catalog, row: &CodeRow, functions: &Functions) -> bool {
    let known = Names {
        functions,
        catalog: Some(catalog),
    };
    match row.kind {
        Kind::Argument => {
            let Some(runs) = catalog.code().runs(&row.definition) else {
                return false;
            };
            let mut does = runs.made;
            does.add(runs.held);
            catalog.named(&row.name).run(does)
        }
        kind if kind.is_tie() => catalog.code_mut().tied(row),
        Kind::Opaque => catalog.named(&row.name).run(Findings::anything().does()),
        Kind::Function => {
            let body = body::judge(&row.definition, known);
            catalog.named(&row.name).read(body.does, body.acts)
        }
        _ => {
            let found = expression(row, known);
            let (does, written) = (found.does(), found.written);
            catalog.code_mut().found(row, does, written)
        }
    }
}

/// What an expression or a query does. One that may not be read could be anything.
fn expression(row: &CodeRow, known: Names<'_>) -> Findings {
    match lexer::tokens(&row.definition) {
        Ok(tokens) if !row.definition.is_empty() => {
            scan::scan(Tokens::new(&row.definition, &tokens), known)
        }
        _ => Findings::anything(),
    }
}
