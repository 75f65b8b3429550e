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
        for used in names_after(&code(&text), "crate::") {
            if documented.contains_key(used) && used != module && !may_use.contains(used) {
                wrong.push(format!("{}: {module} uses {used}", path.display()));
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
    let documented = fs::read_to_string("src/guide/operations.md").unwrap();
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
                "{}: the event `{name}` is not in src/guide/operations.md",
                path.display()
            );
        }
    }
}

/// The parts of a folder with a `mod.rs`: files, and folders of their own.
fn parts(folder: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut parts = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["mod", "tests"].contains(&name.as_str()) {
            continue;
        }
        let mut files = Vec::new();
        if path.is_dir() {
            sources(&path, &mut files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
        if !files.is_empty() {
            parts.entry(name).or_insert_with(Vec::new).extend(files);
        }
    }
    parts
}

/// The text without its comments.
fn code(text: &str) -> String {
    let lines = text.lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

fn word(text: &str) -> &str {
    let end = text.find(|sign: char| !sign.is_alphanumeric() && sign != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The names that follow `prefix`, also within braces.
fn names_after<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (place, _) in text.match_indices(prefix) {
        let before = &text[..place];
        if before.ends_with("::") || before.ends_with(|sign: char| sign.is_alphanumeric()) {
            continue;
        }
        let rest = &text[place + prefix.len()..];
        match rest.strip_prefix('{') {
            None => names.push(word(rest)),
            Some(list) => names.extend(listed(list)),
        }
    }
    names
}

/// The first names of what stands in a list of imports, up to its brace.
fn listed(list: &str) -> Vec<&str> {
    let (mut names, mut depth, mut starts) = (Vec::new(), 0, true);
    for (at, sign) in list.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts = true,
            _ if starts && !sign.is_whitespace() => {
                names.push(word(&list[at..]));
                starts = false;
            }
            _ => {}
        }
    }
    names
}

/// What of `folder` each of its parts uses, by the names of parts and by what `mod.rs` exports of them.
fn uses(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let parts = parts(folder);
    let exports = fs::read_to_string(folder.join("mod.rs")).unwrap();
    let mut home = BTreeMap::new();
    for name in parts.keys() {
        home.insert(name.clone(), name.clone());
        for prefix in [format!("use {name}::"), format!("use self::{name}::")] {
            for exported in names_after(&exports, &prefix) {
                home.insert(exported.to_owned(), name.clone());
            }
        }
    }
    let module = folder.strip_prefix("src").unwrap().to_str().unwrap();
    let absolute = format!("crate::{}::", module.replace('/', "::"));
    let mut uses = BTreeMap::new();
    for (name, files) in &parts {
        let mut used = BTreeSet::new();
        for file in files {
            let inside = file.strip_prefix(folder).unwrap();
            let is_root = usize::from(file.ends_with("mod.rs"));
            let depth = inside.components().count() - is_root;
            let text = fs::read_to_string(file).unwrap();
            let code = code(text.split("#[cfg(test)]\nmod tests {").next().unwrap());
            for prefix in ["super::".repeat(depth), absolute.clone()] {
                let names = names_after(&code, &prefix).into_iter();
                used.extend(names.filter_map(|name| home.get(name).cloned()));
            }
        }
        used.remove(name);
        uses.insert(name.clone(), used);
    }
    uses
}

/// Parts that can be reached from each other.
fn circles(uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<Vec<&str>> {
    let reached = |from: &str| {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = uses[from].iter().map(String::as_str).collect();
        while let Some(name) = next.pop() {
            if reached.insert(name) {
                next.extend(uses[name].iter().map(String::as_str));
            }
        }
        reached
    };
    let all: BTreeMap<&str, BTreeSet<&str>> = uses
        .keys()
        .map(|name| (name.as_str(), reached(name)))
        .collect();
    let circle = |name: &&str| {
        let others = all[*name]
            .iter()
            .filter(|other| all[**other].contains(*name));
        others.copied().collect::<Vec<_>>()
    };
    all.keys()
        .map(circle)
        .filter(|circle| circle.len() > 1)
        .collect()
}

#[test]
fn the_parts_of_a_folder_use_each_other_one_way() {
    let mut folders = BTreeSet::new();
    for (path, _) in all_sources() {
        if path.starts_with("src") && path.ends_with("mod.rs") {
            folders.insert(path.parent().unwrap().to_owned());
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        for circle in circles(&uses(&folder)) {
            found.push(format!("{}: {}", folder.display(), circle.join(" ")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
