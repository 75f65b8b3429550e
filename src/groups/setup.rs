//! What a database of a group must have: the table of homes and the functions that guard it.
//!
//! The table is replicated like the application's own tables, in the same subscription. Logical replication applies
//! transactions in the order of their commits. So where a group sees that a key has moved to it, it has already applied
//! all that was written for the key before.

/// The SQL that prepares the database of a group: a schema `diesel_replicated` with the table of homes and the functions
/// that guard it. Run it as the owner of the application's tables, in each group with its own name, before the groups
/// replicate. `births` names the group where keys get their first home ([`place`](crate::MultiPrimaryPool::place)); it is
/// the same in all groups. It may be run again.
///
/// The table has to be in the publication of every group, with the application's tables.
///
/// ```
/// use diesel_replicated::multi_primary::setup_sql;
///
/// let sql = setup_sql("eu", "eu");
/// assert!(sql.contains("CREATE TABLE IF NOT EXISTS diesel_replicated.homes"));
/// ```
#[must_use]
pub fn setup_sql(group: &str, births: &str) -> String {
    SETUP
        .replace("{group}", &literal(group))
        .replace("{births}", &literal(births))
}

/// Asks, in a transaction, whether a key is at home in the database. It fails if not, and what follows in the
/// transaction with it.
pub(crate) fn check(key: &str) -> String {
    format!("SELECT diesel_replicated.at_home({})", literal(key))
}

/// A text as a literal, whatever `standard_conforming_strings` is.
pub(crate) fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "''");
    format!("E'{escaped}'")
}

/// Who writes holds the key's lock, shared, to the end of the transaction; who moves the key takes it alone. So a move
/// begins when all writes are at their ends, and whoever comes later sees that the key has moved. From `REPEATABLE READ`
/// on, the snapshot may be older than the lock; there the row is locked as well, which fails with 40001 if it has changed
/// since. What only reads needs none of it: where the snapshot shows the key at home, all is there that was acknowledged
/// before.
const SETUP: &str = r"
CREATE SCHEMA IF NOT EXISTS diesel_replicated;

CREATE TABLE IF NOT EXISTS diesel_replicated.homes (
    key text PRIMARY KEY,
    home text NOT NULL,
    generation bigint NOT NULL,
    settled boolean NOT NULL
);

CREATE OR REPLACE FUNCTION diesel_replicated.this_group() RETURNS text
LANGUAGE sql IMMUTABLE AS $$ SELECT {group}::text $$;

CREATE OR REPLACE FUNCTION diesel_replicated.births() RETURNS text
LANGUAGE sql IMMUTABLE AS $$ SELECT {births}::text $$;

CREATE OR REPLACE FUNCTION diesel_replicated.at_home(wanted text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found diesel_replicated.homes;
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock_shared(1752133989, pg_catalog.hashtext(wanted));
    IF pg_catalog.current_setting('transaction_isolation') = 'read committed'
        OR pg_catalog.current_setting('transaction_read_only') = 'on' THEN
        SELECT * INTO found FROM diesel_replicated.homes WHERE key = wanted;
    ELSE
        SELECT * INTO found FROM diesel_replicated.homes WHERE key = wanted FOR SHARE;
    END IF;
    IF found.home = diesel_replicated.this_group() AND found.settled THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'this key is not at home in group %', diesel_replicated.this_group() USING
        ERRCODE = 'ZH001',
        DETAIL = coalesce(found.generation || ' ' || CASE WHEN found.settled THEN 't' ELSE 'f' END || ' ' || found.home, '');
END $$;

CREATE OR REPLACE FUNCTION diesel_replicated.place_home(wanted text, target text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF diesel_replicated.births() <> diesel_replicated.this_group() THEN
        RAISE EXCEPTION 'keys get their first home in group %', diesel_replicated.births() USING ERRCODE = 'ZH002';
    END IF;
    INSERT INTO diesel_replicated.homes VALUES (wanted, target, 1, target = diesel_replicated.this_group())
        ON CONFLICT DO NOTHING;
END $$;

CREATE OR REPLACE FUNCTION diesel_replicated.move_home(wanted text, target text, most_millis bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    moved bigint;
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', most_millis::text, true);
    PERFORM pg_catalog.pg_advisory_xact_lock(1752133989, pg_catalog.hashtext(wanted));
    UPDATE diesel_replicated.homes SET home = target, generation = generation + 1, settled = false
        WHERE key = wanted AND home = diesel_replicated.this_group() AND settled
        RETURNING generation INTO moved;
    RETURN moved;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'a transaction has held the key for % ms; nothing was moved', most_millis USING ERRCODE = '55P03';
END $$;

CREATE OR REPLACE FUNCTION diesel_replicated.settle_home(wanted text, of_generation bigint) RETURNS void
LANGUAGE sql AS $$
    UPDATE diesel_replicated.homes SET settled = true
        WHERE key = wanted AND home = diesel_replicated.this_group() AND generation = of_generation AND NOT settled
$$;
";
