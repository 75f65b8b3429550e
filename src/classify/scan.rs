//! Finds in a statement what a replica must not be given.
//!
//! It works on the tokens, not on a tree. Every effect of a query shows in its tokens: a key word that changes or
//! locks, a name that is called, a relation, an operator. A name before a parenthesis counts as called unless its
//! place rules that out. So does a name after a dot, as the server reads `(x).f` as `f(x)`. It may find too much, but
//! not too little.

use super::catalog::{self, Catalog};
use super::does::{Does, Effect};
use super::functions::Functions;
use super::leaves::Leaves;
use super::lists::{
    KEYWORDS, OF_SERVER_PREFIXES, SETTINGS_OF_SERVER, SOFT_KEYWORDS, VIEWS_OF_SERVER,
};
use super::tokens::{TokenKind, Tokens};

/// Key words after which `name(` is no call: an alias or a common table expression and its
/// columns, a type with its modifiers, or `FIRST (…) ROWS`.
const NAMING: &[&str] = &["as", "with", "recursive", "ordinality", "fetch"];

/// What names mean.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) functions: &'a Functions,
    pub(super) catalog: Option<&'a Catalog>,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent findings")]
pub(super) struct Findings {
    /// Data are changed.
    pub(super) write: bool,
    /// `SELECT … INTO` makes a table.
    pub(super) into: bool,
    /// Temporary objects are made or named.
    pub(super) temporary: bool,
    /// Rows are locked.
    pub(super) locking: bool,
    /// The server is asked about itself.
    pub(super) of_server: bool,
    /// Something is called that may have effects.
    pub(super) volatile: bool,
    /// The first token that calls a function which has effects only by its declaration.
    pub(super) declared: Option<u32>,
    /// An advisory lock is taken until the transaction ends.
    pub(super) locks: bool,
    /// Code is run that may leave anything in the session.
    pub(super) anything: bool,
    /// It may leave something that no command undoes.
    pub(super) indelible: bool,
    /// What the named relations run if they are written.
    pub(super) written: Does,
    /// What the named relations run if a value of their row type is made without a write.
    made: Does,
    /// A row value is made or converted, and no word names its type.
    converts: bool,
    /// A setting is changed.
    pub(super) setting: bool,
    /// The rest of the session depends on this.
    pub(super) session: bool,
    /// Something unknown is used.
    pub(super) unknown: bool,
    /// The tokens that were found first.
    pub(super) first: First,
}

/// The first token with which each of these was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct First {
    pub(super) volatile: Option<usize>,
    pub(super) unknown: Option<usize>,
    pub(super) setting: Option<usize>,
    pub(super) of_server: Option<usize>,
}

impl Findings {
    /// Whether a query with these findings is known to be safe on a replica.
    pub(super) fn is_plain(self) -> bool {
        let Self {
            written,
            made,
            first,
            ..
        } = self;
        self.declared.is_none()
            && self
                == Self {
                    written,
                    made,
                    first,
                    ..Self::default()
                }
    }

    /// Notes the token at `at` for what was not found before it.
    fn note(&mut self, before: Self, at: usize) {
        let is_volatile = |it: &Self| it.volatile || it.anything || it.declared.is_some();
        let found = |was: bool, is: bool| (is && !was).then_some(at);
        let volatile = found(is_volatile(&before), is_volatile(self));
        let first = &mut self.first;
        first.unknown = first.unknown.or(found(before.unknown, self.unknown));
        first.setting = first.setting.or(found(before.setting, self.setting));
        first.of_server = first.of_server.or(found(before.of_server, self.of_server));
        first.volatile = first.volatile.or(volatile);
    }

    /// Whether it would be safe, but for the declaration of a function.
    pub(super) fn is_plain_but_declared(self) -> bool {
        let declared = None;
        self.declared.is_some() && Self { declared, ..self }.is_plain()
    }

    /// What a query or an expression with these findings does.
    pub(super) fn does(&self) -> Does {
        let of_server = false;
        Does {
            volatile: !Self { of_server, ..*self }.is_plain(),
            ..self.does_as_body()
        }
    }

    /// What a function with such a body does, whatever it was declared. The server lets only a volatile function
    /// write.
    pub(super) fn does_as_body(&self) -> Does {
        Does {
            of_server: self.of_server,
            volatile: self.volatile
                || self.declared.is_some()
                || self.anything
                || self.setting
                || self.temporary,
            leaves: self.leaves() > Leaves::Nothing,
            indelible: self.is_indelible(),
            locks: self.locks,
        }
    }

    /// Whether no command undoes what it leaves.
    pub(super) fn is_indelible(self) -> bool {
        self.indelible || self.write && self.written.indelible
    }

    /// The findings of code that cannot be read.
    pub(super) fn anything() -> Self {
        Self {
            volatile: true,
            anything: true,
            indelible: true,
            ..Self::default()
        }
    }

    /// What it leaves in the session. An unknown function may leave something.
    pub(super) fn leaves(self) -> Leaves {
        if self.session || self.temporary && self.into {
            Leaves::State
        } else if self.anything || self.unknown || self.write && self.written.leaves {
            Leaves::Unknown
        } else {
            Leaves::Nothing
        }
    }

    /// Adds what some code does that is run.
    pub(super) fn add(&mut self, does: Does) {
        self.of_server |= does.of_server;
        self.volatile |= does.volatile;
        self.anything |= does.leaves;
        self.indelible |= does.indelible;
        self.locks |= does.locks;
    }

    fn effect(&mut self, effect: Effect, at: usize, local: bool) {
        match effect {
            Effect::Harmless => {}
            Effect::Server => self.of_server = true,
            Effect::Declared => self.declared = self.declared.or(u32::try_from(at).ok()),
            Effect::Volatile => self.volatile = true,
            Effect::Lock => {
                self.volatile = true;
                self.locks = true;
            }
            Effect::Indelible => {
                self.volatile = true;
                self.session = true;
                self.indelible = true;
            }
            Effect::Code(does) => self.add(does),
            Effect::Setting => {
                self.setting = true;
                self.session |= !local;
            }
            Effect::SessionLock => {
                self.volatile = true;
                self.session = true;
            }
            Effect::Unknown => self.unknown = true,
        }
    }
}

/// Looks through all tokens of one statement.
pub(super) fn scan(tokens: Tokens<'_>, known: Names<'_>) -> Findings {
    let scan = Scan {
        tokens,
        known,
        partners: partners(tokens),
    };
    let mut found = Findings::default();
    for at in 0..tokens.len() {
        let before = found;
        match tokens.kind(at) {
            Some(TokenKind::Word) => {
                scan.key_word(at, &mut found);
                scan.identifier(at, &mut found);
            }
            Some(TokenKind::Quoted) => scan.identifier(at, &mut found),
            Some(TokenKind::Operator) => scan.operator(at, &mut found),
            _ => {}
        }
        found.note(before, at);
    }
    if found.converts {
        found.add(found.made);
    }
    if let Some(code) = known.catalog.map(Catalog::code) {
        found.add(code.anywhere());
        if found.into {
            found.add(code.events());
        }
    }
    found
}

/// The partner of each parenthesis.
fn partners(tokens: Tokens<'_>) -> Vec<u32> {
    let mut partners = vec![u32::MAX; tokens.len()];
    let mut open = Vec::new();
    for at in 0..tokens.len() {
        if tokens.is(at, "(") {
            open.push(at);
        } else if tokens.is(at, ")") {
            if let Some(opener) = open.pop() {
                for (from, to) in [(at, opener), (opener, at)] {
                    if let (Some(partner), Ok(to)) = (partners.get_mut(from), u32::try_from(to)) {
                        *partner = to;
                    }
                }
            }
        }
    }
    partners
}

fn is_keyword(tokens: Tokens<'_>, at: usize) -> bool {
    tokens.kind(at) == Some(TokenKind::Word)
        && tokens
            .name(at)
            .is_some_and(|name| KEYWORDS.binary_search(&&*name).is_ok())
}

struct Scan<'a> {
    tokens: Tokens<'a>,
    known: Names<'a>,
    partners: Vec<u32>,
}

impl Scan<'_> {
    fn partner(&self, at: usize) -> Option<usize> {
        let partner = *self.partners.get(at)?;
        (partner != u32::MAX).then_some(partner as usize)
    }

    fn before(&self, at: usize) -> Option<usize> {
        at.checked_sub(1)
    }

    fn is_before(&self, at: usize, punctuation: &str) -> bool {
        self.before(at)
            .is_some_and(|at| self.tokens.is(at, punctuation))
    }

    /// Key words that change or lock, wherever they are. After a dot or `AS` a word is the name of a column.
    fn key_word(&self, at: usize, found: &mut Findings) {
        let tokens = self.tokens;
        let name =
            self.is_before(at, ".") || self.before(at).is_some_and(|at| tokens.is_word(at, "as"));
        if name {
            return;
        }
        if tokens.is_any(at, &["insert", "update", "delete", "merge"]) {
            let locking = self
                .before(at)
                .is_some_and(|at| tokens.is_any(at, &["for", "key"]));
            if locking {
                found.locking = true;
            } else {
                found.write = true;
            }
        } else if tokens.is_word(at, "for")
            && tokens.is_any(at + 1, &["update", "no", "share", "key"])
        {
            found.locking = true;
        } else if tokens.is_word(at, "into") {
            found.into = true;
            found.temporary |= tokens.is_any(at + 1, &["temp", "temporary", "local", "global"]);
        }
    }

    fn identifier(&self, at: usize, found: &mut Findings) {
        let tokens = self.tokens;
        let Some(name) = tokens.name(at) else {
            return;
        };
        if name.starts_with("pg_temp") && (name.len() == 7 || name.as_bytes().get(7) == Some(&b'_'))
        {
            found.temporary = true;
        }
        found.of_server |= VIEWS_OF_SERVER.binary_search(&&*name).is_ok()
            || OF_SERVER_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix));
        // A write to it is `SET`.
        found.written.leaves |= name == "pg_settings";
        let code = self.known.catalog.map(Catalog::code);
        if let Some(runs) = code.and_then(|code| code.runs(&name)) {
            found.add(runs.named);
            found.written.add(runs.written);
            found.made.add(runs.made);
            found.converts |= self.is_type(at);
        }
        found.converts |= name.ends_with("populate_record") || name.ends_with("populate_recordset");
        found.converts |= tokens.is_any(at, &["type", "rowtype"]) && self.is_before(at, "%");
        if is_keyword(tokens, at) && !self.is_before(at, ".") {
            return;
        }
        if tokens.is(at + 1, "(") {
            self.call(at, &name, found);
        } else if self.is_before(at, ".") {
            let effect = self.known.functions.attribute(self.known.catalog, &name);
            found.effect(effect, at, false);
        }
    }

    fn call(&self, at: usize, name: &str, found: &mut Findings) {
        let Names { functions, catalog } = self.known;
        let schema = self.schema(at);
        let start = if schema.is_some() {
            at.saturating_sub(2)
        } else {
            at
        };
        if schema.is_none() && self.tokens.kind(at) == Some(TokenKind::Word) {
            if let Some(effect) = functions.soft_keyword(catalog, name) {
                found.effect(effect, at, false);
                return;
            }
        }
        let mut effect = functions.call(catalog, schema.as_deref(), name);
        if name == "current_setting" && self.is_setting_of_server(at + 2) {
            effect = Effect::Server;
        }
        if effect == Effect::Unknown && self.is_no_call(start, at) {
            effect = Effect::Harmless;
        }
        found.effect(effect, at, effect == Effect::Setting && self.is_local(at));
    }

    /// Whether the name stands where a type would: after `::`, `AS` or a declared name, or before a literal.
    fn is_type(&self, at: usize) -> bool {
        let tokens = self.tokens;
        let start = if self.is_before(at, ".") {
            at.saturating_sub(2)
        } else {
            at
        };
        let declared = self.before(start).is_some_and(|before| {
            tokens.is(before, "::") || tokens.is_word(before, "as") || self.is_name(before)
        });
        declared || tokens.kind(at + 1) == Some(TokenKind::Text) || tokens.is(at + 1, "(")
    }

    /// The schema that the name at `at` is qualified with.
    fn schema(&self, at: usize) -> Option<std::borrow::Cow<'_, str>> {
        if self.is_before(at, ".") {
            // `(x).f(y)` is not SQL; an empty schema makes it an unknown function.
            Some(
                at.checked_sub(2)
                    .and_then(|at| self.tokens.name(at))
                    .unwrap_or_default(),
            )
        } else {
            None
        }
    }

    /// Whether `name(` at `at`, with its schema from `start`, is a list of columns after an alias, or a type with its
    /// modifiers.
    fn is_no_call(&self, start: usize, at: usize) -> bool {
        let tokens = self.tokens;
        let Some(before) = self.before(start) else {
            return tokens.is_any(at, &["copy", "vacuum", "analyze", "analyse", "explain"]);
        };
        if tokens.is(before, "::") || tokens.is_any(before, NAMING) || self.is_target(before, at) {
            return true;
        }
        match tokens.kind(before) {
            // `FROM t name (a, b)`
            Some(TokenKind::Quoted) => true,
            Some(TokenKind::Word) => self.is_relation(before),
            Some(TokenKind::Punctuation) if tokens.is(before, ")") => self
                .partner(before)
                .and_then(|opener| self.before(opener))
                .is_some_and(|at| self.takes_alias(at)),
            Some(TokenKind::Punctuation) if tokens.is(before, ",") => self.is_common_table(at),
            _ => false,
        }
    }

    /// `INSERT INTO t (a)`, `COPY t (a)`, `ON CONFLICT (a)`, `SET (a, b) = …`, `THEN INSERT (a)`
    fn is_target(&self, before: usize, at: usize) -> bool {
        let tokens = self.tokens;
        tokens.is_any(before, &["into", "copy"])
            || tokens.is_word(at, "conflict") && tokens.is_word(before, "on")
            || tokens.is_word(at, "insert") && tokens.is_word(before, "then")
            || tokens.is_word(at, "set") && self.is_name(before)
    }

    /// Whether the word stands where a relation (or a column's name before its type) does.
    fn is_relation(&self, at: usize) -> bool {
        let before = self.before(at).filter(|_| self.is_name(at));
        before.is_some_and(|before| {
            self.tokens.is(before, ".")
                || self.tokens.is(before, ",")
                || self.tokens.is_any(before, &["from", "join"])
        })
    }

    /// Whether what follows in parentheses after `at` can be named without `AS`, as in
    /// `FROM (…) name (a, b)` and `FROM f(…) name (a, b)`. In `DISTINCT ON (…) name(…)` and
    /// `a OPERATOR(s.+) name(…)` the name is that of a function.
    fn takes_alias(&self, at: usize) -> bool {
        let tokens = self.tokens;
        tokens.is(at, ",") || tokens.is_any(at, &["from", "join", "lateral"]) || self.is_name(at)
    }

    /// Whether the token is a name, and no key word after which an expression could begin.
    fn is_name(&self, at: usize) -> bool {
        let tokens = self.tokens;
        tokens.kind(at) == Some(TokenKind::Quoted)
            || tokens.kind(at) == Some(TokenKind::Word)
                && !is_keyword(tokens, at)
                && !tokens.is_any(at, SOFT_KEYWORDS)
    }

    /// `WITH a AS (…), name (x, y) AS (SELECT …)`
    fn is_common_table(&self, at: usize) -> bool {
        let tokens = self.tokens;
        let Some(close) = self.partner(at + 1) else {
            return false;
        };
        if !tokens.is_word(close + 1, "as") {
            return false;
        }
        let mut query = close + 2;
        while tokens.is_any(query, &["not", "materialized"]) {
            query += 1;
        }
        tokens.is(query, "(") && tokens.is_any(query + 1, &["select", "with", "table"])
    }

    /// `'transaction_read_only'`
    fn is_setting_of_server(&self, at: usize) -> bool {
        let name = self.tokens.string(at).unwrap_or_default();
        SETTINGS_OF_SERVER.contains(&&*name.to_ascii_lowercase())
    }

    /// `set_config('…', '…', true)`
    fn is_local(&self, at: usize) -> bool {
        let value = self.partner(at + 1).and_then(|close| self.before(close));
        value.is_some_and(|value| self.tokens.is_word(value, "true") && self.is_before(value, ","))
    }

    fn operator(&self, at: usize, found: &mut Findings) {
        let name = self.tokens.raw(at);
        if let Some(code) = self.known.catalog.map(Catalog::code) {
            found.add(code.operator(name));
        }
        // `row #= hstore` makes a row.
        found.converts |= name == "#=";
        match catalog::operator_is_volatile(self.known.catalog, name) {
            Some(false) => {}
            Some(true) => found.volatile = true,
            None => found.unknown = true,
        }
    }
}
