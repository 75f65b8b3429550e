//! How long a verdict takes; run in release with `--ignored --nocapture`.

use std::hint::black_box;
use std::time::Instant;

use super::fixtures::{cases, classifier};
use super::*;

fn per_call(calls: u32, mut call: impl FnMut(u32)) -> u128 {
    for number in 0..calls / 10 {
        call(number);
    }
    let start = Instant::now();
    for number in 0..calls {
        call(number);
    }
    start.elapsed().as_nanos() / u128::from(calls)
}

#[test]
#[ignore = "a measurement"]
fn verdicts() {
    struct Query;
    let classifier = classifier();
    let sql =
        r#"SELECT "users"."id", "users"."name" FROM "users" WHERE ("users"."id" = $1) LIMIT $2"#;
    let text = per_call(1_000_000, |_| {
        black_box(classifier.classify(None, black_box(sql)));
    });
    let id = Some(TypeId::of::<Query>());
    let by_type = per_call(1_000_000, |_| {
        black_box(classifier.classify(black_box(id), black_box(sql)));
    });
    let long = format!(
        "SELECT * FROM users WHERE id IN ({})",
        ["1"; 4000].join(",")
    );
    let long_text = per_call(100_000, |_| {
        black_box(classifier.classify(None, black_box(&long)));
    });
    let cases = cases();
    let cold = per_call(20_000, |number| {
        let case = &cases[number as usize % cases.len()];
        let ground = classifier.ground.read().unwrap();
        let known = Known {
            functions: &classifier.functions,
            catalog: ground.catalog.as_ref(),
        };
        black_box(statement::judge(black_box(&case.sql), known));
    });
    println!(
        "by type {by_type} ns, by text of {} bytes {text} ns, of {} bytes {long_text} ns; cold {cold} ns",
        sql.len(),
        long.len()
    );
}
