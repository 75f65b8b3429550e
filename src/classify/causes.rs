//! The names of what keeps statements from replicas: functions, views, operators, settings.

use std::collections::HashMap;

use parking_lot::RwLock;

/// How many names are remembered. Applications have few; a text that is made up anew each time may have any.
const NAMES: usize = 1000;

/// Stands for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Cause(u16);

/// The names that were met.
#[derive(Debug, Default)]
pub(super) struct Causes(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    names: Vec<Box<str>>,
    places: HashMap<Box<str>, Cause>,
}

impl Causes {
    /// What stands for the name. `None` if there are too many.
    pub(super) fn of(&self, name: &str) -> Option<Cause> {
        if let Some(cause) = self.0.read().places.get(name) {
            return Some(*cause);
        }
        let mut known = self.0.write();
        if let Some(cause) = known.places.get(name) {
            return Some(*cause);
        }
        let place = known.names.len();
        let cause = Cause(u16::try_from(place).ok().filter(|_| place < NAMES)?);
        known.names.push(name.into());
        known.places.insert(name.into(), cause);
        Some(cause)
    }

    pub(super) fn name(&self, cause: Cause) -> Option<String> {
        let known = self.0.read();
        let name = known.names.get(usize::from(cause.0))?;
        Some(name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_itself_and_there_are_not_too_many() {
        let causes = Causes::default();
        let (one, two) = (causes.of("nextval"), causes.of("setval"));
        assert_ne!(one, two);
        assert_eq!(causes.of("nextval"), one);
        assert_eq!(causes.name(two.unwrap()).as_deref(), Some("setval"));
        let known = (0..2 * NAMES).filter(|number| causes.of(&number.to_string()).is_some());
        assert_eq!(known.count(), NAMES - 2);
    }
}
