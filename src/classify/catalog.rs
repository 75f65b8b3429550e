//! What is known of the database's own functions, relations, types and operators.
//!
//! Only what matters to the classification is kept: which names there are, and what they run.

use std::collections::HashMap;

use super::code::{Code, CodeRow};
use super::does::{Does, Effect};
use super::lists;

/// What the overloads of one name are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties")]
pub(super) struct Function {
    pub(super) built_in: bool,
    pub(super) built_in_volatile: bool,
    pub(super) user: bool,
    /// Callable with one argument, so also as `(x).f`.
    attribute: bool,
    /// What the users' ones do.
    does: Does,
    /// The body of one was read.
    is_read: bool,
    /// A body does something, or could not be read.
    acts: bool,
}

impl Function {
    /// Adds an overload: `b` for a built-in one, `u` for a user's, `a` for a user's that takes one argument;
    /// volatile ones are written large.
    pub(super) fn add(&mut self, sort: char) {
        match sort {
            'b' => self.built_in = true,
            'B' => {
                self.built_in = true;
                self.built_in_volatile = true;
            }
            'u' => self.user = true,
            'a' => {
                self.user = true;
                self.attribute = true;
            }
            // A letter from nowhere must not excuse anything.
            _ => {
                self.user = true;
                self.attribute |= sort != 'U';
                self.does.volatile = true;
            }
        }
    }

    /// What a call of one that is a user's may do, unless a replica may do it too.
    pub(super) fn effect(self) -> Option<Effect> {
        let effect = if self.is_read && !self.acts {
            Effect::Declared
        } else {
            Effect::Code(self.does)
        };
        (self.does != Does::NOTHING).then_some(effect)
    }

    /// The same of `(x).f`.
    pub(super) fn attribute(self) -> Option<Effect> {
        self.effect().filter(|_| self.attribute)
    }

    /// Its code was found to do this. Whether that is news.
    pub(super) fn run(&mut self, does: Does) -> bool {
        let known = std::mem::replace(&mut self.user, true);
        self.acts |= does != Does::NOTHING;
        self.does.add(does) || !known
    }

    /// Its body was read, and found to do this; it `acts` if it does something or changes data.
    pub(super) fn read(&mut self, does: Does, acts: bool) -> bool {
        let known = std::mem::replace(&mut self.is_read, true);
        self.acts |= acts;
        self.run(does) || !known
    }
}

/// What is known of one database.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    functions: HashMap<Box<str>, Function>,
    /// Names of operators that are not built in, and whether they are volatile.
    operators: HashMap<Box<str>, bool>,
    code: Code,
    /// Judged as soon as the user's overrides of functions are at hand.
    rows: Vec<CodeRow>,
}

impl Catalog {
    /// From the rows of [`FUNCTIONS_SQL`](super::FUNCTIONS_SQL), [`OPERATORS_SQL`](super::OPERATORS_SQL) and
    /// [`CODE_SQL`](super::CODE_SQL).
    pub(crate) fn new(
        functions: impl IntoIterator<Item = (String, String)>,
        operators: impl IntoIterator<Item = (String, String)>,
        code: impl IntoIterator<Item = CodeRow>,
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
        catalog.rows = code.into_iter().collect();
        catalog
    }

    pub(super) fn take_rows(&mut self) -> Vec<CodeRow> {
        std::mem::take(&mut self.rows)
    }

    pub(super) fn named(&mut self, name: &str) -> &mut Function {
        self.functions.entry(name.into()).or_default()
    }

    /// What is known of the functions of that name.
    pub(super) fn function(&self, name: &str) -> Function {
        self.functions.get(name).copied().unwrap_or_default()
    }

    /// What is known of the code that statements run without naming it.
    pub(super) fn code(&self) -> &Code {
        &self.code
    }

    pub(super) fn code_mut(&mut self) -> &mut Code {
        &mut self.code
    }

    /// Whether a user's operator of that name is volatile; `None` if there is none.
    fn operator(&self, name: &str) -> Option<bool> {
        self.operators.get(name).copied()
    }
}

/// Whether an operator may have effects; `None` if nothing is known of it.
pub(super) fn operator_is_volatile(catalog: Option<&Catalog>, name: &str) -> Option<bool> {
    let user = catalog.and_then(|catalog| catalog.operator(name));
    let built_in = lists::OPERATORS.binary_search(&name).is_ok();
    user.or(built_in.then_some(false))
}
