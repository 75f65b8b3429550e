//! Zones: where nodes are, and in which ones this pool reads first.

use super::NodeConfig;
use super::conn_string::ConnString;
use super::setting::ZONE;
use crate::config::ConfigError;

/// How many of the zones that are preferred come before `zone`. What is in none of them comes last.
pub(crate) fn distance(preferred: &[String], zone: Option<&str>) -> usize {
    let place = preferred
        .iter()
        .position(|name| Some(name.as_str()) == zone);
    place.unwrap_or(preferred.len())
}

/// The zone without blanks around it, if anything is left.
pub(super) fn named(zone: &str) -> Option<&str> {
    Some(zone.trim()).filter(|zone| !zone.is_empty())
}

/// The zone that a node's configuration gives it.
pub(super) fn given(
    node: &NodeConfig,
    name: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<String> {
    let zone = node.zone.as_deref()?;
    if named(zone).is_none() {
        let node = name.to_owned();
        errors.push(ConfigError::EmptyZone { node });
    }
    named(zone).map(str::to_owned)
}

/// The zone in the URL of one host.
pub(super) fn of_one(text: &str, label: &str, errors: &mut Vec<ConfigError>) -> Option<String> {
    of_each(text, 1, label, errors).pop()?
}

/// Takes the zones out of the URL of several hosts.
pub(super) fn take(url: &mut ConnString) -> String {
    let text = url.param(ZONE).unwrap_or_default().to_owned();
    url.params.retain(|param| param.name != ZONE);
    text
}

/// The zone of each host, as libpq reads a list of ports: one counts for all.
pub(super) fn of_each(
    text: &str,
    hosts: usize,
    label: &str,
    errors: &mut Vec<ConfigError>,
) -> Vec<Option<String>> {
    let zones = text.split(',').map(|zone| named(zone).map(str::to_owned));
    let mut zones: Vec<Option<String>> = zones.collect();
    match zones.len() {
        1 => zones.resize(hosts, zones[0].clone()),
        listed if listed != hosts => errors.push(ConfigError::ZoneCount {
            node: label.to_owned(),
            zones: listed,
            hosts,
        }),
        _ => {}
    }
    zones
}

/// The zones that are preferred, as they are used. Mistakes are added to `errors`.
pub(super) fn preferred(zones: &[String], errors: &mut Vec<ConfigError>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (position, zone) in zones.iter().enumerate() {
        match named(zone) {
            None => errors.push(ConfigError::EmptyPreferredZone {
                position: position + 1,
            }),
            Some(zone) if found.iter().any(|it| it == zone) => {
                let zone = zone.to_owned();
                errors.push(ConfigError::ZoneTwice { zone });
            }
            Some(zone) => found.push(zone.to_owned()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_that_are_not_preferred_come_last_and_are_alike() {
        let preferred = ["a".to_owned(), "b".to_owned()];
        let of = |zone| distance(&preferred, zone);
        assert_eq!(
            [of(Some("a")), of(Some("b")), of(Some("c")), of(None)],
            [0, 1, 2, 2]
        );
        assert_eq!(
            (distance(&[], Some("a")), distance(&[], None)),
            (0, 0),
            "without any all are near"
        );
    }
}
