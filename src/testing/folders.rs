//! The folders of a cluster's nodes, all copied from one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{ClusterError, io};
use super::node::{Host, LocalNode, conninfo};
use super::privileges::Privileges;

/// Settings of every node. Replicas come up and catch up at once, and nothing is flushed. Shared memory is in files of the
/// folder, so that a server that is killed leaves none elsewhere.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
dynamic_shared_memory_type = mmap
max_connections = 100
wal_level = replica
wal_keep_size = 512MB
max_wal_senders = 20
hot_standby = on
wal_retrieve_retry_interval = 100ms
wal_receiver_status_interval = 1s
autovacuum_naptime = 1d
log_min_messages = warning
";

/// In memory if there is room, else in the folder for temporary files.
pub(super) fn place_for_data() -> PathBuf {
    const ROOM: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory)
        .is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) >= ROOM);
    if has_room && std::env::var_os("TMPDIR").is_none() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

/// Configures the data folder that all nodes are copied from.
pub(super) fn configure(
    template: &Path,
    settings: &[(String, String)],
    rules: &[String],
) -> Result<(), ClusterError> {
    append(&template.join("postgresql.conf"), SETTINGS)?;
    for (name, value) in settings {
        set(template, name, value)?;
    }
    let hba = template.join("pg_hba.conf");
    let usual = fs::read_to_string(&hba).map_err(io("cannot read pg_hba.conf"))?;
    // The first line that fits counts.
    let all = format!("{}\n{usual}", rules.join("\n"));
    fs::write(&hba, all).map_err(io("cannot write pg_hba.conf"))
}

/// Adds a setting to `postgresql.conf`.
pub(super) fn set(data: &Path, name: &str, value: &str) -> Result<(), ClusterError> {
    let line = format!("{name} = '{}'\n", value.replace('\'', "''"));
    append(&data.join("postgresql.conf"), &line)
}

/// Copies the template for one node.
pub(super) fn place(
    host: &Host,
    directory: &Path,
    template: &Path,
    name: &str,
) -> Result<PathBuf, ClusterError> {
    let data: PathBuf = directory.join(name);
    copy(host, template, &data)?;
    append(
        &data.join("postgresql.conf"),
        &format!("cluster_name = '{name}'\n"),
    )?;
    Ok(data)
}

/// Copies a folder, which then belongs to the servers' user.
pub(super) fn copy(host: &Host, from: &Path, to: &Path) -> Result<(), ClusterError> {
    let mut copy = Command::new("cp");
    copy.arg("-R").arg(from).arg(to).stdin(Stdio::null());
    host.privileges.apply(&mut copy);
    run(copy)
}

/// Puts a new copy of the template in the place of what a node has.
pub(super) fn replace(host: &Host, template: &Path, node: &LocalNode) -> Result<(), ClusterError> {
    fs::remove_dir_all(node.data_dir()).map_err(io("cannot wipe a node"))?;
    let parent = template.parent().unwrap_or(template);
    place(host, parent, template, node.name()).map(drop)
}

/// Rewinds what a node has to what it has in common with `upstream`. Its own configuration stays.
pub(super) fn rewind(
    host: &Host,
    node: &LocalNode,
    upstream: &LocalNode,
) -> Result<(), ClusterError> {
    let port = upstream.port();
    let source = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
    let configuration = node.data_dir().join("postgresql.conf");
    let own = fs::read(&configuration).map_err(io("cannot read postgresql.conf"))?;
    let mut command = Command::new(host.binaries.program("pg_rewind"));
    command
        .arg("--target-pgdata")
        .arg(node.data_dir())
        .args(["--source-server", &source, "--write-recovery-conf"])
        .args(["--no-sync"])
        .current_dir(node.data_dir())
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    host.privileges.apply(&mut command);
    run(command)?;
    // It has copied the other server's.
    fs::write(&configuration, own).map_err(io("cannot write postgresql.conf"))
}

pub(super) fn follow(
    replica: &LocalNode,
    upstream: &LocalNode,
    owner: Privileges,
) -> Result<(), ClusterError> {
    let signal = replica.data_dir().join("standby.signal");
    fs::write(&signal, "").map_err(io("cannot make standby.signal"))?;
    owner.own(&signal)?;
    let conninfo = format!(
        "primary_conninfo = '{}'\n",
        conninfo(upstream, replica.name())
    );
    append(&replica.data_dir().join("postgresql.conf"), &conninfo)
}

fn append(path: &Path, text: &str) -> Result<(), ClusterError> {
    use std::io::Write;

    let file = fs::File::options().append(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(io(format!("cannot write {}", path.display())))
}

/// Runs a program. If it fails, what it says is the error.
pub(super) fn run(mut command: Command) -> Result<(), ClusterError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(io(format!("cannot run {program}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Program {
        program,
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
