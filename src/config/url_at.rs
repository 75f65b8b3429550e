//! A URL without a host, made that of one server.

use super::conn_string::{Address, ConnString};
use crate::config::UrlProblem;

/// The URL of the server at `host` and `port`, of one that names no host.
pub(crate) fn url_at(url: &str, host: &str, port: u16) -> Result<String, UrlProblem> {
    let mut parts = ConnString::parse(url)?;
    if parts.names_hosts() {
        return Err(UrlProblem::NamesHost);
    }
    parts.set_address(&Address {
        host: host.to_owned(),
        hostaddr: None,
        port,
    });
    Ok(parts.to_url())
}
