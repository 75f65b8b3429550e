//! The catalog of `cases/schema.sql`, as its rows would be loaded, and the tables of cases.

use super::*;
use crate::classify::code::Kind;

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
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn catalog() -> Catalog {
    let built_in = lists::WELL_KNOWN.iter().map(|name| (*name, "b"));
    let excused = lists::EXCUSED.iter().map(|name| (*name, "B"));
    let harmful = lists::HARMFUL
        .iter()
        .chain(lists::LOCKS)
        .chain(lists::OF_SERVER)
        .chain(lists::RUNS_SQL)
        .chain(lists::INDELIBLE)
        .map(|name| (*name, "B"));
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
            ("set_tenant", "A"),
            ("sets_indirectly", "u"),
            ("sets_by_text", "u"),
            ("tenant_step", "U"),
            ("last_tenant", "A"),
            ("op_tenant", "u"),
            ("set_all", "U"),
            ("audit", "U"),
            ("touch", "U"),
            ("touch_all", "U"),
            ("is_standby", "u"),
        ])
        .collect();
    let relation = |(name, kind, definition): &(&str, &str, &str)| CodeRow {
        name: (*name).to_owned(),
        kind: Kind::parse(kind).unwrap(),
        definition: (*definition).to_owned(),
    };
    let relations = [
        ("scratch", "unlogged", ""),
        ("ticket_seq", "sequence", ""),
        (
            "busy",
            "read",
            " SELECT pg_stat_activity.pid\n   FROM pg_stat_activity;",
        ),
        (
            "active_users",
            "read",
            " SELECT users.id,\n    users.name\n   FROM users\n  WHERE users.active;",
        ),
        (
            "tickets",
            "read",
            " SELECT nextval('ticket_seq'::regclass) AS ticket;",
        ),
        ("more_tickets", "read", " SELECT t.ticket FROM tickets t;"),
        ("scratch_view", "read", " SELECT scratch.id FROM scratch;"),
        ("secrets", "read", "log_visit(owner) > 0"),
        (
            "diaries",
            "read",
            "(owner = (current_setting('app.user'::text, true))::integer)",
        ),
        ("counted", "made", "CHECK ((log_visit(VALUE) > 0))"),
        ("unreadable", "read", ""),
        (
            "tenants_view",
            "read",
            " SELECT sets_indirectly('a'::text) AS tenant;",
        ),
        ("guarded", "read", "(sets_indirectly('a'::text) IS NULL)"),
        (
            "audited_view",
            "read",
            " SELECT audited.id\n   FROM audited;",
        ),
    ];
    let operators = [("%%%", "U"), ("<~~>", "u"), ("|+|", "U"), ("<=!=>", "u")];
    let code = [
        (
            "set_tenant",
            "function",
            "BEGIN PERFORM set_config('app.tenant', t, false); END\n; \n; ",
        ),
        (
            "sets_indirectly",
            "function",
            "SELECT set_tenant(t)::text\n; \n; ",
        ),
        (
            "sets_by_text",
            "function",
            "BEGIN EXECUTE 'SELECT set_con' || 'fig(''a.b'', $1, false)' USING t; END\n; \n; ",
        ),
        (
            "tenant_step",
            "function",
            "SELECT set_tenant($2)::text\n; \n; ",
        ),
        ("last_tenant", "function", "tenant_step()"),
        (
            "op_tenant",
            "function",
            "SELECT sets_indirectly('a') IS NULL\n; \n; ",
        ),
        (
            "is_standby",
            "function",
            "SELECT pg_is_in_recovery()\n; \n; ",
        ),
        ("<=!=>", "operator", "op_tenant()"),
        ("set_all", "function", "BEGIN SET app.each = 1; END\n; \n; "),
        (
            "audit",
            "function",
            "BEGIN IF TG_OP = 'INSERT' THEN SET app.audit = 1; END IF; RETURN NULL; END\n; \n; ",
        ),
        (
            "touch",
            "function",
            "BEGIN IF (NEW IS DISTINCT FROM OLD) THEN NEW.at := now(); SET LOCAL app.touched = 1; END IF; RETURN NEW; END\n; \n; ",
        ),
        (
            "touch_all",
            "function",
            "BEGIN UPDATE touched SET at = now(); COMMIT; END\n; \n; ",
        ),
        (
            "dice",
            "function",
            "SELECT 1 + floor(random() * $1)::integer\n; \n; ",
        ),
        (
            "log_visit",
            "function",
            "INSERT INTO visits VALUES ($1) RETURNING id\n; \n; ",
        ),
        (
            "audited",
            "fired",
            "CREATE TRIGGER audit AFTER INSERT OR DELETE OR UPDATE ON public.audited FOR EACH ROW EXECUTE FUNCTION audit()",
        ),
        (
            "touched",
            "fired",
            "CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON public.touched FOR EACH ROW EXECUTE FUNCTION touch()",
        ),
        ("audited_parent", "child", "audited"),
    ];
    Catalog::new(
        functions.iter().map(row),
        operators.iter().map(row),
        relations.iter().chain(&code).map(relation),
    )
}

/// A classifier that knows that catalog.
pub(super) fn classifier() -> Classifier {
    let classifier = Classifier::new(&FunctionConfig::default());
    classifier.set_catalog(catalog(), 0);
    classifier
}
