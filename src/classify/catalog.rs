//! What is known of the database's own functions, relations, types and operators.
//!
//! Only what matters to the classification is kept: which names there are, and which of them
//! must not be used on a replica. Names stand for all schemas, as nothing here knows the search
//! path.

use std::collections::{HashMap, HashSet};

use super::functions::Functions;
use super::lexer;
use super::lists;
use super::scan::{self, Known};
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
}

/// A row of [`RELATIONS_SQL`].
#[derive(Clone, Debug)]
pub(crate) struct RelationRow {
    /// The relation's or type's name.
    pub(crate) name: String,
    /// `tainted`, `query` or `expression`.
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
    /// Judged as soon as the user's overrides of functions are at hand.
    definitions: Vec<RelationRow>,
}

impl Catalog {
    /// From the rows of [`FUNCTIONS_SQL`], [`RELATIONS_SQL`] and [`OPERATORS_SQL`].
    pub(crate) fn new(
        functions: impl IntoIterator<Item = (String, String)>,
        relations: impl IntoIterator<Item = RelationRow>,
        operators: impl IntoIterator<Item = (String, String)>,
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
        catalog
    }

    /// Judges views, policies and constraints; what uses a tainted one is tainted in its turn.
    pub(super) fn judge_definitions(&mut self, functions: &Functions) {
        let mut open = std::mem::take(&mut self.definitions);
        loop {
            let before = open.len();
            let judged = std::mem::take(&mut open);
            for row in judged {
                if self.is_plain(&row, functions) {
                    open.push(row);
                } else {
                    self.tainted.insert(row.name.into());
                }
            }
            if open.len() == before {
                return;
            }
        }
    }

    fn is_plain(&self, row: &RelationRow, functions: &Functions) -> bool {
        let known = Known {
            functions,
            catalog: Some(self),
        };
        // A definition that may not be read could be anything.
        !row.definition.is_empty()
            && lexer::tokens(&row.definition).is_ok_and(|tokens| {
                scan::scan(Tokens::new(&row.definition, &tokens), known).is_plain()
            })
    }

    /// What is known of the functions of that name.
    pub(super) fn function(&self, name: &str) -> Function {
        self.functions.get(name).copied().unwrap_or_default()
    }

    /// Whether a relation or type of that name is unfit for a replica.
    pub(super) fn is_tainted(&self, name: &str) -> bool {
        self.tainted.contains(name)
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
