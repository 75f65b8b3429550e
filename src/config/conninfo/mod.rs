//! A standby's `primary_conninfo`: whom it leads to, and the same leading elsewhere.
//!
//! Only the address is written anew. All else stays as it is, to the byte: passwords, quotes, white space. So nothing is
//! lost that this module does not know. It is read as libpq reads it; see
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING>.

use std::fmt;
use std::ops::Range;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::conn_string::{Address, ConnString, DEFAULT_PORT, host_and_port};

/// How a piece of the text is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The value of a `name=value`.
    Value,
    /// `host:port` in a URI, several with commas between.
    Authority,
    /// The value of a parameter in a URI.
    Query,
}

/// What a piece of the text says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Host,
    HostAddr,
    Port,
    /// `target_session_attrs`.
    Wants,
}

/// A piece of the text that tells where it leads.
struct Piece {
    says: Says,
    form: Form,
    range: Range<usize>,
    value: String,
}

/// A standby's `primary_conninfo`. It may hold a password, so it has no `Display`, and its `Debug` shows nothing of it.
pub(crate) struct PrimaryConninfo {
    text: String,
    pieces: Vec<Piece>,
}

impl PrimaryConninfo {
    /// `None` if libpq would not read it either, or may read it otherwise than it was meant.
    pub(crate) fn read(text: String) -> Option<Self> {
        let pieces = match ConnString::after_scheme(&text) {
            Some(rest) => of_uri(&text, text.len() - rest.len())?,
            None => of_key_value(&text)?,
        };
        Some(Self { text, pieces })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// **Secret.**
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Of two, libpq takes the later one. An empty one counts as none.
    fn value(&self, says: Says) -> Option<&str> {
        let mut pieces = self.pieces.iter().rev();
        let last = pieces.find(|piece| piece.says == says);
        let value = last.map(|piece| piece.value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// Where it leads to. Nowhere, if it leaves that to the environment of the server. `None` if it makes no sense.
    pub(crate) fn addresses(&self) -> Option<Vec<Address>> {
        let list = |says| -> Vec<&str> {
            self.value(says)
                .map_or_else(Vec::new, |value| value.split(',').collect())
        };
        let (hosts, addresses, ports) = (list(Says::Host), list(Says::HostAddr), list(Says::Port));
        let count = hosts.len().max(addresses.len());
        let fits = |list: &Vec<&str>| list.is_empty() || list.len() == count;
        if !fits(&hosts) || !fits(&addresses) || !(fits(&ports) || ports.len() == 1) {
            return None;
        }
        let at = |place: usize| {
            let port = ports.get(place).or(ports.first()).copied().unwrap_or("");
            let port = match port.trim() {
                "" => DEFAULT_PORT,
                port => port.parse().ok()?,
            };
            let hostaddr = addresses.get(place).filter(|address| !address.is_empty());
            let host = hosts.get(place).filter(|host| !host.is_empty());
            let host = host.or(hostaddr).copied().unwrap_or("localhost");
            // Whatever else may be a piece of a password, and hosts are shown.
            let plain = |c: char| c.is_alphanumeric() || "-._:%/".contains(c);
            host.chars().all(plain).then(|| Address {
                host: host.to_owned(),
                hostaddr: hostaddr.map(|address| (*address).to_owned()),
                port,
            })
        };
        (0..count).map(at).collect()
    }

    /// Whether a server that follows it looks itself for the one that takes writes.
    pub(crate) fn finds_the_primary(&self) -> bool {
        matches!(self.value(Says::Wants), Some("primary" | "read-write"))
    }

    /// The same leading to this address. `None` if that cannot be read back.
    pub(crate) fn leading_to(&self, address: &Address) -> Option<Self> {
        let mut text = self.text.clone();
        let mut pieces: Vec<&Piece> = self.pieces.iter().collect();
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.range.start));
        for piece in pieces {
            if let Some(value) = written(piece, address) {
                text.replace_range(piece.range.clone(), &value);
            }
        }
        let has = |says| self.pieces.iter().any(|piece| piece.says == says);
        if ConnString::after_scheme(&text).is_none() {
            // At the front: what stands at the end may have a backslash that would reach further.
            if !has(Says::Port) {
                text.insert_str(0, &format!("port={} ", address.port));
            }
            if !has(Says::Host) {
                text.insert_str(0, &format!("host={} ", quoted(&address.host)));
            }
        }
        let changed = Self::read(text)?;
        let leads = changed.addresses()?;
        (leads.len() == 1 && leads[0].host == address.host && leads[0].port == address.port)
            .then_some(changed)
    }
}

impl fmt::Debug for PrimaryConninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrimaryConninfo(***)")
    }
}

/// What the piece has to be for this address; `None` if it stays.
fn written(piece: &Piece, address: &Address) -> Option<String> {
    let ip = || {
        let literal = Some(&address.host).filter(|host| host.parse::<std::net::IpAddr>().is_ok());
        // Without one libpq looks up the name.
        address
            .hostaddr
            .as_ref()
            .or(literal)
            .cloned()
            .unwrap_or_default()
    };
    let value = match (piece.says, piece.form) {
        (Says::Wants, _) => return None,
        (Says::Host, Form::Authority) => return Some(authority(address)),
        // It went with the host.
        (Says::Port, Form::Authority) => return None,
        (Says::Host, _) => address.host.clone(),
        (Says::Port, _) => address.port.to_string(),
        (Says::HostAddr, _) => ip(),
    };
    Some(match piece.form {
        Form::Query => utf8_percent_encode(&value, NON_ALPHANUMERIC).to_string(),
        Form::Value | Form::Authority => quoted(&value),
    })
}

fn authority(address: &Address) -> String {
    let (host, port) = (&address.host, address.port);
    if host.contains(':') {
        return format!("[{host}]:{port}");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match host.chars().all(plain) {
        true => format!("{host}:{port}"),
        false => format!("{}:{port}", utf8_percent_encode(host, NON_ALPHANUMERIC)),
    }
}

/// A value as it stands behind `name=`.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:/%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
    format!("'{escaped}'")
}

fn says(name: &str) -> Option<Says> {
    match name {
        "host" => Some(Says::Host),
        "hostaddr" => Some(Says::HostAddr),
        "port" => Some(Says::Port),
        "target_session_attrs" => Some(Says::Wants),
        _ => None,
    }
}

/// As C's `isspace` has it.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn of_key_value(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let skip = |from: usize| {
        let rest = &text[from..];
        text.len() - rest.trim_start_matches(is_space).len()
    };
    let mut at = skip(0);
    while at < text.len() {
        let end = text[at..].find(|c| c == '=' || is_space(c))? + at;
        let name = &text[at..end];
        let start = skip(skip(end) + usize::from(text[skip(end)..].starts_with('=')));
        if name.is_empty() || !text[skip(end)..].starts_with('=') {
            return None;
        }
        let (value, length) = value(&text[start..])?;
        if let Some(says) = says(name) {
            pieces.push(Piece {
                says,
                form: Form::Value,
                range: start..start + length,
                value,
            });
        }
        at = skip(start + length);
    }
    Some(pieces)
}

/// The value at the start of `text`, and how long it is there.
fn value(text: &str) -> Option<(String, usize)> {
    let quote = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quote));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quote => return Some((value, at + 1)),
            c if !quote && is_space(c) => return Some((value, at)),
            c => value.push(c),
        }
    }
    (!quote).then_some((value, text.len()))
}

fn of_uri(text: &str, start: usize) -> Option<Vec<Piece>> {
    let find = |from: usize, signs: &[char]| {
        let found = text[from..].find(|c| signs.contains(&c));
        found.map_or(text.len(), |place| from + place)
    };
    let login = find(start, &['@', '/']);
    let hosts = match text[login..].starts_with('@') {
        true => login + 1,
        false => start,
    };
    let end = find(hosts, &['/', '?']);
    let list = &text[hosts..end];
    // libpq ends the password at the first `@`. So the rest of a password would be taken for a host.
    if list.contains('@') {
        return None;
    }
    let (names, ports) = hosts_of(list)?;
    let piece = |says, form, range: Range<usize>, value| Piece {
        says,
        form,
        range,
        value,
    };
    let mut pieces = vec![piece(
        Says::Host,
        Form::Authority,
        hosts..end,
        names.join(","),
    )];
    if ports.iter().any(|port| !port.is_empty()) {
        pieces.push(piece(
            Says::Port,
            Form::Authority,
            hosts..hosts,
            ports.join(","),
        ));
    }
    let query = find(end, &['?']);
    let mut at = (query + 1).min(text.len());
    while at < text.len() {
        let stop = find(at, &['&']);
        let (name, value) = text[at..stop].split_once('=')?;
        if let Some(says) = says(&decoded(name)?) {
            let range = stop - value.len()..stop;
            pieces.push(piece(says, Form::Query, range, decoded(value)?));
        }
        at = stop + 1;
    }
    Some(pieces)
}

/// The hosts of a URI, and their ports.
fn hosts_of(list: &str) -> Option<(Vec<String>, Vec<String>)> {
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for chunk in list.split(',') {
        let (host, port) = host_and_port(chunk)?;
        names.push(decoded(host)?);
        ports.push(decoded(port.unwrap_or_default())?);
    }
    Some((names, ports))
}

fn decoded(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests;
