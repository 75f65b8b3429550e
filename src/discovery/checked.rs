//! Which lists may be meant, and how what they say is shown.

use std::collections::BTreeMap;

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

/// The nodes of a list by their names, if it may be meant.
pub(crate) fn check(
    list: &[NodeConfig],
    pool: &PoolConfig,
) -> Result<BTreeMap<String, NodeConfig>, String> {
    if list.is_empty() {
        return Err("the list is empty".to_owned());
    }
    if list.len() > MOST {
        return Err(format!("the list has {} nodes; at most {MOST}", list.len()));
    }
    let mut nodes = BTreeMap::new();
    for node in list {
        let settings = check_replica(node.clone(), pool);
        let name = settings.map_err(|error| shown(&error.to_string()))?.name;
        let label = shown(&name);
        if nodes.insert(name, node.clone()).is_some() {
            return Err(format!("the list has two nodes named `{label}`"));
        }
    }
    Ok(nodes)
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
        let pool = PoolConfig::default();
        assert_eq!(check(&list[..MOST], &pool).unwrap().len(), MOST);
        for (list, why) in [
            (&list[..], "65 nodes"),
            (&[node(1), node(1)], "two nodes named `h1:5432`"),
            (&[node(1).name("")], "empty"),
            (&[NodeConfig::new("postgres://a@h%201/x")], "`host`"),
        ] {
            let cause = check(list, &pool).unwrap_err();
            assert!(cause.contains(why), "{cause}");
        }
    }
}
