//! Writing connection strings: as a URL for the driver, and masked for people.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::{ConnString, DEFAULT_PORT};
use crate::config::setting;

/// Everything is escaped but what is never special, so that what is written reads well, and the
/// mask.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'*');

/// As [`ESCAPED`], for an IPv6 address within brackets.
const ESCAPED_V6: &AsciiSet = &ESCAPED.remove(b':');

/// What stands for the password, and for what may be a piece of one, wherever a connection string is
/// shown.
const MASK: &str = "***";

/// Parameters that are secrets, besides the password.
const SECRETS: [&str; 4] = [
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
];

impl ConnString {
    /// The same connection string as a URL, with its password.
    pub(crate) fn to_url(&self) -> String {
        let password = self.password.as_deref().map(escape);
        self.render_url(password.as_deref())
    }

    fn render_url(&self, password: Option<&str>) -> String {
        let mut url = "postgres://".to_owned();
        if self.user.is_some() || password.is_some() {
            url.push_str(&escape(self.user.as_deref().unwrap_or_default().as_bytes()));
            if let Some(password) = password {
                url.push(':');
                url.push_str(password);
            }
            url.push('@');
        }
        for (position, host) in self.hosts.iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            let port = self
                .ports
                .get(position)
                .or(self.ports.first())
                .unwrap_or(&DEFAULT_PORT);
            let written = if host.contains(':') {
                format!("[{}]", percent_encode(host.as_bytes(), ESCAPED_V6))
            } else {
                escape(host.as_bytes())
            };
            let _ = write!(url, "{separator}{written}:{port}");
        }
        if let Some(dbname) = &self.dbname {
            let _ = write!(url, "/{}", escape(dbname.as_bytes()));
        }
        for (position, (name, value)) in self.parameters().enumerate() {
            let separator = if position == 0 { '?' } else { '&' };
            let _ = write!(url, "{separator}{name}={}", escape(value.as_bytes()));
        }
        url
    }

    /// What a URL has after the `?`.
    fn parameters(&self) -> impl Iterator<Item = (&str, String)> {
        let hostaddr = Some(self.hostaddrs.join(",")).filter(|joined| !joined.is_empty());
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        // Without hosts there is no other place for the ports.
        let port = Some(ports.join(",")).filter(|ports| self.hosts.is_empty() && !ports.is_empty());
        let params = self
            .params
            .iter()
            .map(|param| (param.name.as_str(), param.value.clone()));
        hostaddr
            .map(|value| ("hostaddr", value))
            .into_iter()
            .chain(port.map(|value| ("port", value)))
            .chain(params)
    }

    fn render_key_value(&self, password: Option<&str>) -> String {
        let own = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        let list = |name, values: Vec<String>| {
            Some((name, values.join(","))).filter(|(_, joined)| !joined.is_empty())
        };
        let ports = self.ports.iter().map(u16::to_string).collect();
        let fields = [
            list("host", self.hosts.clone()),
            list("hostaddr", self.hostaddrs.clone()),
            list("port", ports),
            own("dbname", &self.dbname),
            own("user", &self.user),
            password.map(|password| ("password", password.to_owned())),
        ];
        let params = self
            .params
            .iter()
            .map(|param| (param.name.as_str(), param.value.clone()));
        let pairs = fields.into_iter().flatten().chain(params);
        let words: Vec<String> = pairs
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        words.join(" ")
    }

    /// Fit to be shown. A quote or a separator too many can put the password into another value, so
    /// that of these only plain words are shown.
    fn redacted(mut self) -> String {
        let mask = self.password.as_ref().map(|_| MASK);
        for param in &mut self.params {
            if SECRETS.contains(&&*param.name) {
                MASK.clone_into(&mut param.value);
            }
        }
        let values = self.params.iter_mut().map(|param| &mut param.value);
        for value in values.chain(&mut self.user).chain(&mut self.dbname) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !value.chars().all(plain) {
                MASK.clone_into(value);
            }
        }
        if self.key_value {
            self.render_key_value(mask)
        } else {
            self.render_url(mask)
        }
    }
}

/// `text` fit to be shown: with `***` in place of the password, or nothing but its kind and length
/// if there is any doubt where the password is.
pub(crate) fn redact(text: &str) -> String {
    let known = |parsed: &ConnString| {
        let mut params = parsed.params.iter();
        params.all(|param| setting::known(&param.name).is_some())
    };
    match ConnString::parse(text) {
        Ok(parsed) if known(&parsed) => parsed.redacted(),
        _ => {
            let kind = ["postgres://", "postgresql://"]
                .iter()
                .find(|scheme| text.trim_start().starts_with(**scheme))
                .unwrap_or(&"");
            format!("{kind}… ({} bytes that cannot be read)", text.len())
        }
    }
}

/// Whether what should be a name was meant to be a connection string.
pub(crate) fn is_like_url(name: &str) -> bool {
    let login = |(before, _): (&str, &str)| before.contains(':');
    name.contains("://")
        || name.to_ascii_lowercase().contains("password")
        || name.split_once('@').is_some_and(login)
}

/// A name fit to be shown.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    if is_like_url(name) {
        Cow::Owned(redact(name))
    } else {
        Cow::Borrowed(name)
    }
}

fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, ESCAPED).to_string()
}
