//! What names of the catalog stand for runs: the functions behind relations, types, operators and commands.
//!
//! A name stands for all schemas, because the search path is not known here.

use std::collections::HashMap;

use super::does::Does;

/// What a name runs, by what is done with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// A relation is read, or a type is named.
    pub(super) named: Does,
    /// A relation is written.
    pub(super) written: Does,
    /// A value of the type, or a row of the relation, is made.
    pub(super) made: Does,
    /// A value of the type is compared or converted. No word need show that.
    pub(super) held: Does,
}

impl Runs {
    fn named(does: Does) -> Self {
        Self {
            named: does,
            ..Self::default()
        }
    }
}

/// What a row of [`CODE_SQL`](super::queries::CODE_SQL) says of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An unlogged table, or an ancestor of one: no standby has its rows.
    Unlogged,
    /// A sequence: a standby knows what was drawn for stock, not what was given out.
    Sequence,
    /// The body of a function and its default arguments, or the functions of an aggregate.
    Function,
    /// A function that cannot be read.
    Opaque,
    /// The function of an operator.
    Operator,
    /// What reading a relation runs: a view's query, policies.
    Read,
    /// What writing to a relation runs: defaults, constraints, policies, indexes, the key of its partitions.
    /// Maintenance runs it too.
    Written,
    /// What else writing to a relation runs: triggers and rules.
    Fired,
    /// What making a value of a type runs: a domain's constraints and default.
    Made,
    /// What comparing or converting a value of a type runs: casts, operators, operator classes.
    Held,
    /// What only maintenance runs: queries of materialized views, expressions of statistics.
    Kept,
    /// Writing to the relation writes to this one as well.
    Child,
    /// The relation has a column of this type.
    Column,
    /// The type contains this one.
    Part,
    /// The function takes or returns this type.
    Argument,
    /// The function of an event trigger.
    Event,
    /// What any statement may run.
    Anywhere,
}

impl Kind {
    /// By the word in the row.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "unlogged" => Self::Unlogged,
            "sequence" => Self::Sequence,
            "function" => Self::Function,
            "opaque" => Self::Opaque,
            "operator" => Self::Operator,
            "read" => Self::Read,
            "written" => Self::Written,
            "fired" => Self::Fired,
            "made" => Self::Made,
            "held" => Self::Held,
            "kept" => Self::Kept,
            "child" => Self::Child,
            "column" => Self::Column,
            "part" => Self::Part,
            "argument" => Self::Argument,
            "event" => Self::Event,
            "anywhere" => Self::Anywhere,
            _ => return None,
        })
    }

    /// Whether the definition is the name of something whose code is run along.
    pub(super) fn is_tie(self) -> bool {
        matches!(
            self,
            Self::Child | Self::Column | Self::Part | Self::Argument
        )
    }
}

/// A row of [`CODE_SQL`](super::queries::CODE_SQL).
#[derive(Clone, Debug)]
pub(crate) struct CodeRow {
    /// The name of the relation, type, function or operator.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The text to judge, or another name.
    pub(crate) definition: String,
}

/// What is known to run code that may do something.
#[derive(Debug, Default)]
pub(super) struct Code {
    names: HashMap<Box<str>, Runs>,
    operators: HashMap<Box<str>, Does>,
    /// What any change of the catalog runs.
    events: Does,
    /// What maintenance runs, which need not name what it works on.
    upkeep: Does,
    /// What a trigger or a rule runs, of whichever relation.
    fired: Does,
    anywhere: Does,
}

impl Code {
    /// What the name runs, unless that is nothing.
    pub(super) fn runs(&self, name: &str) -> Option<&Runs> {
        self.names.get(name)
    }

    /// What the operators of that name do.
    pub(super) fn operator(&self, name: &str) -> Does {
        self.operators.get(name).copied().unwrap_or_default()
    }

    /// What a command may run that changes the catalog or maintains relations.
    pub(super) fn of_commands(&self) -> Does {
        let mut does = self.events;
        does.add(self.upkeep);
        does
    }

    /// What emptying relations may run that are not named.
    pub(super) fn fired(&self) -> Does {
        self.fired
    }

    /// What a query may run that makes a table.
    pub(super) fn events(&self) -> Does {
        self.events
    }

    /// What any statement may run.
    pub(super) fn anywhere(&self) -> Does {
        self.anywhere
    }

    /// Takes over what a definition was found to do, and what the relations that it names run if they are written.
    /// Whether that is news.
    pub(super) fn found(&mut self, row: &CodeRow, does: Does, written: Does) -> bool {
        let mut news = Runs::default();
        let mut elsewhere = false;
        match row.kind {
            // Whoever maintains these needs no care.
            Kind::Unlogged => return self.add(&row.name, &Runs::named(Does::VOLATILE)),
            Kind::Sequence => return self.add(&row.name, &Runs::named(Does::OF_SERVER)),
            Kind::Operator => {
                let place = self.operators.entry(row.name.as_str().into()).or_default();
                return place.add(does);
            }
            Kind::Event => return self.events.add(does),
            // A server that takes no writes refuses them by itself: no reason to read elsewhere.
            Kind::Anywhere => {
                return self.anywhere.add(Does {
                    volatile: false,
                    ..does
                });
            }
            Kind::Read => {
                news.named = does;
                // Who writes to a view writes to its tables.
                news.written = written;
            }
            Kind::Written => news.written = does,
            Kind::Fired => {
                news.written = does;
                elsewhere = self.fired.add(does);
            }
            Kind::Made => {
                news.named = does;
                news.made = does;
            }
            Kind::Held => {
                news.named = does;
                news.held = does;
            }
            Kind::Kept => {}
            Kind::Function
            | Kind::Opaque
            | Kind::Child
            | Kind::Column
            | Kind::Part
            | Kind::Argument => return false,
        }
        if !matches!(row.kind, Kind::Read | Kind::Fired) {
            elsewhere = self.upkeep.add(does);
        }
        self.add(&row.name, &news) || elsewhere
    }

    /// Takes over what another name runs. Whether that is news.
    pub(super) fn tied(&mut self, row: &CodeRow) -> bool {
        let Some(other) = self.names.get(row.definition.as_str()).copied() else {
            return false;
        };
        let mut news = Runs::default();
        let of_values = {
            let mut does = other.made;
            does.add(other.held);
            does
        };
        match row.kind {
            Kind::Child => news.written = other.written,
            Kind::Column => {
                news.named = other.held;
                news.written = of_values;
                news.made = of_values;
                news.held = other.held;
            }
            Kind::Part => {
                news.named = of_values;
                news.made = of_values;
                news.held = other.held;
            }
            _ => return false,
        }
        self.add(&row.name, &news)
    }

    fn add(&mut self, name: &str, news: &Runs) -> bool {
        if *news == Runs::default() {
            return false;
        }
        let runs = self.names.entry(name.into()).or_default();
        let mut changed = runs.named.add(news.named);
        changed |= runs.written.add(news.written);
        changed |= runs.made.add(news.made);
        changed |= runs.held.add(news.held);
        changed
    }
}
