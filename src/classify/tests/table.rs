//! Each statement of the tables gets the verdict that its heading says.

use super::fixtures::{Case, cases, catalog, classifier};
use super::*;

/// The verdict in the words of the headings.
fn words(verdict: Verdict) -> String {
    let mut words = if verdict.reason == RouteReason::PlainSelect {
        vec!["replica"]
    } else {
        vec!["primary", verdict.reason.as_str()]
    };
    words.extend(verdict.writes.then_some("writes"));
    words.extend(match verdict.leaves {
        Leaves::Nothing => None,
        Leaves::Settings => Some("settings"),
        Leaves::Unsure | Leaves::Unknown | Leaves::State => Some("pins"),
    });
    words.extend(verdict.ddl.then_some("ddl"));
    words.extend(verdict.control.map(|control| match control {
        TransactionControl::Begin {
            read_only: true,
            serializable: true,
        } => "begin_read_only_serializable",
        TransactionControl::Begin {
            read_only: true, ..
        } => "begin_read_only",
        TransactionControl::Begin {
            serializable: true, ..
        } => "begin_serializable",
        TransactionControl::Begin { .. } => "begin",
        TransactionControl::End => "end",
        TransactionControl::Within | TransactionControl::Setting => "within",
    }));
    words.join(" ")
}

fn expected(case: &Case) -> String {
    let mut words: Vec<_> = case.expected.split(' ').collect();
    words.retain(|word| !["catalog", "unexecuted"].contains(word));
    words.join(" ")
}

fn check(classifier: &Classifier, cases: impl Iterator<Item = Case>) {
    let mut count = 0;
    let mut wrong = Vec::new();
    for case in cases {
        count += 1;
        let verdict = classifier.classify(None, &case.sql);
        assert_eq!(
            verdict.idempotent,
            verdict.reason == RouteReason::PlainSelect
        );
        if words(verdict) != expected(&case) {
            wrong.push(format!(
                "{}: {}\n  expected {}\n  got      {}",
                case.file,
                case.sql,
                expected(&case),
                words(verdict)
            ));
        }
    }
    println!("{count} statements");
    assert!(
        wrong.is_empty(),
        "{} of {count} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn with_a_catalog() {
    check(&classifier(), cases().into_iter());
}

#[test]
fn before_a_catalog_is_loaded() {
    let classifier = Classifier::new(&FunctionConfig::default());
    check(
        &classifier,
        cases().into_iter().filter(|case| !case.has("catalog")),
    );
}

#[test]
fn nothing_of_the_users_is_trusted_before_a_catalog_is_loaded() {
    let classifier = Classifier::new(&FunctionConfig::default());
    assert!(!classifier.take_wants_catalog());
    let verdict = classifier.classify(None, "select shout('a')");
    assert_eq!(verdict.reason, RouteReason::UnknownStatement);
    assert!(classifier.take_wants_catalog());
    classifier.set_catalog(catalog(), 0);
    assert!(!classifier.take_wants_catalog());
    let verdict = classifier.classify(None, "select shout('a')");
    assert_eq!(verdict.reason, RouteReason::PlainSelect);
    assert!(!classifier.take_wants_catalog());
    classifier.classify(None, "insert into t (a) values (unheard_of(1))");
    assert!(!classifier.take_wants_catalog());
    classifier.classify(None, "select 1 <+~+> 2");
    assert!(classifier.take_wants_catalog());
}

#[test]
fn overrides_of_functions() {
    let overrides = FunctionConfig {
        allow: ["dice", "App.Fine", "\"Camel\"", "nextval", "either"]
            .map(str::to_owned)
            .into(),
        deny: ["lower", "app.shout", "either"].map(str::to_owned).into(),
    };
    let classifier = Classifier::new(&overrides);
    classifier.set_catalog(catalog(), 0);
    for (sql, plain) in [
        ("select dice(6)", true),
        ("select nextval('s')", true),
        ("select app.fine(1)", true),
        ("select APP . FINE (1)", true),
        ("select \"Camel\"(1)", true),
        ("select fine(1)", false),
        ("select other.fine(1)", false),
        ("select camel(1)", false),
        ("select lower('A')", false),
        ("select pg_catalog.lower('A')", false),
        ("select ('A'::text).lower", false),
        ("select shout('a')", false),
        ("select app.shout('a')", false),
        ("select other.shout('a')", true),
        ("select either(1)", false),
    ] {
        let verdict = classifier.classify(None, sql);
        assert_eq!(
            verdict.reason == RouteReason::PlainSelect,
            plain,
            "{sql}: {verdict:?}"
        );
    }
}

#[test]
fn what_a_replica_refused_is_learned() {
    let now = Instant::now();
    struct Query;
    let classifier = classifier();
    let id = Some(TypeId::of::<Query>());
    for (id, sql) in [(None, "select 1"), (id, "select 2")] {
        assert_eq!(
            classifier.classify(id, sql).reason,
            RouteReason::PlainSelect
        );
        classifier.learn(id, sql, now);
        assert_eq!(classifier.classify(id, sql).reason, RouteReason::Learned);
        assert!(classifier.classify(id, sql).writes);
        classifier.set_catalog(catalog(), 0);
        assert_eq!(classifier.classify(id, sql).reason, RouteReason::Learned);
    }
    assert_eq!(
        classifier.classify(None, "select 2").reason,
        RouteReason::PlainSelect
    );
    classifier.learn(None, "insert into t values (1)", now);
    assert_eq!(
        classifier.classify(None, "insert into t values (1)").reason,
        RouteReason::Write
    );
}

#[test]
fn the_lists_are_sorted_and_do_not_contradict_each_other() {
    use lists::*;
    let lists = [
        WELL_KNOWN,
        EXCUSED,
        HARMFUL,
        OF_SERVER,
        OF_SERVER_PREFIXES,
        VIEWS_OF_SERVER,
        SETTINGS_OF_SERVER,
        LOCKS,
        RUNS_SQL,
        SESSION_SETTINGS,
        SESSION_LOCKS,
        INDELIBLE,
        KEYWORDS,
        SOFT_KEYWORDS,
        OPERATORS,
    ];
    for list in lists {
        assert!(list.is_sorted(), "{list:?}");
        assert!(list.windows(2).all(|pair| pair[0] != pair[1]), "{list:?}");
    }
    for harmless in WELL_KNOWN.iter().chain(EXCUSED).chain(SOFT_KEYWORDS) {
        for harmful in [
            HARMFUL,
            OF_SERVER,
            LOCKS,
            RUNS_SQL,
            SESSION_SETTINGS,
            SESSION_LOCKS,
            INDELIBLE,
        ] {
            assert!(harmful.binary_search(harmless).is_err(), "{harmless}");
        }
    }
}

#[test]
fn the_catalog_is_loaded_by_plain_reads() {
    let classifier = classifier();
    for sql in [FUNCTIONS_SQL, OPERATORS_SQL, CODE_SQL] {
        assert_eq!(
            classifier.classify(None, sql).reason,
            RouteReason::PlainSelect,
            "{sql}"
        );
    }
}

#[test]
fn what_was_learned_does_not_last_for_ever() {
    let (now, hour) = (Instant::now(), learned::LASTS);
    let classifier = classifier();
    let reason = |sql| classifier.classify(None, sql).reason;
    for (sql, at) in [("SELECT 1", now), ("SELECT 2", now + hour / 2)] {
        assert_eq!(reason(sql), RouteReason::PlainSelect);
        classifier.learn(None, sql, at);
        assert_eq!(reason(sql), RouteReason::Learned);
    }
    classifier.forget_learned(now + hour / 2);
    assert_eq!(classifier.learned().len(), 2);
    classifier.forget_learned(now + hour);
    assert_eq!(reason("SELECT 1"), RouteReason::PlainSelect);
    assert_eq!(reason("SELECT 2"), RouteReason::Learned);
    let told: Vec<_> = classifier.learned().into_iter().map(|it| it.sql).collect();
    assert_eq!(told, ["SELECT 2"]);
    // Taught again, it lasts anew.
    classifier.learn(None, "SELECT 1", now + hour);
    classifier.forget_learned(now + hour + hour / 2);
    assert_eq!(reason("SELECT 1"), RouteReason::Learned);
    assert_eq!(reason("SELECT 2"), RouteReason::PlainSelect);
}
