-- The schema that the cases speak of; `replica.txt` can be run on a standby of it.
CREATE TYPE mood AS ENUM ('happy', 'sad', 'so so');
CREATE TABLE users (
  id integer PRIMARY KEY,
  name text NOT NULL,
  email text,
  active boolean NOT NULL DEFAULT true,
  mood mood,
  tags text[] NOT NULL DEFAULT '{}',
  settings jsonb NOT NULL DEFAULT '{}',
  balance numeric(12, 2) NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamp
);
CREATE TABLE posts (
  id bigint PRIMARY KEY,
  user_id integer NOT NULL REFERENCES users,
  title text NOT NULL,
  body text,
  parent_id bigint,
  published_on date,
  views integer NOT NULL DEFAULT 0,
  scores integer[] NOT NULL DEFAULT '{}'
);
CREATE TABLE comments (
  id bigint PRIMARY KEY,
  post_id bigint NOT NULL REFERENCES posts,
  user_id integer REFERENCES users,
  body text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO users (id, name, email, mood, tags, settings, balance) VALUES
  (1, 'Ada', 'ada@example.org', 'happy', '{math,poetry}', '{"theme": "dark", "n": 1}', 10.5),
  (2, 'Bob', NULL, 'sad', '{}', '{"theme": "light", "list": [1, 2, 3]}', 0),
  (3, 'Cleo', 'cleo@example.org', NULL, '{history}', '{}', 99.99);
INSERT INTO posts VALUES
  (1, 1, 'Engines', 'Of analysis', NULL, '2024-01-01', 10, '{1,2,3}'),
  (2, 1, 'Notes', NULL, 1, '2024-02-01', 5, '{}'),
  (3, 2, 'Hello', 'World', 2, NULL, 0, '{7}');
INSERT INTO comments (id, post_id, user_id, body) VALUES (1, 1, 2, 'nice'), (2, 1, 3, 'very'), (3, 3, NULL, 'hm');

CREATE SEQUENCE ticket_seq;
CREATE TABLE visits (id integer);
CREATE FUNCTION shout(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)';
CREATE FUNCTION post_count(integer) RETURNS bigint STABLE LANGUAGE sql
  AS 'SELECT count(*) FROM posts WHERE user_id = $1';
CREATE FUNCTION dice(integer) RETURNS integer VOLATILE LANGUAGE sql
  AS 'SELECT 1 + floor(random() * $1)::integer';
CREATE FUNCTION log_visit(integer) RETURNS integer VOLATILE LANGUAGE sql
  AS 'INSERT INTO visits VALUES ($1) RETURNING id';
CREATE FUNCTION next_ticket() RETURNS bigint VOLATILE LANGUAGE sql AS 'SELECT nextval(''ticket_seq'')';
CREATE FUNCTION hidden_next() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT nextval(''ticket_seq'')';
CREATE FUNCTION "Camel"() RETURNS bigint VOLATILE LANGUAGE sql AS 'SELECT nextval(''ticket_seq'')';
CREATE FUNCTION noisy_step(integer, integer) RETURNS integer VOLATILE LANGUAGE sql
  AS 'INSERT INTO visits VALUES ($2) RETURNING $1 + $2';
CREATE AGGREGATE noisy_sum(integer) (sfunc = noisy_step, stype = integer, initcond = '0');
CREATE FUNCTION first_step(anyelement, anyelement) RETURNS anyelement IMMUTABLE STRICT LANGUAGE sql
  AS 'SELECT $1';
CREATE AGGREGATE first(anyelement) (sfunc = first_step, stype = anyelement);
CREATE FUNCTION next(integer) RETURNS bigint VOLATILE LANGUAGE sql AS 'SELECT nextval(''ticket_seq'')';
CREATE SCHEMA app;
CREATE FUNCTION app.timeofday() RETURNS bigint VOLATILE LANGUAGE sql
  AS 'SELECT nextval(''public.ticket_seq'')';
CREATE FUNCTION op_log(integer, integer) RETURNS integer VOLATILE LANGUAGE sql
  AS 'INSERT INTO visits VALUES ($1) RETURNING $2';
CREATE FUNCTION op_plain(text, text) RETURNS boolean IMMUTABLE LANGUAGE sql
  AS 'SELECT lower($1) = lower($2)';
CREATE OPERATOR %%% (leftarg = integer, rightarg = integer, function = op_log);
CREATE OPERATOR |+| (leftarg = integer, rightarg = integer, function = op_log);
CREATE OPERATOR <~~> (leftarg = text, rightarg = text, function = op_plain);

CREATE UNLOGGED TABLE scratch (id integer);
CREATE VIEW active_users AS SELECT id, name FROM users WHERE active;
CREATE VIEW tickets AS SELECT nextval('ticket_seq') AS ticket;
CREATE VIEW more_tickets AS SELECT t.ticket FROM tickets t;
CREATE VIEW scratch_view AS SELECT id FROM scratch;
CREATE DOMAIN counted AS integer CHECK (log_visit(value) > 0);
CREATE TABLE secrets (owner integer);
ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY noted ON secrets USING (log_visit(owner) > 0);
CREATE TABLE diaries (owner integer);
ALTER TABLE diaries ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON diaries USING (owner = current_setting('app.user', true)::integer);

-- What sessions are left with.
CREATE FUNCTION set_tenant(t text) RETURNS void LANGUAGE plpgsql
  AS 'BEGIN PERFORM set_config(''app.tenant'', t, false); END';
CREATE FUNCTION sets_indirectly(t text) RETURNS text STABLE LANGUAGE sql AS 'SELECT set_tenant(t)::text';
CREATE FUNCTION sets_by_text(t text) RETURNS void STABLE LANGUAGE plpgsql
  AS 'BEGIN EXECUTE ''SELECT set_con'' || ''fig(a.b, $1, false)'' USING t; END';
CREATE FUNCTION tenant_step(text, text) RETURNS text LANGUAGE sql AS 'SELECT set_tenant($2)::text';
CREATE AGGREGATE last_tenant(text) (sfunc = tenant_step, stype = text);
CREATE FUNCTION op_tenant(integer, integer) RETURNS boolean STABLE LANGUAGE sql
  AS 'SELECT sets_indirectly(''a'') IS NULL';
CREATE OPERATOR <=!=> (leftarg = integer, rightarg = integer, function = op_tenant);
CREATE VIEW tenants_view AS SELECT sets_indirectly('a') AS tenant;
CREATE TABLE guarded (id integer);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenants ON guarded USING (sets_indirectly('a') IS NULL);
CREATE PROCEDURE set_all() LANGUAGE plpgsql AS 'BEGIN SET app.each = 1; END';
CREATE TABLE audited_parent (id integer PRIMARY KEY);
CREATE TABLE audited (id integer REFERENCES audited_parent ON DELETE CASCADE);
CREATE VIEW audited_view AS SELECT id FROM audited;
CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql
  AS 'BEGIN IF TG_OP = ''INSERT'' THEN SET app.audit = 1; END IF; RETURN NULL; END';
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON audited FOR EACH ROW EXECUTE FUNCTION audit();
CREATE TABLE touched (id integer, at timestamptz);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql
  AS 'BEGIN IF (NEW IS DISTINCT FROM OLD) THEN NEW.at := now(); SET LOCAL app.touched = 1; END IF; RETURN NEW; END';
CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON touched FOR EACH ROW EXECUTE FUNCTION touch();
CREATE PROCEDURE touch_all() LANGUAGE plpgsql AS 'BEGIN UPDATE touched SET at = now(); COMMIT; END';

-- What a standby tells of itself.
CREATE FUNCTION is_standby() RETURNS boolean STABLE LANGUAGE sql AS 'SELECT pg_is_in_recovery()';
CREATE VIEW busy AS SELECT pid FROM pg_stat_activity WHERE state = 'active';
