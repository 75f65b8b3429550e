//! Members that are not listed any more, and stay for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::NodeConfig;
use crate::discovery::MOST;

/// Each node that was listed, and when it was listed last: as many as a list may have.
#[derive(Default)]
pub(super) struct Absent(BTreeMap<String, (NodeConfig, Instant)>);

impl Absent {
    /// Takes the nodes that are listed now. Returns those that were listed no longer ago than `time`: the latest, as many
    /// as there is room for.
    pub(super) fn still_there(&mut self, listed: &[NodeConfig], time: Duration) -> Vec<NodeConfig> {
        let now = Instant::now();
        self.0.retain(|_, (_, last)| now - *last < time);
        for node in listed {
            if let Some(name) = &node.name {
                self.0.remove(name);
            }
        }
        let mut absent: Vec<_> = std::mem::take(&mut self.0).into_iter().collect();
        absent.sort_by_key(|(_, (_, last))| std::cmp::Reverse(*last));
        absent.truncate(MOST.saturating_sub(listed.len()));
        let stay = absent.iter().map(|(_, (node, _))| node.clone()).collect();
        self.0.extend(absent);
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

    #[test]
    fn they_are_never_more_than_a_list_may_have() {
        let of = |list: u32, len: usize| -> Vec<NodeConfig> {
            let name = |at| format!("n{list}-{at}");
            (0..len)
                .map(|at| NodeConfig::new("postgres://a@h/x").name(name(at)))
                .collect()
        };
        let hour = Duration::from_secs(3600);
        let mut absent = Absent::default();
        for list in 0..100 {
            let listed = of(list, 40);
            let stay = absent.still_there(&listed, hour);
            assert_eq!(stay.len(), if list == 0 { 0 } else { 24 });
            assert_eq!(absent.0.len(), 40 + stay.len());
        }
        assert_eq!(absent.still_there(&of(200, MOST), hour), []);
    }
}
