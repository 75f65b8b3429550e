//! Reading libpq's connection strings, both forms, without ever telling a password.
//!
//! `tokio-postgres` reads them, too. But it takes `postgres://u:p@ss@h/db` for the host `ss@h`: half of the password
//! would end up in names and errors. This module refuses such strings. It writes what it accepts anew, fully escaped,
//! before `tokio-postgres` sees it. The password never passes through that parser.

mod render;

use std::fmt;

use percent_encoding::percent_decode_str;
pub(crate) use render::{is_like_url, redact, shown};

use super::setting;
use crate::config::UrlProblem;

/// Of a server for which no port is named.
pub(crate) const DEFAULT_PORT: u16 = 5432;

/// One `name=value`, decoded.
#[derive(Clone)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) value: String,
    /// Whether it may be a piece of a badly escaped password, so that it must not be shown.
    pub(crate) tainted: bool,
    /// The environment variable that it comes from.
    pub(crate) variable: Option<&'static str>,
}

impl Param {
    pub(crate) fn new(name: String, value: String) -> Self {
        Self {
            name,
            value,
            tainted: false,
            variable: None,
        }
    }
}

/// Where one server is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// The name, the IP address or the directory of the Unix socket.
    pub(crate) host: String,
    /// The IP address to connect to, instead of resolving `host`.
    pub(crate) hostaddr: Option<String>,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A connection string taken apart. Has no `Debug`, because it holds the password.
#[derive(Clone, Default)]
pub(crate) struct ConnString {
    key_value: bool,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) dbname: Option<String>,
    hosts: Vec<String>,
    ports: Vec<u16>,
    hostaddrs: Vec<String>,
    /// The rest, known or not, in order.
    pub(crate) params: Vec<Param>,
}

impl ConnString {
    /// Reads a URL or a list of `key=value`.
    pub(crate) fn parse(text: &str) -> Result<Self, UrlProblem> {
        let text = text.trim();
        if text.is_empty() {
            return Err(UrlProblem::Empty);
        }
        match Self::after_scheme(text) {
            Some(rest) => Self::parse_url(rest),
            None => Self::parse_key_value(text),
        }
    }

    /// What follows the scheme, if it is a URL.
    pub(crate) fn after_scheme(text: &str) -> Option<&str> {
        ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
    }

    fn parse_url(rest: &str) -> Result<Self, UrlProblem> {
        let mut this = Self::default();
        let rest = this.take_credentials(rest)?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        this.take_authority(authority)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let dbname = decode(path.strip_prefix('/').unwrap_or(path))?;
        this.dbname = Some(dbname).filter(|name| !name.is_empty());
        let mut tainted = false;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or(UrlProblem::Parameter)?;
            let (name, value) = (decode(name)?, decode(value)?);
            let is_password = name == "password";
            this.absorb(Param {
                tainted,
                ..Param::new(name, value)
            })?;
            tainted |= is_password;
        }
        Ok(this)
    }

    /// Takes `user:password@` off the front.
    fn take_credentials<'a>(&mut self, rest: &'a str) -> Result<&'a str, UrlProblem> {
        let Some((credentials, rest)) = rest.split_once('@') else {
            return Ok(rest);
        };
        if rest.contains('@') || credentials.contains(['/', '?']) {
            return Err(UrlProblem::Escaping);
        }
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        self.user = Some(decode(user)?).filter(|user| !user.is_empty());
        self.password = password.map(|password| percent_decode_str(password).collect());
        Ok(rest)
    }

    fn take_authority(&mut self, authority: &str) -> Result<(), UrlProblem> {
        if authority.is_empty() {
            return Ok(());
        }
        let mut any_port = false;
        for chunk in authority.split(',') {
            let (host, port) = host_and_port(chunk).ok_or(UrlProblem::Value("host"))?;
            any_port |= port.is_some();
            self.hosts.push(check_host(decode(host)?)?);
            self.ports
                .push(parse_port(&decode(port.unwrap_or_default())?)?);
        }
        if !any_port {
            // Leaves the ports to a `port` parameter.
            self.ports.clear();
        }
        Ok(())
    }

    fn parse_key_value(text: &str) -> Result<Self, UrlProblem> {
        let mut this = Self {
            key_value: true,
            ..Self::default()
        };
        let mut rest = text;
        let mut tainted = false;
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or(UrlProblem::Scheme)?;
            let name = name.trim_end();
            if !is_identifier(name) {
                return Err(UrlProblem::Scheme);
            }
            let (value, quoted, after) = take_value(after.trim_start())?;
            let is_password = name == "password";
            let name = name.to_owned();
            this.absorb(Param {
                tainted,
                ..Param::new(name, value)
            })?;
            // A quoted value ends where it says, so that what follows is no piece of it.
            tainted |= is_password && !quoted;
            rest = after.trim_start();
        }
        Ok(this)
    }

    /// Puts a parameter where it belongs.
    fn absorb(&mut self, param: Param) -> Result<(), UrlProblem> {
        let Param { name, value, .. } = &param;
        if !is_identifier(name) {
            return Err(UrlProblem::Parameter);
        }
        if let Some(known) = setting::known(name).filter(|known| self.is_given(known)) {
            return Err(UrlProblem::Repeated(known));
        }
        match name.as_str() {
            // An empty value counts as not set, as in libpq.
            "user" => self.user = Some(param.value).filter(|user| !user.is_empty()),
            "password" => self.password = Some(param.value.into_bytes()),
            "dbname" => self.dbname = Some(param.value).filter(|name| !name.is_empty()),
            "host" => self.hosts = each(value, check_host)?,
            "port" => self.ports = each(value, |port| parse_port(&port))?,
            "hostaddr" => self.hostaddrs = each(value, check_hostaddr)?,
            // As JDBC writes it, and libpq reads it, too.
            "ssl" if value == "true" => {
                self.absorb(Param {
                    name: "sslmode".to_owned(),
                    value: "require".to_owned(),
                    ..param
                })?;
            }
            _ => self.params.push(param),
        }
        Ok(())
    }

    /// Takes a parameter from elsewhere, unless it is given.
    pub(crate) fn fill(&mut self, param: Param) -> Result<(), UrlProblem> {
        if self.is_given(&param.name) {
            return Ok(());
        }
        self.absorb(param)
    }

    fn is_given(&self, name: &str) -> bool {
        match name {
            "user" => self.user.is_some(),
            "password" => self.password.is_some(),
            "dbname" => self.dbname.is_some(),
            "host" => self.names_hosts(),
            "port" => !self.ports.is_empty(),
            "hostaddr" => !self.hostaddrs.is_empty(),
            _ => self.param(name).is_some(),
        }
    }

    /// Whether it says where to connect to.
    pub(crate) fn names_hosts(&self) -> bool {
        !self.hosts.is_empty() || !self.hostaddrs.is_empty()
    }

    /// Whether it says which address a host has.
    pub(crate) fn names_addresses(&self) -> bool {
        !self.hostaddrs.is_empty()
    }

    /// The value of a parameter that is none of an address.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        let mut params = self.params.iter();
        let found = params.find(|param| param.name == name)?;
        Some(&found.value)
    }

    /// The servers that it names. A single port applies to all hosts.
    pub(crate) fn addresses(&self) -> Result<Vec<Address>, UrlProblem> {
        let hosts = if self.hosts.is_empty() {
            &self.hostaddrs
        } else {
            &self.hosts
        };
        let count = |setting, count: usize| {
            if count == hosts.len() {
                Ok(())
            } else {
                Err(UrlProblem::Count {
                    setting,
                    count,
                    hosts: hosts.len(),
                })
            }
        };
        if self.ports.len() > 1 {
            count("port", self.ports.len())?;
        }
        if hosts.len() > 1 && hosts.iter().any(String::is_empty) {
            return Err(UrlProblem::Value("host"));
        }
        if !self.hostaddrs.is_empty() {
            count("hostaddr", self.hostaddrs.len())?;
        }
        let only_port = self.ports.first().copied().unwrap_or(DEFAULT_PORT);
        Ok(hosts
            .iter()
            .enumerate()
            .map(|(position, host)| Address {
                host: host.clone(),
                hostaddr: self.hostaddrs.get(position).cloned(),
                port: self.ports.get(position).copied().unwrap_or(only_port),
            })
            .filter(|address| !address.host.is_empty())
            .collect())
    }

    /// Keeps only the server at `address`.
    pub(crate) fn set_address(&mut self, address: &Address) {
        self.hosts = vec![address.host.clone()];
        self.ports = vec![address.port];
        self.hostaddrs = address.hostaddr.iter().cloned().collect();
    }
}

/// The host and the port of `host:port` in a URL, in which an IPv6 address has brackets. `None` if these do not match.
pub(super) fn host_and_port(text: &str) -> Option<(&str, Option<&str>)> {
    let Some(v6) = text.strip_prefix('[') else {
        return Some(match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        });
    };
    let (host, after) = v6.split_once(']')?;
    match after.strip_prefix(':') {
        Some(port) => Some((host, Some(port))),
        None => after.is_empty().then_some((host, None)),
    }
}

/// The value at the start of `text`, whether it was quoted, and what follows.
fn take_value(text: &str) -> Result<(String, bool, &str), UrlProblem> {
    let quoted = text.strip_prefix('\'');
    let body = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => {
                let after = &body[at + 1..];
                if after.is_empty() || after.starts_with(char::is_whitespace) {
                    return Ok((value, true, after));
                }
                return Err(UrlProblem::Quote);
            }
            c if quoted.is_none() && c.is_whitespace() => return Ok((value, false, &body[at..])),
            c => value.push(c),
        }
    }
    match quoted {
        Some(_) => Err(UrlProblem::Quote),
        None => Ok((value, false, "")),
    }
}

fn each<T>(
    list: &str,
    read: impl Fn(String) -> Result<T, UrlProblem>,
) -> Result<Vec<T>, UrlProblem> {
    list.split(',').map(|item| read(item.to_owned())).collect()
}

/// Refuses characters that no host name has. They may be a piece of a password, and hosts are shown.
fn check_host(host: String) -> Result<String, UrlProblem> {
    let special = if host.starts_with('/') {
        "-._:%/+~"
    } else {
        "-._:%"
    };
    let fits = |c: char| c.is_alphanumeric() || special.contains(c);
    if host.chars().all(fits) {
        Ok(host)
    } else {
        Err(UrlProblem::Value("host"))
    }
}

fn check_hostaddr(address: String) -> Result<String, UrlProblem> {
    match address.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(address),
        Err(_) => Err(UrlProblem::Value("hostaddr")),
    }
}

fn parse_port(port: &str) -> Result<u16, UrlProblem> {
    if port.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let port = port.parse().ok().filter(|port| *port != 0);
    port.ok_or(UrlProblem::Value("port"))
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn decode(text: &str) -> Result<String, UrlProblem> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(UrlProblem::Encoding),
    }
}
