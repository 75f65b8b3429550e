//! What holds for all statements, not only for those of the tables.

use proptest::prelude::*;

use super::fixtures::{cases, classifier};
use super::tokens::{TokenKind, Tokens};
use super::*;

/// Pieces of SQL, in any order.
fn soup() -> impl Strategy<Value = String> {
    const PIECES: &str = r#"
        SELECT FROM WHERE ( ) [ ] , ; . :: : ' " $$ $a$ $1 /* */ -- E' U&" \ nextval lower users 1 1. e5 + - *
        = => @> ` # AS WITH INTO FOR UPDATE DELETE BEGIN ATOMIC END CASE EXPLAIN ANALYZE SET LOCAL CREATE TEMP DO
        ON é set_config true pg_temp COMMIT ROLLBACK TO OPERATOR %%% first"#;
    let mut pieces: Vec<_> = PIECES.split_whitespace().collect();
    pieces.extend(["\n", " ", " ", " ", " ", " ", "\u{a0}", "\0"]);
    proptest::collection::vec(proptest::sample::select(pieces), 0..40)
        .prop_map(|pieces| pieces.concat())
}

/// Upper case outside of quotes, and every gap widened by white space and comments.
fn disguise(sql: &str) -> Option<String> {
    let tokens = lexer::tokens(sql).ok()?;
    let tokens = Tokens::new(sql, &tokens);
    let mut text = "/* SELECT 1; */".to_owned();
    for at in 0..tokens.len() {
        let raw = tokens.raw(at);
        // The server would go on with a string from another line.
        let gap = if raw.contains('\'') {
            " "
        } else {
            "\r\n\t-- DELETE ; '\n /* /* \" */ $$ */ "
        };
        match tokens.kind(at) {
            Some(TokenKind::Word) if !sql.contains('$') => text.push_str(&raw.to_ascii_uppercase()),
            _ => text.push_str(raw),
        }
        text.push_str(gap);
    }
    Some(text)
}

#[test]
fn case_and_blanks_and_comments_change_nothing() {
    let classifier = classifier();
    let mut disguised = 0;
    for case in cases() {
        // Two strings that a line break joins are told apart by what is between them.
        if case.sql.contains("'\n'") {
            continue;
        }
        let Some(text) = disguise(&case.sql) else {
            continue;
        };
        let expected = classifier.classify(None, &case.sql);
        assert_eq!(
            classifier.classify(None, &text),
            expected,
            "{}\n{text}",
            case.sql
        );
        disguised += 1;
    }
    assert!(disguised > 500, "{disguised}");
}

#[test]
fn wrapping_what_is_no_read_makes_no_read() {
    let classifier = classifier();
    let mut wrapped = 0;
    for case in cases() {
        let sql = case.sql.trim_end_matches(';');
        let queries = ["select", "with", "values", "("];
        let is_query = queries
            .iter()
            .any(|word| sql.to_lowercase().starts_with(word));
        if !case.has("primary") || !is_query || case.has("begin") || case.has("end") {
            continue;
        }
        for text in [
            format!("SELECT * FROM ({sql}) AS wrapped"),
            format!("SELECT ({sql})"),
            format!("WITH wrapped AS ({sql}) SELECT * FROM wrapped"),
            format!("WITH wrapped (a) AS MATERIALIZED ({sql}\n) TABLE wrapped"),
            format!("SELECT EXISTS ({sql}\n)"),
            format!("SELECT ARRAY({sql}\n)"),
            format!("SELECT 1 UNION ({sql}\n)"),
            format!("SELECT 1; {sql}"),
            format!("{sql}\n; SELECT 1"),
            format!("EXPLAIN ANALYZE {sql}"),
        ] {
            let verdict = classifier.classify(None, &text);
            assert_ne!(verdict.reason, RouteReason::PlainSelect, "{text}");
            wrapped += 1;
        }
    }
    assert!(wrapped > 1000, "{wrapped}");
}

/// Any name that the catalog does not excuse, in any of the places of an expression.
#[test]
fn a_call_is_found_wherever_it_stands() {
    let classifier = classifier();
    let mut placed = 0;
    for case in cases()
        .into_iter()
        .filter(|case| case.expected == "replica")
    {
        let tokens = lexer::tokens(&case.sql).unwrap();
        let tokens = Tokens::new(&case.sql, &tokens);
        for at in 0..tokens.len() {
            if !matches!(tokens.kind(at), Some(TokenKind::Number | TokenKind::Text)) {
                continue;
            }
            for call in [
                "log_visit(1)",
                "absent(1)",
                "(1).nextval",
                "pg_catalog.nextval('s')",
            ] {
                let mut pieces: Vec<_> = (0..tokens.len()).map(|at| tokens.raw(at)).collect();
                pieces[at] = call;
                let text = pieces.join(" ");
                let verdict = classifier.classify(None, &text);
                // `mood 'sad'`: after a type a call is no SQL, and looks like an alias.
                let after_name = at > 0
                    && tokens
                        .name(at - 1)
                        .is_some_and(|name| lists::KEYWORDS.binary_search(&&*name).is_err());
                if call != "absent(1)" || !after_name {
                    assert_ne!(verdict.reason, RouteReason::PlainSelect, "{text}");
                    placed += 1;
                }
            }
        }
    }
    assert!(placed > 500, "{placed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_text_is_judged(text in ".*") {
        let classifier = Classifier::new(&FunctionConfig::default());
        classifier.classify(None, &text);
        classifier.classify(None, &format!("SELECT {text}"));
    }

    #[test]
    fn any_soup_is_judged(text in soup()) {
        let classifier = classifier();
        let verdict = classifier.classify(None, &text);
        prop_assert_eq!(verdict.idempotent, verdict.reason == RouteReason::PlainSelect);
        prop_assert!(verdict.reason != RouteReason::PlainSelect || !verdict.writes && verdict.leaves == Leaves::Nothing);
        // What follows a statement never makes it safer.
        let verdict = classifier.classify(None, &format!("DELETE FROM users;{text}"));
        prop_assert!(verdict.reason != RouteReason::PlainSelect);
    }
}
