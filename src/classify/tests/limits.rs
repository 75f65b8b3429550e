//! No text exhausts the stack or takes unreasonably long.

use super::fixtures::classifier;
use super::*;

/// Far less than any thread that runs queries has.
const STACK: usize = 64 << 10;

fn deep() -> Vec<String> {
    let repeat = |before: &str, middle: &str, after: &str, times: usize| {
        format!("{}{middle}{}", before.repeat(times), after.repeat(times))
    };
    let mut texts = Vec::new();
    for times in [100, 10_000, 150_000] {
        texts.push(format!("SELECT {}1", "1+".repeat(times)));
        texts.push(format!("SELECT 1 WHERE {}true", "a OR ".repeat(times)));
        texts.push(format!("SELECT {}1", "- ".repeat(times)));
        texts.push(format!("SELECT {} true", "NOT ".repeat(times)));
        texts.push(format!("SELECT 1{}", "::int".repeat(times)));
        texts.push(format!("SELECT a{}", "[1]".repeat(times)));
        texts.push(format!("SELECT 1{}", " UNION SELECT 1".repeat(times)));
        texts.push(format!("SELECT 1{}", "; SELECT 1".repeat(times)));
        texts.push(format!("SELECT {}", repeat("(", "1", ")", times)));
        texts.push(repeat("(", "SELECT 1", ")", times));
        texts.push(repeat("SELECT (", "1", ")", times));
        texts.push(repeat("SELECT ARRAY[", "1", "]", times));
        texts.push(repeat("SELECT * FROM (", "SELECT 1", ") x", times));
        texts.push(repeat("WITH x AS (", "SELECT 1", ") SELECT 1", times));
        texts.push(format!(
            "SELECT {}",
            repeat("CASE WHEN ", "true", " THEN 1 END", times)
        ));
        texts.push(repeat("/*", "", "*/", times));
        texts.push("+".repeat(times));
        texts.push(format!("SELECT {}1", "+".repeat(times)));
        texts.push("(".repeat(times));
        texts.push(")".repeat(times));
        texts.push("$a".repeat(times));
        texts.push("$a$ $b$ ".repeat(times));
        texts.push(format!("SELECT{}", " lower(".repeat(times)));
        texts.push(format!(
            "WITH a AS (SELECT 1){}",
            ", lower (a)".repeat(times)
        ));
    }
    texts
}

#[test]
fn deep_and_long_texts_need_no_stack() {
    let texts = deep();
    let judged = std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || {
            let classifier = classifier();
            for text in &texts {
                classifier.classify(None, text);
            }
            texts.len()
        })
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(judged, 72);
}

#[test]
fn a_long_plain_query_is_still_read() {
    let classifier = classifier();
    let list = vec!["1"; 9_000].join(", ");
    let sql = format!("SELECT * FROM users WHERE id IN ({list})");
    assert_eq!(
        classifier.classify(None, &sql).reason,
        RouteReason::PlainSelect
    );
    let chain = format!(
        "SELECT * FROM users WHERE {}true",
        "id = 1 OR ".repeat(4_000)
    );
    assert_eq!(
        classifier.classify(None, &chain).reason,
        RouteReason::PlainSelect
    );
}

#[test]
fn a_text_beyond_the_bound_is_not_read() {
    let classifier = classifier();
    let sql = format!("SELECT '{}'", "x".repeat(lexer::MAX_TEXT));
    let verdict = classifier.classify(None, &sql);
    assert_eq!(verdict.reason, RouteReason::UnknownStatement);
    assert!(verdict.writes && verdict.leaves == Leaves::State);
}

#[test]
fn the_memory_of_verdicts_is_bounded_and_keeps_texts_and_types_apart() {
    struct Query;
    let classifier = classifier();
    for number in 0..100_000 {
        classifier.classify(None, &format!("SELECT {number}"));
    }
    let id = Some(TypeId::of::<Query>());
    assert_eq!(
        classifier.classify(id, "DELETE FROM users").reason,
        RouteReason::Write
    );
    assert_eq!(
        classifier.classify(id, "anything").reason,
        RouteReason::Write
    );
    assert_eq!(
        classifier.classify(None, "anything").reason,
        RouteReason::UnknownStatement
    );
    let ground = classifier.ground.read();
    assert!(ground.verdicts.len() < 80_000, "{}", ground.verdicts.len());
}

/// What the parser may read in two ways, nested: each level took twice as long as the one before.
#[test]
fn what_can_be_read_in_two_ways_takes_no_time() {
    let classifier = classifier();
    for before in [
        "position(",
        "a IN (SELECT ~ ",
        "(SELECT * FROM (",
        "SELECT * FROM ((",
        "CASE WHEN interval(",
        "ARRAY[a IN (",
        "(a, ",
        "CAST(",
        "trim(",
        "extract(a FROM ",
        "EXISTS (SELECT ",
        "substring(a FROM ",
        "overlay(",
        "interval (",
    ] {
        for times in [10, 20, 30, 40, 1_000] {
            let text = format!("SELECT {}1", before.repeat(times));
            let started = Instant::now();
            classifier.classify(None, &text);
            let took = started.elapsed();
            // Twenty levels took minutes.
            assert!(took.as_secs() < 5, "{took:?} for {times} times {before}");
        }
    }
}

/// An unoptimised parser takes a hundred kilobytes for each query within a query.
#[test]
fn nested_queries_need_little_stack() {
    let text = format!("SELECT {}1{}", "(SELECT ".repeat(20), ")".repeat(20));
    let judge = move || classifier().classify(None, &text).reason;
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    let reason = thread.spawn(judge).unwrap().join().unwrap();
    assert_eq!(reason, RouteReason::PlainSelect);
}
