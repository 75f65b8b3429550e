//! The catalog of `cases/schema.sql`, as its rows would be loaded, and the tables of cases.

use super::*;

/// A statement and what is expected of it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) file: &'static str,
    /// `replica`, or `primary` and a reason, and then the flags.
    pub(super) expected: String,
    pub(super) sql: String,
}

impl Case {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.expected.split(' ').any(|word| word == flag)
    }
}

const FILES: &[(&str, &str)] = &[
    ("replica.txt", include_str!("../cases/replica.txt")),
    ("binds.txt", include_str!("../cases/binds.txt")),
    // Reads that the parser does not know; the newest parser may.
    ("unparsed.txt", include_str!("../cases/unparsed.txt")),
    ("primary.txt", include_str!("../cases/primary.txt")),
    ("session.txt", include_str!("../cases/session.txt")),
    ("transaction.txt", include_str!("../cases/transaction.txt")),
    ("catalog.txt", include_str!("../cases/catalog.txt")),
];

/// All cases. A line is a statement, or starts with `# ` and says what is expected of the
/// statements below it; `\n` in a line stands for a line break.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (file, text) in FILES {
        let mut expected = "";
        for line in text.lines() {
            if let Some(header) = line.strip_prefix("# ") {
                expected = header;
            } else if !line.trim().is_empty() {
                cases.push(Case {
                    file,
                    expected: expected.to_owned(),
                    sql: line.replace("\\n", "\n"),
                });
            }
        }
    }
    cases
}

fn row((name, sort): &(&str, &str)) -> (String, String) {
    ((*name).to_owned(), (*sort).to_owned())
}

/// What the server would answer for the schema of the cases.
pub(super) fn catalog() -> Catalog {
    let built_in = lists::WELL_KNOWN.iter().map(|name| (*name, "b"));
    let excused = lists::EXCUSED.iter().map(|name| (*name, "B"));
    let harmful = lists::HARMFUL.iter().map(|name| (*name, "B"));
    let functions: Vec<(&str, &str)> = built_in
        .chain(excused)
        .chain(harmful)
        .chain([
            ("pg_control_system", "B"),
            ("pg_conversion_is_visible", "b"),
            ("shout", "u"),
            ("post_count", "u"),
            ("dice", "A"),
            ("log_visit", "A"),
            ("next_ticket", "U"),
            ("hidden_next", "U"),
            ("noisy_sum", "A"),
            ("first", "u"),
            ("next", "A"),
            ("timeofday", "U"),
            ("op_log", "U"),
            ("op_plain", "u"),
            ("Camel", "U"),
        ])
        .collect();
    let relation = |(name, kind, definition): &(&str, &str, &str)| RelationRow {
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        definition: (*definition).to_owned(),
    };
    let relations = [
        ("scratch", "tainted", ""),
        (
            "active_users",
            "query",
            " SELECT users.id,\n    users.name\n   FROM users\n  WHERE users.active;",
        ),
        (
            "tickets",
            "query",
            " SELECT nextval('ticket_seq'::regclass) AS ticket;",
        ),
        ("more_tickets", "query", " SELECT t.ticket FROM tickets t;"),
        ("scratch_view", "query", " SELECT scratch.id FROM scratch;"),
        ("secrets", "expression", "log_visit(owner) > 0"),
        (
            "diaries",
            "expression",
            "(owner = (current_setting('app.user'::text, true))::integer)",
        ),
        ("counted", "expression", "CHECK ((log_visit(VALUE) > 0))"),
        ("unreadable", "query", ""),
    ];
    let operators = [("%%%", "U"), ("<~~>", "u"), ("|+|", "U")];
    Catalog::new(
        functions.iter().map(row),
        relations.iter().map(relation),
        operators.iter().map(row),
    )
}

/// A classifier that knows that catalog.
pub(super) fn classifier() -> Classifier {
    let classifier = Classifier::new(&FunctionConfig::default());
    classifier.set_catalog(catalog());
    classifier
}
