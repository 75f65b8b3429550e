//! Statements of any bytes.

use std::time::{Duration, Instant};

use bolero::check;

use super::fixtures::classifier;
use super::*;

/// What statements are made of, so that some inputs make sense.
const PIECES: &[&str] = &[
    "SELECT ",
    "INSERT INTO t ",
    "UPDATE t SET a = 1 ",
    "DELETE FROM t ",
    "WITH ",
    "x AS ",
    "FROM ",
    "WHERE ",
    "VALUES ",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    ".",
    "::",
    ":",
    "'",
    "''",
    "\"",
    "$$",
    "$a$",
    "$1",
    "/*",
    "*/",
    "--",
    "\n",
    " ",
    "E'",
    "U&'",
    "\\",
    "nextval",
    "lower",
    "users ",
    "1",
    "1.5e3",
    "+",
    "-",
    "*",
    "=",
    "=>",
    "@>",
    "#",
    "AS ",
    "FOR UPDATE ",
    "RETURNING ",
    "MERGE INTO t ",
    "EXPLAIN ANALYZE ",
    "CALL p() ",
    "DO ",
    "SET a = 1 ",
    "CASE ",
    "END ",
    "NOT ",
    "UNION ",
    "é",
    "\0",
];

/// Far more than any of them takes, also where nothing is optimised and others are at work.
const BOUND: Duration = Duration::from_secs(5);

/// Nothing panics, each ends soon, and the answer is the same when it is asked for again.
#[test]
fn any_statement() {
    let classifier = std::panic::AssertUnwindSafe(classifier());
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let piece = |byte: &u8| match PIECES.get(usize::from(*byte)) {
            Some(piece) => (*piece).to_owned(),
            None => char::from(*byte).to_string(),
        };
        let text: String = bytes.iter().map(piece).collect();
        // The same again and again is what exhausts a parser.
        for text in [text.clone(), text.repeat(1 + 20_000 / text.len().max(1))] {
            let started = Instant::now();
            let verdict = classifier.classify(None, &text);
            let took = started.elapsed();
            assert!(
                took < BOUND,
                "{took:?} for {} bytes: {:.200}",
                text.len(),
                text
            );
            assert_eq!(classifier.classify(None, &text), verdict, "{text:.200}");
        }
    });
}

/// Whatever surrounds it, a statement that begins with a change of data is no read.
#[test]
fn a_change_of_data_with_anything_behind_it() {
    let classifier = std::panic::AssertUnwindSafe(classifier());
    check!()
        .with_type::<(u8, Vec<u8>)>()
        .for_each(|(which, bytes)| {
            let change = [
                "INSERT INTO t ",
                "UPDATE t SET ",
                "DELETE FROM t ",
                "MERGE INTO t ",
                "CALL p",
            ];
            let change = change[usize::from(*which) % change.len()];
            let text = format!("{change}{}", String::from_utf8_lossy(bytes));
            let verdict = classifier.classify(None, &text);
            assert_ne!(verdict.reason, RouteReason::PlainSelect, "{text}");
        });
}
