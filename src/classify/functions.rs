//! What calling a function by a given name may do.

use super::catalog::{Catalog, Function};
use super::does::{Does, Effect};
use super::lexer;
use super::lists::{
    EXCUSED, HARMFUL, INDELIBLE, LOCKS, OF_SERVER, RUNS_SQL, SESSION_LOCKS, SESSION_SETTINGS,
    SOFT_KEYWORDS, WELL_KNOWN,
};
use super::tokens::Tokens;
use crate::config::FunctionConfig;

/// A name, perhaps with its schema, folded as the server folds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    schema: Option<String>,
    function: String,
}

impl Name {
    /// Reads `f`, `s.f`, `"F"`; a text of another form names nothing.
    fn parse(text: &str) -> Option<Self> {
        let tokens = lexer::tokens(text).ok()?;
        let tokens = Tokens::new(text, &tokens);
        let (schema, at) = match tokens.len() {
            1 => (None, 0),
            3 if tokens.is(1, ".") => (Some(tokens.name(0)?.into_owned()), 2),
            _ => return None,
        };
        let function = tokens.name(at)?.into_owned();
        Some(Self { schema, function })
    }
}

/// The judgement of functions: the user's overrides, then the catalog, then the built-in lists.
#[derive(Debug, Default)]
pub(super) struct Functions {
    allow: Vec<Name>,
    deny: Vec<Name>,
}

fn listed(list: &[&str], name: &str) -> bool {
    list.binary_search(&name).is_ok()
}

impl Functions {
    pub(super) fn new(overrides: &FunctionConfig) -> Self {
        let names = |texts: &[String]| texts.iter().filter_map(|text| Name::parse(text)).collect();
        Self {
            allow: names(&overrides.allow),
            deny: names(&overrides.deny),
        }
    }

    /// The verdict on the name that holds whatever the catalog knows.
    fn overridden(&self, schema: Option<&str>, name: &str) -> Option<Effect> {
        let denied = |entry: &Name| {
            entry.function == name
                && match (entry.schema.as_deref(), schema) {
                    (Some(entry), Some(schema)) => entry == schema,
                    _ => true,
                }
        };
        let allowed = |entry: &Name| {
            entry.function == name && (entry.schema.is_none() || entry.schema.as_deref() == schema)
        };
        if self.deny.iter().any(denied) {
            Some(Effect::Volatile)
        } else if self.allow.iter().any(allowed) {
            Some(Effect::Harmless)
        } else {
            None
        }
    }

    /// What is said of the name by the lists of what must not run on a standby.
    fn listed(name: &str) -> Option<Effect> {
        if listed(SESSION_SETTINGS, name) {
            Some(Effect::Setting)
        } else if listed(SESSION_LOCKS, name) {
            Some(Effect::SessionLock)
        } else if listed(INDELIBLE, name) {
            Some(Effect::Indelible)
        } else if listed(LOCKS, name) {
            Some(Effect::Lock)
        } else if listed(RUNS_SQL, name) {
            Some(Effect::Code(Does {
                leaves: true,
                ..Does::VOLATILE
            }))
        } else if listed(OF_SERVER, name) {
            Some(Effect::Server)
        } else if listed(HARMFUL, name) {
            Some(Effect::Volatile)
        } else {
            None
        }
    }

    /// What a call `schema.name(…)` or `name(…)` may do.
    pub(super) fn call(
        &self,
        catalog: Option<&Catalog>,
        schema: Option<&str>,
        name: &str,
    ) -> Effect {
        match self.overridden(schema, name) {
            // A denied function may also leave something in the session.
            Some(Effect::Volatile) => {
                let known = Self::listed(name).or_else(|| catalog?.function(name).effect());
                let known = known.filter(|effect| *effect != Effect::Declared);
                return known.unwrap_or(Effect::Volatile);
            }
            Some(effect) => return effect,
            None => {}
        }
        if let Some(effect) = Self::listed(name) {
            return effect;
        }
        let built_in = matches!(schema, None | Some("pg_catalog"));
        let Some(catalog) = catalog else {
            let known = listed(WELL_KNOWN, name) || listed(EXCUSED, name);
            return if built_in && known {
                Effect::Harmless
            } else {
                Effect::Unknown
            };
        };
        let function = catalog.function(name);
        let candidates = match schema {
            None => function.built_in || function.user,
            Some("pg_catalog") => function.built_in,
            Some(_) => function.user,
        };
        if !candidates {
            return Effect::Unknown;
        }
        if let Some(effect) = function.effect().filter(|_| schema != Some("pg_catalog")) {
            return effect;
        }
        if built_in && function.built_in_volatile && !listed(EXCUSED, name) {
            return Effect::Volatile;
        }
        Effect::Harmless
    }

    /// What `name(` may do where the name is one of [`SOFT_KEYWORDS`]: nothing, unless a
    /// function of that name is known to.
    pub(super) fn soft_keyword(&self, catalog: Option<&Catalog>, name: &str) -> Option<Effect> {
        listed(SOFT_KEYWORDS, name).then(|| {
            self.overridden(None, name).unwrap_or_else(|| {
                let function = catalog.map(|catalog| catalog.function(name));
                function
                    .and_then(Function::effect)
                    .unwrap_or(Effect::Harmless)
            })
        })
    }

    /// What `(x).name` may do: the server reads it as `name(x)` where no column has that name.
    pub(super) fn attribute(&self, catalog: Option<&Catalog>, name: &str) -> Effect {
        if let Some(effect) = self.overridden(None, name) {
            return effect;
        }
        Self::listed(name)
            .or_else(|| catalog?.function(name).attribute())
            .unwrap_or(Effect::Harmless)
    }
}
