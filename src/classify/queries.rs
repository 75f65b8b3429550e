//! What is asked of a server about its catalog: names, and the code that runs without being named.
//!
//! See <https://www.postgresql.org/docs/current/catalogs.html>.

/// Loads the functions: name, and a letter for each sort of overload, see
/// [`Function::add`](super::catalog::Function).
///
/// The extensions named here only make random values. What was declared stable may still call
/// what is not, so the bodies that can be read are searched for the common names. The volatility
/// of an aggregate is that of the functions behind it.
pub(crate) const FUNCTIONS_SQL: &str = r"
SELECT f.proname::text,
  string_agg(DISTINCT CASE
    WHEN f.built_in AND f.volatile THEN 'B'
    WHEN f.built_in THEN 'b'
    WHEN f.volatile AND f.attribute THEN 'A'
    WHEN f.volatile THEN 'U'
    WHEN f.attribute THEN 'a'
    ELSE 'u' END, '')
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

/// Loads the operators that are not built in: name, and `U` if any is volatile, `u` if none.
pub(crate) const OPERATORS_SQL: &str = r"
SELECT o.oprname::text, CASE WHEN bool_or(p.provolatile = 'v') THEN 'U' ELSE 'u' END
FROM pg_catalog.pg_operator o
JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
WHERE o.oprnamespace <> 'pg_catalog'::regnamespace
GROUP BY o.oprname";

/// Loads what may be unfit for a replica, and the code that statements run without naming it or that hides
/// in functions: name, kind (see [`Kind`](super::code::Kind)) and definition. A definition is scanned,
/// never run, so that names of functions may stand in for it; of kinds that only tie two names together
/// it is the other name.
///
/// - `suspect`: functions whose code may do anything, by what the catalog says of them, and those built in
///   that leave something in the session.
/// - `calls`: a pattern of expressions, as they are stored, that call what is not built in or is suspect.
/// - `own`: the functions behind an operator class.
/// - `coded`: types whose values are made, compared or converted by suspect functions.
/// - `uses`: which type contains which; `reached`: the types that contain coded ones, at any depth.
pub(crate) const CODE_SQL: &str = r"
WITH RECURSIVE unlogged AS (
  SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relpersistence = 'u' AND c.relkind <> 'i'
  UNION
  SELECT i.inhparent FROM unlogged u JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.oid),
random AS (
  SELECT d.objid FROM pg_catalog.pg_depend d
  JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
  WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'e'
    AND d.refclassid = 'pg_catalog.pg_extension'::regclass
    AND e.extname IN ('pgcrypto', 'uuid-ossp')),
leaving AS (
  SELECT p.oid, p.proname, p.prosrc FROM pg_catalog.pg_proc p
  WHERE p.pronamespace = 'pg_catalog'::regnamespace
    AND p.proname ~ '^(set_config|setseed|pg_(try_)?advisory_|query_to_|cursor_to_|(table|schema|database)_to_xml|ts_stat|ts_rewrite)'),
written AS (
  SELECT p.oid, p.proname,
    CASE WHEN p.prokind = 'a' OR l.lanname IN ('sql', 'plpgsql') THEN 'function' ELSE 'opaque' END AS kind,
    CASE
      WHEN p.prokind = 'a' THEN (
        SELECT string_agg(pg_catalog.quote_ident(q.proname) || '()', ' ')
        FROM pg_catalog.pg_aggregate a, pg_catalog.pg_proc q
        WHERE a.aggfnoid = p.oid AND q.oid = ANY (ARRAY[
          a.aggtransfn, a.aggfinalfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]))
      ELSE concat(p.prosrc, E'\n; ', pg_catalog.pg_get_function_sqlbody(p.oid), E'\n; ',
        pg_catalog.pg_get_expr(p.proargdefaults, 0))
    END AS definition
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE p.oid >= 16384
    AND (p.prokind = 'a' OR l.lanname IN ('sql', 'plpgsql') OR p.provolatile = 'v'
      OR l.lanname NOT IN ('c', 'internal')
        AND p.prosrc ~* '(set_config|setseed|advisory|dblink|temp|listen|prepare|\mset\M)')
    AND p.oid NOT IN (SELECT objid FROM random)
  UNION ALL
  SELECT p.oid, p.proname, 'function', b.proname::text || '()'
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang AND l.lanname = 'internal'
  JOIN pg_catalog.pg_proc b ON b.prosrc = p.prosrc
    AND (b.oid IN (SELECT oid FROM leaving) OR b.provolatile = 'v')
    AND b.pronamespace = 'pg_catalog'::regnamespace
  WHERE p.oid >= 16384),
suspect AS MATERIALIZED (
  SELECT oid, proname FROM written UNION SELECT oid, proname FROM leaving),
calls AS MATERIALIZED (
  SELECT ':(funcid|opfuncid|aggfnoid) ([0-9]{5,}|' || string_agg(oid::text, '|') || ') |\{COERCETODOMAIN ' AS pattern
  FROM leaving),
own AS MATERIALIZED (
  SELECT family, string_agg(DISTINCT pg_catalog.quote_ident(s.proname) || '()', ' ') AS functions
  FROM (
    SELECT m.amprocfamily, m.amproc::oid FROM pg_catalog.pg_amproc m
    UNION ALL
    SELECT m.amopfamily, o.oprcode::oid
    FROM pg_catalog.pg_amop m JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr) AS m (family, function)
  JOIN suspect s ON s.oid = m.function
  GROUP BY family),
held AS MATERIALIZED (
  SELECT t.oid, t.typname, s.proname
  FROM (
    SELECT k.castfunc::oid, v.type
    FROM pg_catalog.pg_cast k, LATERAL (VALUES (k.castsource), (k.casttarget)) AS v (type)
    UNION ALL
    SELECT o.oprcode, v.type
    FROM pg_catalog.pg_operator o, LATERAL (VALUES (o.oprleft), (o.oprright)) AS v (type)
    UNION ALL
    SELECT v.function, g.rngtypid
    FROM pg_catalog.pg_range g, LATERAL (VALUES (g.rngcanonical), (g.rngsubdiff)) AS v (function)) AS k (function, type)
  JOIN suspect s ON s.oid = k.function
  JOIN pg_catalog.pg_type t ON t.oid = k.type AND t.oid >= 16384),
coded AS (
  SELECT oid FROM held
  UNION
  SELECT k.contypid FROM calls, pg_catalog.pg_constraint k
  WHERE k.contypid <> 0 AND k.contype = 'c' AND k.conbin::text ~ calls.pattern
  UNION
  SELECT t.oid FROM calls, pg_catalog.pg_type t
  WHERE t.typtype = 'd' AND t.typdefaultbin::text ~ calls.pattern
  UNION
  SELECT c.opcintype FROM pg_catalog.pg_opclass c JOIN own ON own.family = c.opcfamily
  WHERE c.opcintype >= 16384),
uses AS (
  SELECT t.oid AS user_type, t.typbasetype AS used FROM pg_catalog.pg_type t WHERE t.typtype = 'd'
  UNION ALL
  SELECT t.oid, t.typelem FROM pg_catalog.pg_type t WHERE t.typcategory = 'A'
  UNION ALL
  SELECT g.rngtypid, g.rngsubtype FROM pg_catalog.pg_range g
  UNION ALL
  SELECT (pg_catalog.to_jsonb(g) ->> 'rngmultitypid')::oid, g.rngtypid FROM pg_catalog.pg_range g
  UNION ALL
  SELECT c.reltype, a.atttypid
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  WHERE a.atttypid >= 16384 AND NOT a.attisdropped AND c.reltype <> 0),
reached AS (
  SELECT oid FROM coded
  UNION
  SELECT u.user_type FROM reached r JOIN uses u ON u.used = r.oid)

SELECT c.relname::text, 'unlogged', ''
FROM unlogged u JOIN pg_catalog.pg_class c ON c.oid = u.oid
UNION ALL
SELECT c.relname::text, 'sequence', '' FROM pg_catalog.pg_class c WHERE c.relkind = 'S'
UNION ALL
SELECT proname::text, kind, definition FROM written
UNION ALL
SELECT o.oprname::text, 'operator', pg_catalog.quote_ident(p.proname) || '()'
FROM pg_catalog.pg_operator o JOIN suspect p ON p.oid = o.oprcode
UNION ALL
SELECT c.relname::text, 'read', coalesce(pg_catalog.pg_get_viewdef(c.oid), '')
FROM pg_catalog.pg_class c
WHERE c.relkind = 'v' AND c.relnamespace NOT IN (
  SELECT n.oid FROM pg_catalog.pg_namespace n
  WHERE n.nspname IN ('pg_catalog', 'information_schema'))
UNION ALL
SELECT c.relname::text, 'read', coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '')
FROM pg_catalog.pg_policy p
JOIN pg_catalog.pg_class c ON c.oid = p.polrelid AND c.relrowsecurity
WHERE p.polcmd IN ('*', 'r') AND p.polqual IS NOT NULL
UNION ALL
SELECT c.relname::text, 'kept', pg_catalog.pg_get_viewdef(c.oid)
FROM pg_catalog.pg_class c WHERE c.relkind = 'm'
UNION ALL
SELECT x.stxname::text, 'kept', pg_catalog.pg_get_statisticsobjdef(x.oid)
FROM calls, pg_catalog.pg_statistic_ext x
WHERE pg_catalog.to_jsonb(x) ->> 'stxexprs' ~ calls.pattern
UNION ALL
SELECT t.typname::text, 'made', pg_catalog.pg_get_constraintdef(k.oid)
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_type t ON t.oid = k.contypid
WHERE k.contype = 'c' AND t.typnamespace NOT IN (
  SELECT n.oid FROM pg_catalog.pg_namespace n
  WHERE n.nspname IN ('pg_catalog', 'information_schema'))
UNION ALL
SELECT t.typname::text, 'made', pg_catalog.pg_get_expr(t.typdefaultbin, 0)
FROM calls, pg_catalog.pg_type t
WHERE t.typtype = 'd' AND t.typdefaultbin::text ~ calls.pattern
UNION ALL
SELECT DISTINCT typname::text, 'held', pg_catalog.quote_ident(proname) || '()' FROM held
UNION ALL
SELECT t.typname::text, 'held', own.functions
FROM own
JOIN pg_catalog.pg_opclass c ON c.opcfamily = own.family AND c.opcintype >= 16384
JOIN pg_catalog.pg_type t ON t.oid = c.opcintype
UNION ALL
SELECT t.typname::text, 'part', p.typname::text
FROM reached r
JOIN uses u ON u.used = r.oid
JOIN pg_catalog.pg_type p ON p.oid = r.oid
JOIN pg_catalog.pg_type t ON t.oid = u.user_type
LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
WHERE c.oid IS NULL OR c.relkind = 'c'
UNION ALL
SELECT c.relname::text, 'column', t.typname::text
FROM reached r
JOIN pg_catalog.pg_type t ON t.oid = r.oid
JOIN pg_catalog.pg_attribute a ON a.atttypid = r.oid AND NOT a.attisdropped
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
UNION ALL
SELECT DISTINCT f.proname::text, 'argument', t.typname::text
FROM pg_catalog.pg_proc f,
  unnest(coalesce(f.proallargtypes, f.proargtypes::oid[]) || f.prorettype) AS a (type)
JOIN reached r ON r.oid = a.type
JOIN pg_catalog.pg_type t ON t.oid = r.oid
WHERE f.oid >= 16384
UNION ALL
SELECT '', 'anywhere', pg_catalog.quote_ident(s.proname) || '()'
FROM pg_catalog.pg_cast k JOIN suspect s ON s.oid = k.castfunc
WHERE k.castsource < 16384 AND k.casttarget < 16384
UNION ALL
SELECT '', 'anywhere', pg_catalog.quote_ident(s.proname) || '()'
FROM pg_catalog.pg_operator o JOIN suspect s ON s.oid = o.oprcode
WHERE o.oid >= 16384 AND o.oprleft < 16384 AND o.oprright < 16384
  AND o.oprname IN (SELECT b.oprname FROM pg_catalog.pg_operator b WHERE b.oid < 16384)
UNION ALL
SELECT c.relname::text, v.kind, own.functions
FROM own
JOIN pg_catalog.pg_opclass o ON o.opcfamily = own.family
JOIN (
  SELECT i.indrelid, i.indclass::oid[] FROM pg_catalog.pg_index i
  UNION ALL
  SELECT p.partrelid, p.partclass::oid[] FROM pg_catalog.pg_partitioned_table p) AS i (relation, classes)
  ON o.oid = ANY (i.classes)
JOIN pg_catalog.pg_class c ON c.oid = i.relation,
  (VALUES ('read'), ('written')) AS v (kind)
UNION ALL
SELECT c.relname::text, 'fired', pg_catalog.pg_get_triggerdef(t.oid)
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal
UNION ALL
SELECT c.relname::text, 'fired', pg_catalog.pg_get_ruledef(r.oid)
FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
WHERE r.ev_type <> '1' AND r.oid >= 16384
UNION ALL
SELECT c.relname::text, 'written', pg_catalog.pg_get_expr(d.adbin, d.adrelid)
FROM calls, pg_catalog.pg_attrdef d JOIN pg_catalog.pg_class c ON c.oid = d.adrelid
WHERE d.adbin::text ~ calls.pattern
UNION ALL
SELECT c.relname::text, 'written', pg_catalog.pg_get_constraintdef(k.oid)
FROM calls, pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'c' AND k.conbin::text ~ calls.pattern
UNION ALL
SELECT c.relname::text, 'written', concat(pg_catalog.pg_get_expr(p.polqual, p.polrelid), ' ',
  pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
FROM calls, pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
WHERE concat(p.polqual::text, p.polwithcheck::text) ~ calls.pattern
UNION ALL
SELECT c.relname::text, 'written', concat(pg_catalog.pg_get_expr(i.indexprs, i.indrelid), ' ',
  pg_catalog.pg_get_expr(i.indpred, i.indrelid))
FROM calls, pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
WHERE concat(i.indexprs::text, i.indpred::text) ~ calls.pattern
UNION ALL
SELECT c.relname::text, 'written', pg_catalog.pg_get_expr(p.partexprs, p.partrelid)
FROM calls, pg_catalog.pg_partitioned_table p JOIN pg_catalog.pg_class c ON c.oid = p.partrelid
WHERE p.partexprs::text ~ calls.pattern
UNION ALL
SELECT DISTINCT p.relname::text, 'child', c.relname::text
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'f' AND (k.confupdtype IN ('c', 'n', 'd') OR k.confdeltype IN ('c', 'n', 'd'))
UNION ALL
SELECT p.relname::text, 'child', c.relname::text
FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE c.relkind IN ('r', 'p', 'f')
UNION ALL
SELECT '', 'event', pg_catalog.quote_ident(p.proname) || '()'
FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc p ON p.oid = e.evtfoid
WHERE e.evtevent <> 'login'";
