//! Reading a configuration from a file: its errors show nothing of what they could not read.
//!
//! Whoever puts a URL in the wrong place must not find its password in a log.

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use super::{Config, NodeConfig};

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What is derived; see `serde(remote = "Self")`.
        Self::deserialize(deserializer).map_err(shown)
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for NodeConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer).map_err(shown)
    }
}

impl Serialize for NodeConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

/// The error without the values that it quotes.
fn shown<E: Error>(error: E) -> E {
    E::custom(without_values(&error.to_string()))
}

/// How serde begins to say what it could not read, and where it goes on with what it would have read.
const UNREADABLE: &[&str] = &[
    "invalid type: ",
    "invalid value: ",
    "unknown field ",
    "unknown variant ",
];
const INSTEAD: &[&str] = &[", expected ", ", there are no "];

/// The text of an error, without anything that stands in the file but names.
fn without_values(text: &str) -> String {
    // Some formats show the line of the file, too.
    let of_the_file = |line: &&str| line.contains(" |") || line.starts_with("TOML parse error");
    let mut lines = text.lines().filter(|line| !of_the_file(line));
    let text = without_place(lines.next().unwrap_or_default());
    for begin in UNREADABLE {
        let Some((before, rest)) = text.split_once(begin) else {
            continue;
        };
        let before = if before.contains(['"', '`']) {
            ""
        } else {
            before
        };
        // A value may contain these words, too; what comes after the last of them is not of the file.
        let places = INSTEAD.iter().filter_map(|words| rest.rfind(words));
        let (read, instead) = rest.split_at(places.max().unwrap_or(rest.len()));
        return format!("{before}{begin}{}{instead}", what(read));
    }
    text.replace(|c: char| c.is_control(), " ")
        .split_inclusive(['"', '`'])
        .enumerate()
        .map(|(at, part)| match at % 2 {
            1 => quoted(part),
            _ => part,
        })
        .collect()
}

/// Of a name itself, of a value only its kind: `string "…"`.
fn what(read: &str) -> &str {
    let name = read
        .strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'));
    match name {
        Some(name) if is_name(name) => read,
        Some(_) => "`…`",
        None => {
            let end = read.find(|c: char| !c.is_ascii_alphabetic() && c != ' ');
            read.get(..end.unwrap_or(read.len()))
                .unwrap_or_default()
                .trim_end()
        }
    }
}

/// What stands between two quotes, and the second one.
fn quoted(part: &str) -> &str {
    let inside = part.trim_end_matches(['"', '`']);
    if is_name(inside) || inside.len() <= 1 {
        part
    } else {
        "…"
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
}

/// `… at line 1 column 7`, which the format tells again.
fn without_place(text: &str) -> &str {
    let place = |rest: &str| {
        let (line, column) = rest.split_once(" column ")?;
        let number = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        (number(line) && number(column)).then_some(())
    };
    match text.rsplit_once(" at line ") {
        Some((before, rest)) if place(rest).is_some() => before,
        _ => text,
    }
}
