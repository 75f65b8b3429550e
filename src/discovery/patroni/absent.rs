//! Members that are not listed any more, and stay for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::NodeConfig;

/// Each node that was listed, and when it was listed last.
#[derive(Default)]
pub(super) struct Absent(BTreeMap<String, (NodeConfig, Instant)>);

impl Absent {
    /// Takes the nodes that are listed now. Returns those that were listed no longer ago than `time`.
    pub(super) fn still_there(&mut self, listed: &[NodeConfig], time: Duration) -> Vec<NodeConfig> {
        let now = Instant::now();
        self.0.retain(|_, (_, last)| now - *last < time);
        for node in listed {
            if let Some(name) = &node.name {
                self.0.remove(name);
            }
        }
        let stay = self.0.values().map(|(node, _)| node.clone()).collect();
        for node in listed {
            if let Some(name) = &node.name {
                self.0.insert(name.clone(), (node.clone(), now));
            }
        }
        stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_listed_stays_for_a_while() {
        let node = |name: &str| NodeConfig::new("postgres://a@h/x").name(name);
        let (a, b) = (node("a"), node("b"));
        let mut absent = Absent::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(absent.still_there(&[a.clone(), b.clone()], hour), []);
        assert_eq!(
            absent.still_there(std::slice::from_ref(&a), hour),
            std::slice::from_ref(&b)
        );
        assert_eq!(
            absent.still_there(std::slice::from_ref(&a), hour),
            std::slice::from_ref(&b)
        );
        // It is listed again, with another weight: that counts.
        let heavier = b.clone().weight(5);
        assert_eq!(absent.still_there(&[a.clone(), heavier.clone()], hour), []);
        assert_eq!(
            absent.still_there(std::slice::from_ref(&a), hour),
            [heavier]
        );
        assert_eq!(absent.still_there(&[a], Duration::ZERO), []);
    }
}
