//! The connection service file: parameters under a name.
//!
//! See <https://www.postgresql.org/docs/18/libpq-pgservice.html>.

use std::path::{Path, PathBuf};

use super::Lookup;
use crate::config::conn_string::ConnString;

/// Where the folder of the file for all is, if `PGSYSCONFDIR` does not say: that of Debian's packages.
const SYSTEM: &str = "/etc/postgresql-common";

/// What the file says of the service that `given` names, if it names one.
pub(super) fn parameters(
    given: &ConnString,
    environment: Lookup<'_>,
) -> Result<Vec<(String, String)>, String> {
    let from = |parameter: &str, variable: &str| {
        let own = given.param(parameter).map(str::to_owned);
        own.or_else(|| environment(variable))
            .filter(|value| !value.is_empty())
    };
    let Some(service) = from("service", "PGSERVICE") else {
        return Ok(Vec::new());
    };
    let named = from("servicefile", "PGSERVICEFILE").map(PathBuf::from);
    for file in files(named.as_deref(), environment) {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if named.as_ref() == Some(&file) => {
                return Err(format!("`{}`: {error}", file.display()));
            }
            Err(_) => continue,
        };
        match section(&text, &service) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(line) => {
                return Err(format!(
                    "`{}`: line {line} is not `name=value`",
                    file.display()
                ));
            }
        }
    }
    Err(format!("no service file has a section `[{service}]`"))
}

/// The files that are looked into: the named one, or the one in the home directory; then the one for all.
fn files(named: Option<&Path>, environment: Lookup<'_>) -> Vec<PathBuf> {
    let home = || environment("HOME").map(|home| Path::new(&home).join(".pg_service.conf"));
    let own = named.map(Path::to_path_buf).or_else(home);
    let system = environment("PGSYSCONFDIR").unwrap_or_else(|| SYSTEM.to_owned());
    let all = Path::new(&system).join("pg_service.conf");
    own.into_iter().chain([all]).collect()
}

/// What stands below `[service]`. `Err` is the number of a line that is no parameter.
fn section(text: &str, service: &str) -> Result<Option<Vec<(String, String)>>, usize> {
    let mut found = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'))
        {
            if found.is_some() {
                break;
            }
            if name == service {
                found = Some(Vec::new());
            }
        } else if let Some(parameters) = &mut found {
            let (name, value) = line.split_once('=').ok_or(number + 1)?;
            // A service within a service is refused by libpq, too.
            if name == "service" {
                return Err(number + 1);
            }
            parameters.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_found() {
        let text = "# all\n[a]\nhost=db1\nport=1\n\n[b]\n host=db2 \npassword=a=b c\n[a]\nhost=x\n";
        let of = |service| section(text, service).unwrap();
        let pairs = |pairs: &[(&str, &str)]| {
            let own = pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
            Some(own.collect::<Vec<_>>())
        };
        assert_eq!(of("a"), pairs(&[("host", "db1"), ("port", "1")]));
        assert_eq!(of("b"), pairs(&[("host", "db2"), ("password", "a=b c")]));
        assert_eq!(of("c"), None);
        assert_eq!(section("[a]\nhost\n", "a"), Err(2));
        assert_eq!(section("[a]\nservice=b\n", "a"), Err(2));
        // What is wrong elsewhere is not ours.
        assert_eq!(section("[b]\nhost\n[a]\n", "a"), Ok(Some(Vec::new())));
    }
}
