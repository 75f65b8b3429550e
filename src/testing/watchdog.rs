//! Cleaning up after a process that did not live to do it itself.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::error::{ClusterError, io};

/// Waits for its input to end, which happens when our process ends in whatever way; then kills
/// the servers below the folder and removes it. A `postmaster.pid` names the server's process on
/// its first line, its data folder on the second, and a segment of shared memory on the seventh.
const SCRIPT: &str = r#"
cd / || exit 1
while read -r line; do [ "$line" = keep ] && exit 0; done
for file in "$1"/*/postmaster.pid; do
    [ -f "$file" ] || continue
    { read -r pid; read -r data; read -r _; read -r _; read -r _; read -r _; read -r _ segment; } <"$file"
    [ "$data" = "${file%/postmaster.pid}" ] || continue
    kill -0 "$pid" 2>/dev/null || ipcrm -m "$segment" 2>/dev/null
    kill -CONT -"$pid" 2>/dev/null
    kill -QUIT "$pid" 2>/dev/null
done
tries=0
while [ $tries -lt 50 ]; do
    rm -rf "$1" 2>/dev/null
    [ -e "$1" ] || exit 0
    tries=$((tries + 1))
    sleep 0.1
done
for file in "$1"/*/postmaster.pid; do
    [ -f "$file" ] && read -r pid <"$file" && kill -KILL -"$pid" 2>/dev/null
done
rm -rf "$1"
"#;

/// A small shell that outlives this process for a moment.
#[derive(Debug)]
pub(super) struct Watchdog {
    child: Child,
    input: Option<ChildStdin>,
}

impl Watchdog {
    /// Watches over the servers below `directory`.
    pub(super) fn start(directory: &Path) -> Result<Self, ClusterError> {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal must not reach it.
            .process_group(0)
            .spawn()
            .map_err(io("cannot start the watchdog (`sh`)"))?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// Ends it without cleaning up.
    pub(super) fn dismiss(&mut self) {
        if let Some(mut input) = self.input.take() {
            let _ = input.write_all(b"keep\n");
        }
        let _ = self.child.wait();
    }
}
