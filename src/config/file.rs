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

/// Formats of files quote strings in double quotes, as Rust writes them, and names in backticks.
fn without_values(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = without_place(text);
    while let Some(at) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(at);
        shown.push_str(before);
        let quote = if quoted.starts_with('"') { '"' } else { '`' };
        let inside = &quoted[1..];
        let end = end_of(inside, quote).unwrap_or(inside.len());
        let value = &inside[..end];
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        shown.push(quote);
        shown.push_str(if quote == '`' && value.chars().all(name) {
            value
        } else {
            "…"
        });
        shown.push(quote);
        rest = inside.get(end + 1..).unwrap_or_default();
    }
    shown.push_str(rest);
    shown
}

/// Where the quotation ends. A value may hold the quote itself: of double ones those count that no backslash
/// stands before, of backticks the last one that could be it.
fn end_of(inside: &str, quote: char) -> Option<usize> {
    if quote == '`' {
        let ends = |at: &usize| {
            let after = inside[at + 1..].chars().next();
            after.is_none_or(|next| matches!(next, ',' | ' ' | ':' | ';' | '.' | '\n' | ')'))
        };
        return inside.match_indices('`').map(|(at, _)| at).find(ends);
    }
    let mut escaped = false;
    inside
        .char_indices()
        .find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        })
        .map(|(at, _)| at)
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
