//! Zones: where nodes are, and in which ones this pool reads first.

use super::NodeConfig;
use super::conn_string::ConnString;
use super::setting::ZONE;
use crate::config::ConfigError;

/// The tag that tells the zone of a node whose zone nothing else tells. So a source of nodes can tell it.
const TAG: &str = "zone";

/// How many of the zones that are preferred come before `zone`. What is in none of them comes last.
pub(crate) fn distance(preferred: &[String], zone: Option<&str>) -> usize {
    let place = preferred
        .iter()
        .position(|name| Some(name.as_str()) == zone);
    place.unwrap_or(preferred.len())
}

/// The zone of a node: what it says, else its URL, else a tag.
pub(super) fn of(
    node: &NodeConfig,
    in_url: Option<String>,
    name: &str,
    errors: &mut Vec<ConfigError>,
) -> Option<String> {
    let given = node.zone.as_deref().map(str::trim);
    if given == Some("") {
        let node = name.to_owned();
        errors.push(ConfigError::EmptyZone { node });
    }
    let tag = || node.tags.get(TAG).map(|tag| tag.trim().to_owned());
    let zone = given.map(str::to_owned).or(in_url).or_else(tag);
    zone.filter(|zone| !zone.is_empty())
}

/// Takes out of the URL of several hosts the zone of each, as libpq reads a list of ports: one counts for all.
pub(super) fn take(
    url: &mut ConnString,
    hosts: usize,
    label: &str,
    errors: &mut Vec<ConfigError>,
) -> Vec<Option<String>> {
    let value = url.param(ZONE).map(str::to_owned);
    url.params.retain(|param| param.name != ZONE);
    let value = value.unwrap_or_default();
    let mut zones: Vec<Option<String>> = value
        .split(',')
        .map(|zone| Some(zone.trim().to_owned()).filter(|zone| !zone.is_empty()))
        .collect();
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

/// Checks the zones that are preferred.
pub(super) fn check_preferred(zones: &[String], errors: &mut Vec<ConfigError>) {
    for (position, zone) in zones.iter().enumerate() {
        if zone.trim().is_empty() {
            errors.push(ConfigError::EmptyPreferredZone {
                position: position + 1,
            });
        } else if zones[..position].contains(zone) {
            let zone = zone.clone();
            errors.push(ConfigError::ZoneTwice { zone });
        }
    }
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
