//! What an operator has to do with a server that has log which the primary does not have.

use super::member::Member;
use super::topology::Topology;
use crate::config::Address;
use crate::election::Standing;

/// What mends this node, if it has log of its own.
pub(crate) fn remedy(member: &Member, topology: &Topology) -> Option<String> {
    let replaced = matches!(member.standing, Standing::Superseded { .. });
    let of_old = replaced && member.is_up();
    if !of_old && !member.diverged {
        return None;
    }
    let what = match of_old {
        true => "it takes writes that nobody else has: ",
        false => "",
    };
    Some(format!("{what}{}", advice(topology)?))
}

/// How a server becomes a standby of the primary that has log of its own.
pub(super) fn advice(topology: &Topology) -> Option<String> {
    let (command, name) = (command(topology)?, &topology.primary()?.node.name);
    Some(format!(
        "it needs `pg_rewind`: stop it, run `CHECKPOINT` on `{name}`, run `{command}` where it was, and start it as a \
         standby of `{name}`; or rebuild it by a new base backup"
    ))
}

/// The command by which a server that is stopped becomes a standby of the primary.
fn command(topology: &Topology) -> Option<String> {
    let primary = topology.primary()?;
    let settings = primary.node.pool.connector().settings();
    let plain = |text: &str, instead: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:%/".contains(c);
        let fits = !text.is_empty() && text.chars().all(is_plain);
        if fits {
            text.to_owned()
        } else {
            instead.to_owned()
        }
    };
    let (host, port) = match settings.replication_address() {
        Some(Address { host, port, .. }) => (plain(&host, "HOST"), port.to_string()),
        None => ("HOST".to_owned(), "PORT".to_owned()),
    };
    let user = plain(
        settings.login.postgres.get_user().unwrap_or_default(),
        "USER",
    );
    Some(format!(
        "pg_rewind --target-pgdata=DATA_DIRECTORY --source-server='host={host} port={port} user={user} dbname=postgres' \
         --write-recovery-conf"
    ))
}
