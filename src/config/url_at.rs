//! A connection string, made that of one server that was found elsewhere.

use std::net::IpAddr;

use super::conn_string::{Address, ConnString};
use super::setting;
use crate::config::UrlProblem;

/// The URL of the server at `host` and `port`, of one that names no host.
#[cfg(any(feature = "patroni", feature = "srv"))]
pub(crate) fn url_at(url: &str, host: &str, port: u16) -> Result<String, UrlProblem> {
    let parts = ConnString::parse(url)?;
    if parts.names_hosts() {
        return Err(UrlProblem::NamesHost);
    }
    at(parts, host, port, None)
}

/// The URL of the server at `address`, one of those of `host`, of one that names `host` and no address.
pub(crate) fn url_of_address(
    url: &str,
    (host, port): (&str, u16),
    address: IpAddr,
) -> Result<String, UrlProblem> {
    at(without_address(url)?, host, port, Some(address))
}

/// Whether the URL leaves it to others which address its host has.
pub(crate) fn check_names_no_address(url: &str) -> Result<(), UrlProblem> {
    without_address(url).map(|_| ())
}

fn without_address(url: &str) -> Result<ConnString, UrlProblem> {
    let parts = ConnString::parse(url)?;
    if parts.names_addresses() {
        return Err(UrlProblem::NamesAddress);
    }
    Ok(parts)
}

fn at(
    mut parts: ConnString,
    host: &str,
    port: u16,
    address: Option<IpAddr>,
) -> Result<String, UrlProblem> {
    // Written anew, it is not behind the password any more. Then nobody would see that it may be a part of that.
    let unknown = |name: &str| setting::known(name).is_none();
    let mut params = parts.params.iter();
    if params.any(|param| param.tainted && unknown(&param.name)) {
        return Err(UrlProblem::Unknown);
    }
    parts.set_address(&Address {
        host: host.to_owned(),
        hostaddr: address.map(|address| address.to_string()),
        port,
    });
    Ok(parts.to_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Result<String, UrlProblem> {
        url_of_address(url, ("db", 5444), IpAddr::from([10, 0, 0, 1]))
    }

    #[test]
    fn a_password_that_looks_like_a_url_or_a_parameter_stays_a_password() {
        let written = "@db:5444/x?hostaddr=10%2E0%2E0%2E1".replace("%2E", ".");
        for (given, password) in [
            (
                "host=db user=a dbname=x password=p://q?r",
                "p%3A%2F%2Fq%3Fr",
            ),
            (
                "host=db user=a dbname=x password='p w&\\'q'",
                "p%20w%26%27q",
            ),
            ("postgres://a:p%3Fq@db/x", "p%3Fq"),
            ("postgresql://a:p%3Fq@db:1/x?", "p%3Fq"),
        ] {
            assert_eq!(
                of(given).unwrap(),
                format!("postgres://a:{password}{written}")
            );
        }
        let tls = of("postgres://a@db/x?sslmode=require").unwrap();
        assert_eq!(tls, format!("postgres://a{written}&sslmode=require"));
    }

    #[test]
    fn an_address_is_given_once() {
        for url in [
            "postgres://a@db/x?hostaddr=10.0.0.9",
            "host=db hostaddr=10.0.0.9 user=a",
            "postgres://a@/x?hostaddr=10.0.0.9",
        ] {
            assert_eq!(of(url), Err(UrlProblem::NamesAddress), "{url}");
        }
    }

    #[test]
    fn what_may_be_a_piece_of_the_password_is_not_written_elsewhere() {
        let url = "host=db user=a password=p wd=hunter2";
        assert_eq!(of(url), Err(UrlProblem::Unknown));
        let known = of("host=db user=a password=p sslmode=require").unwrap();
        assert!(known.ends_with("&sslmode=require"), "{known}");
    }

    #[cfg(any(feature = "patroni", feature = "srv"))]
    #[test]
    fn a_url_for_many_servers_names_no_host() {
        assert_eq!(
            url_at("postgres://a@/x", "h", 1).unwrap(),
            "postgres://a@h:1/x"
        );
        for named in ["postgres://a@h/x", "hostaddr=10.0.0.1 user=a"] {
            assert_eq!(url_at(named, "h", 1), Err(UrlProblem::NamesHost));
        }
    }
}
