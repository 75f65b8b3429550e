//! The architecture as `ARCHITECTURE.md` tells it is the architecture of the code.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const LONGEST: usize = 800;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        if Path::new(folder).exists() {
            sources(Path::new(folder), &mut paths);
        }
    }
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// Module → the modules that it may use, from the table.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string("ARCHITECTURE.md").unwrap();
    let ticked = |cell: &str| -> BTreeSet<String> {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let (_, table) = text.split_once("| module | concept | may use |").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut modules = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let name = ticked(cells[1]).into_iter().next().unwrap();
        modules.insert(name, ticked(cells[3]));
    }
    modules
}

#[test]
fn modules_use_only_what_they_may() {
    let documented = documented();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, text) in all_sources() {
        let Ok(inside) = path.strip_prefix("src") else {
            continue;
        };
        let module = inside.iter().next().unwrap().to_str().unwrap().to_owned();
        let Some(may_use) = documented.get(&module) else {
            if module != "lib.rs" {
                wrong.push(format!("{module} is not in ARCHITECTURE.md"));
            }
            continue;
        };
        seen.insert(module.clone());
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for part in line.split("crate::").skip(1) {
                let used: String = part
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if documented.contains_key(&used) && used != module && !may_use.contains(&used) {
                    wrong.push(format!("{}: {module} uses {used}", path.display()));
                }
            }
        }
    }
    let missing: Vec<_> = documented
        .keys()
        .filter(|module| !seen.contains(*module))
        .collect();
    assert!(
        missing.is_empty(),
        "in ARCHITECTURE.md and not in src: {missing:?}"
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_is_not_too_long() {
    let mut wrong = Vec::new();
    for (path, text) in all_sources() {
        let first = text.lines().next().unwrap_or_default();
        if !first.starts_with("//!") && !first.starts_with("#![doc") {
            wrong.push(format!("{}: no first doc line", path.display()));
        }
        let lines = text.lines().count();
        if lines > LONGEST {
            wrong.push(format!("{}: {lines} lines", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_event_is_documented() {
    let documented = fs::read_to_string("ARCHITECTURE.md").unwrap();
    for (path, text) in all_sources() {
        if !path.starts_with("src") {
            continue;
        }
        for event in text.split("target: \"diesel_replicated\"").skip(1) {
            let call = event.split(");").next().unwrap_or_default();
            let name = call.rsplit('"').nth(1).unwrap_or_default();
            let debugged = [", ?", "= ?"].iter().any(|sigil| call.contains(sigil));
            assert!(
                !debugged,
                "{}: a field of `{name}` is Rust's `Debug`",
                path.display()
            );
            assert!(
                documented.contains(&format!("`{name}`")),
                "{}: the event `{name}` is not in ARCHITECTURE.md",
                path.display()
            );
        }
    }
}
