//! What a source makes sure of before it learns anything of an answer.

use std::collections::BTreeSet;

use super::MOST;
use crate::config::{NodeConfig, PoolConfig, check_replica};

/// The most characters of what came from elsewhere that are shown.
const SHOWN: usize = 200;

/// What came from elsewhere, fit to be shown: within a line, and not too long.
pub(super) fn shown(text: &str) -> String {
    let mut escaped = text.escape_debug();
    let mut shown: String = escaped.by_ref().take(SHOWN).collect();
    if escaped.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Refuses a list that no pool would take.
pub(super) fn check(nodes: &[NodeConfig]) -> Result<(), String> {
    if nodes.len() > MOST {
        return Err(format!("there are {} nodes; at most {MOST}", nodes.len()));
    }
    let mut names = BTreeSet::new();
    for node in nodes {
        let settings = check_replica(node.clone(), &PoolConfig::default());
        let name = settings.map_err(|error| shown(&error.to_string()))?.name;
        let label = shown(&name);
        if !names.insert(name) {
            return Err(format!("there are two nodes named `{label}`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_one_line_and_not_long() {
        assert_eq!(shown("ops"), "ops");
        assert_eq!(shown("x\nWARN forged\u{1b}[0m"), r"x\nWARN forged\u{1b}[0m");
        let long = shown(&"\u{202e}".repeat(900_000));
        assert_eq!(long.chars().count(), SHOWN + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn a_list_that_no_pool_takes_is_refused() {
        let node = |at: usize| NodeConfig::new(format!("postgres://a@h{at}/x"));
        let list: Vec<NodeConfig> = (0..=MOST).map(node).collect();
        assert_eq!(check(&list[..MOST]), Ok(()));
        for (list, why) in [
            (&list[..], "65 nodes"),
            (&[node(1), node(1)], "two nodes named `h1:5432`"),
            (&[node(1).name("")], "empty"),
            (&[NodeConfig::new("postgres://a@h%201/x")], "`host`"),
        ] {
            let cause = check(list).unwrap_err();
            assert!(cause.contains(why), "{cause}");
        }
    }
}
