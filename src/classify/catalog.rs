//! What is known of the database's own functions, relations, types and operators.
//!
//! Only what matters to the classification is kept: which names there are, and which of them
//! must not be used on a replica. Names stand for all schemas, as nothing here knows the search
//! path.

use std::collections::{HashMap, HashSet};

use super::body;
use super::functions::{Effect, Functions};
use super::leaves::Leaves;
use super::lexer;
use super::lists;
use super::scan::{self, Findings, Known};
use super::tokens::Tokens;

/// Loads the functions: name, and a letter for each sort of overload, see [`Function::add`].
///
/// The extensions named here only make random values. What was declared stable may still call
/// what is not, so the bodies that can be read are searched for the common names. The volatility
/// of an aggregate is that of the functions behind it.
pub(crate) const FUNCTIONS_SQL: &str = r"
SELECT f.proname::text,
  string_agg(DISTINCT CASE
    WHEN f.built_in AND f.volatile THEN 'B'
    WHEN f.built_in THEN 'b'
    WHEN NOT f.volatile THEN 'u'
    WHEN f.attribute THEN 'A'
    ELSE 'U' END, '')
FROM (
  SELECT p.proname,
    p.pronamespace = 'pg_catalog'::regnamespace AS built_in,
    p.pronargs BETWEEN 1 AND 1 + p.pronargdefaults OR p.provariadic <> 0 AS attribute,
    CASE
      WHEN p.pronamespace = 'pg_catalog'::regnamespace THEN p.provolatile = 'v'
      WHEN p.oid IN (
        SELECT d.objid FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e'
          AND d.refclassid = 'pg_catalog.pg_extension'::regclass
          AND e.extname IN ('pgcrypto', 'uuid-ossp')) THEN false
      WHEN p.prokind = 'a' THEN p.oid IN (
        SELECT a.aggfnoid::oid FROM pg_catalog.pg_aggregate a, pg_catalog.pg_proc q
        WHERE q.provolatile = 'v' AND q.oid = ANY (ARRAY[
          a.aggtransfn, a.aggfinalfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]))
      WHEN p.provolatile = 'v' THEN true
      ELSE l.lanname IN ('sql', 'plpgsql')
        AND p.prosrc || coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), '')
          ~* '\m(nextval|setval|currval|lastval|set_config|setseed|pg_notify|txid_current\M|pg_current_xact_id\M|pg_(try_)?advisory_|pg_current_wal_|lo_)'
    END AS volatile
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang) f
GROUP BY f.proname";

/// Loads the relations and types that may be unfit for a replica: name, kind and definition.
///
/// The kinds: `tainted`, unfit whatever the definition (unlogged tables and their ancestors,
/// types with a cast by a volatile function); `query`, a view; `expression`, the policies of a
/// table and the constraints of a domain.
pub(crate) const RELATIONS_SQL: &str = r"
WITH RECURSIVE unlogged AS (
  SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'm')
  UNION
  SELECT i.inhparent FROM unlogged u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid)
SELECT c.relname::text, 'tainted', ''
FROM unlogged u JOIN pg_catalog.pg_class c ON c.oid = u.oid
UNION ALL
SELECT t.typname::text, 'tainted', ''
FROM pg_catalog.pg_cast k
JOIN pg_catalog.pg_proc p ON p.oid = k.castfunc AND p.provolatile = 'v'
JOIN pg_catalog.pg_type t ON t.oid IN (k.castsource, k.casttarget)
WHERE k.oid >= 16384
UNION ALL
SELECT c.relname::text, 'query', coalesce(pg_catalog.pg_get_viewdef(c.oid), '')
FROM pg_catalog.pg_class c
WHERE c.relkind = 'v' AND c.relnamespace NOT IN (
  SELECT n.oid FROM pg_catalog.pg_namespace n
  WHERE n.nspname IN ('pg_catalog', 'information_schema'))
UNION ALL
SELECT c.relname::text, 'expression', coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '')
FROM pg_catalog.pg_policy p
JOIN pg_catalog.pg_class c ON c.oid = p.polrelid AND c.relrowsecurity
WHERE p.polcmd IN ('*', 'r') AND p.polqual IS NOT NULL
UNION ALL
SELECT t.typname::text, 'expression', pg_catalog.pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_type t ON t.oid = k.contypid
WHERE k.contype = 'c' AND t.typnamespace NOT IN (
  SELECT n.oid FROM pg_catalog.pg_namespace n
  WHERE n.nspname IN ('pg_catalog', 'information_schema'))";

/// Loads the code that statements run without naming it, or that hides in functions: name, kind and
/// text. The text is scanned, never run, so that names of functions may stand in for it.
///
/// The kinds: `function`, the body of a function, its default arguments, or the functions of an aggregate;
/// `opaque`, a function that cannot be read; `operator`; `write`, what runs when a relation is
/// written: triggers, rules, defaults, constraints, policies, and the relations that are written along;
/// `type`, a type that functions convert to or from; `event`, the event triggers. Of expressions only those are loaded that call what is not built in, or
/// what is known to leave something behind.
pub(crate) const CODE_SQL: &str = r"
WITH calls AS (
  SELECT ':(funcid|opfuncid|aggfnoid) ([0-9]{5,}|' || string_agg(p.oid::text, '|') || ') ' AS user_code
  FROM pg_catalog.pg_proc p
  WHERE p.pronamespace = 'pg_catalog'::regnamespace
    AND p.proname ~ '^(set_config|setseed|pg_(try_)?advisory_|query_to_|cursor_to_|ts_stat|ts_rewrite)')
SELECT p.proname::text,
  CASE WHEN p.prokind = 'a' OR l.lanname IN ('sql', 'plpgsql') THEN 'function' ELSE 'opaque' END,
  CASE
    WHEN p.prokind = 'a' THEN (
      SELECT string_agg(pg_catalog.quote_ident(q.proname) || '()', ' ')
      FROM pg_catalog.pg_aggregate a, pg_catalog.pg_proc q
      WHERE a.aggfnoid = p.oid AND q.oid = ANY (ARRAY[
        a.aggtransfn, a.aggfinalfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]))
    ELSE concat(p.prosrc, E'\n; ', pg_catalog.pg_get_function_sqlbody(p.oid), E'\n; ',
      pg_catalog.pg_get_expr(p.proargdefaults, 0))
  END
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.oid >= 16384
  AND (p.prokind = 'a' OR l.lanname IN ('sql', 'plpgsql') OR p.provolatile = 'v'
    OR l.lanname NOT IN ('c', 'internal')
      AND p.prosrc ~* '(set_config|setseed|advisory|dblink|temp|listen|prepare|\mset\M)')
  AND p.oid NOT IN (
    SELECT d.objid FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e'
      AND d.refclassid = 'pg_catalog.pg_extension'::regclass
      AND e.extname IN ('pgcrypto', 'uuid-ossp'))
UNION ALL
SELECT o.oprname::text, 'operator', pg_catalog.quote_ident(p.proname) || '()'
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
WHERE o.oid >= 16384
UNION ALL
SELECT t.typname::text, 'type', pg_catalog.quote_ident(p.proname) || '()'
FROM pg_catalog.pg_cast k
JOIN pg_catalog.pg_proc p ON p.oid = k.castfunc
JOIN pg_catalog.pg_type t ON t.oid IN (k.castsource, k.casttarget)
WHERE k.oid >= 16384
UNION ALL
SELECT c.relname::text, 'write', pg_catalog.pg_get_triggerdef(t.oid)
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal
UNION ALL
SELECT c.relname::text, 'write', pg_catalog.pg_get_ruledef(r.oid)
FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
WHERE r.ev_type <> '1' AND r.oid >= 16384
UNION ALL
SELECT c.relname::text, 'write', pg_catalog.pg_get_expr(d.adbin, d.adrelid)
FROM calls, pg_catalog.pg_attrdef d JOIN pg_catalog.pg_class c ON c.oid = d.adrelid
WHERE d.adbin::text ~ calls.user_code
UNION ALL
SELECT c.relname::text, 'write', pg_catalog.pg_get_constraintdef(k.oid)
FROM calls, pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'c' AND k.conbin::text ~ calls.user_code
UNION ALL
SELECT c.relname::text, 'write', pg_catalog.quote_ident(t.typname)
FROM calls, pg_catalog.pg_constraint k
JOIN pg_catalog.pg_type t ON t.oid = k.contypid
JOIN pg_catalog.pg_attribute a ON a.atttypid = t.oid
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
WHERE k.contype = 'c' AND k.conbin::text ~ calls.user_code
UNION ALL
SELECT t.typname::text, 'write', pg_catalog.pg_get_constraintdef(k.oid)
FROM calls, pg_catalog.pg_constraint k JOIN pg_catalog.pg_type t ON t.oid = k.contypid
WHERE k.contype = 'c' AND k.conbin::text ~ calls.user_code
UNION ALL
SELECT c.relname::text, 'write', concat(pg_catalog.pg_get_expr(p.polqual, p.polrelid), ' ',
  pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
FROM calls, pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
WHERE concat(p.polqual::text, p.polwithcheck::text) ~ calls.user_code
UNION ALL
SELECT c.relname::text, 'write', concat(pg_catalog.pg_get_expr(i.indexprs, i.indrelid), ' ',
  pg_catalog.pg_get_expr(i.indpred, i.indrelid))
FROM calls, pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
WHERE concat(i.indexprs::text, i.indpred::text) ~ calls.user_code
UNION ALL
SELECT DISTINCT p.relname::text, 'write', pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'f' AND (k.confupdtype IN ('c', 'n', 'd') OR k.confdeltype IN ('c', 'n', 'd'))
UNION ALL
SELECT p.relname::text, 'write', pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE c.relkind IN ('r', 'p', 'f')
UNION ALL
SELECT '', 'event', pg_catalog.quote_ident(p.proname) || '()'
FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
WHERE e.evtevent <> 'login'";

/// Loads the operators that are not built in: name, and `U` if any is volatile, `u` if none.
pub(crate) const OPERATORS_SQL: &str = r"
SELECT o.oprname::text, CASE WHEN bool_or(p.provolatile = 'v') THEN 'U' ELSE 'u' END
FROM pg_catalog.pg_operator o
JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
WHERE o.oprnamespace <> 'pg_catalog'::regnamespace
GROUP BY o.oprname";

/// What the overloads of one name are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) built_in: bool,
    pub(super) built_in_volatile: bool,
    pub(super) user: bool,
    pub(super) user_volatile: bool,
    /// Volatile, and callable with one argument, so also as `(x).f`.
    pub(super) user_attribute: bool,
    /// It takes an advisory lock until the transaction ends.
    locks: bool,
    /// What it does to its session is not known, or known to be something.
    leaves: bool,
    /// No command undoes that.
    indelible: bool,
}

impl Function {
    fn add(&mut self, sort: char) {
        match sort {
            'b' => self.built_in = true,
            'B' => {
                self.built_in = true;
                self.built_in_volatile = true;
            }
            'u' => self.user = true,
            'A' => {
                self.user = true;
                self.user_volatile = true;
                self.user_attribute = true;
            }
            // A letter from nowhere must not excuse anything.
            _ => {
                self.user = true;
                self.user_volatile = true;
            }
        }
    }

    /// What a call of one that is volatile may do.
    pub(super) fn effect(self) -> Effect {
        Effect::Code {
            leaves: self.leaves,
            indelible: self.indelible,
            locks: self.locks,
        }
    }

    /// Its code was found to do this.
    fn does(&mut self, found: &Findings) {
        self.user = true;
        self.user_volatile |= found.is_volatile();
        self.locks |= found.locks;
        self.leaves |= found.leaves() > Leaves::Nothing;
        self.indelible |= found.indelible;
    }
}

/// A row of [`RELATIONS_SQL`] or [`CODE_SQL`].
#[derive(Clone, Debug)]
pub(crate) struct RelationRow {
    /// The name of the relation, type, function or operator.
    pub(crate) name: String,
    /// As the query says.
    pub(crate) kind: String,
    /// The text to judge.
    pub(crate) definition: String,
}

/// What is known of one database.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    functions: HashMap<Box<str>, Function>,
    /// Names of operators that are not built in, and whether they are volatile.
    operators: HashMap<Box<str>, bool>,
    /// Relations and types that no replica should be asked about.
    tainted: HashSet<Box<str>>,
    /// Relations and types that run code which may leave something in the session: by being read, and
    /// by being written.
    leaving: HashSet<Box<str>>,
    leaving_if_written: HashSet<Box<str>>,
    /// Operators that do.
    leaving_operators: HashSet<Box<str>>,
    /// Event triggers do, so that any change of the catalog may.
    leaving_events: bool,
    /// Judged as soon as the user's overrides of functions are at hand.
    definitions: Vec<RelationRow>,
    code: Vec<RelationRow>,
}

impl Catalog {
    /// From the rows of [`FUNCTIONS_SQL`], [`RELATIONS_SQL`], [`OPERATORS_SQL`] and [`CODE_SQL`].
    pub(crate) fn new(
        functions: impl IntoIterator<Item = (String, String)>,
        relations: impl IntoIterator<Item = RelationRow>,
        operators: impl IntoIterator<Item = (String, String)>,
        code: impl IntoIterator<Item = RelationRow>,
    ) -> Self {
        let mut catalog = Self::default();
        for (name, sorts) in functions {
            let function = catalog.functions.entry(name.into()).or_default();
            for sort in sorts.chars() {
                function.add(sort);
            }
        }
        for (name, sort) in operators {
            *catalog.operators.entry(name.into()).or_default() |= sort != "u";
        }
        for row in relations {
            if row.kind == "tainted" {
                catalog.tainted.insert(row.name.into());
            } else {
                catalog.definitions.push(row);
            }
        }
        catalog.code = code.into_iter().collect();
        catalog
    }

    /// Judges what runs code by what that does; what uses it is judged by that in its turn.
    pub(super) fn judge_definitions(&mut self, functions: &Functions) {
        let code = std::mem::take(&mut self.code);
        let definitions = std::mem::take(&mut self.definitions);
        // Each round adds what the round before has made known, so it ends.
        loop {
            let mut news = false;
            for row in &code {
                news |= self.judge_code(row, functions);
            }
            for row in &definitions {
                news |= self.judge_definition(row, functions);
            }
            if !news {
                return;
            }
        }
    }

    /// Whether the row told something new.
    fn judge_code(&mut self, row: &RelationRow, functions: &Functions) -> bool {
        let name: Box<str> = row.name.as_str().into();
        let found = match row.kind.as_str() {
            "opaque" => Findings::anything(),
            _ => body::findings(&row.definition, self.known(functions)),
        };
        match row.kind.as_str() {
            "function" | "opaque" => {
                let function = self.functions.entry(name).or_default();
                let before = *function;
                function.does(&found);
                *function != before
            }
            "write" if found.leaves_if_written => self.leaving_if_written.insert(name),
            _ if found.leaves() == Leaves::Nothing => false,
            "operator" => self.leaving_operators.insert(name),
            "type" => {
                let tainted = self.tainted.insert(name.clone());
                self.leaving.insert(name) || tainted
            }
            "event" => !std::mem::replace(&mut self.leaving_events, true),
            _ => self.leaving_if_written.insert(name),
        }
    }

    /// Whether the row told something new.
    fn judge_definition(&mut self, row: &RelationRow, functions: &Functions) -> bool {
        // A definition that may not be read could be anything.
        let found = match lexer::tokens(&row.definition) {
            Ok(tokens) if !row.definition.is_empty() => {
                scan::scan(Tokens::new(&row.definition, &tokens), self.known(functions))
            }
            _ => Findings::anything(),
        };
        let mut news = !found.is_plain() && self.tainted.insert(row.name.as_str().into());
        if found.leaves() > Leaves::Nothing {
            news |= self.leaving.insert(row.name.as_str().into());
        }
        // Who writes to a view writes to its tables.
        if found.leaves_if_written {
            news |= self.leaving_if_written.insert(row.name.as_str().into());
        }
        news
    }

    fn known<'a>(&'a self, functions: &'a Functions) -> Known<'a> {
        Known {
            functions,
            catalog: Some(self),
        }
    }

    /// What is known of the functions of that name.
    pub(super) fn function(&self, name: &str) -> Function {
        self.functions.get(name).copied().unwrap_or_default()
    }

    /// Whether a relation or type of that name is unfit for a replica.
    pub(super) fn is_tainted(&self, name: &str) -> bool {
        self.tainted.contains(name)
    }

    /// Whether reading a relation, or using a type, of that name may leave something in the session.
    pub(super) fn is_leaving(&self, name: &str) -> bool {
        self.leaving.contains(name)
    }

    /// Whether writing to a relation of that name may leave something in the session.
    pub(super) fn is_leaving_if_written(&self, name: &str) -> bool {
        self.leaving_if_written.contains(name)
    }

    /// Whether an operator of that name may leave something in the session.
    pub(super) fn is_leaving_operator(&self, name: &str) -> bool {
        self.leaving_operators.contains(name)
    }

    /// Whether any change of the catalog may leave something in the session.
    pub(super) fn has_leaving_events(&self) -> bool {
        self.leaving_events
    }

    /// Whether a user's operator of that name is volatile; `None` if there is none.
    pub(super) fn operator(&self, name: &str) -> Option<bool> {
        self.operators.get(name).copied()
    }
}

/// Whether an operator may have effects; `None` if nothing is known of it.
pub(super) fn operator_is_volatile(catalog: Option<&Catalog>, name: &str) -> Option<bool> {
    let user = catalog.and_then(|catalog| catalog.operator(name));
    let built_in = lists::OPERATORS.binary_search(&name).is_ok();
    user.or(built_in.then_some(false))
}
