//! What processes there are, where that is asked of the system.

use std::process::Command;

use rustix::process::Pid;

/// The direct children of a process.
pub(super) fn children_of(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().get();
    let all = from_proc().unwrap_or_else(from_ps).into_iter();
    all.filter(|(_, of)| *of == parent)
        .filter_map(|(pid, _)| Pid::from_raw(pid))
        .collect()
}

/// Each process and its parent, from Linux's `/proc`.
fn from_proc() -> Option<Vec<(i32, i32)>> {
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent_of = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // "pid (name) state parent …", where the name may hold anything.
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse().ok()
    };
    let pairs: Vec<(i32, i32)> = pids
        .filter_map(|pid| parent_of(pid).map(|parent| (pid, parent)))
        .collect();
    (!pairs.is_empty()).then_some(pairs)
}

/// The same from `ps`, for systems without `/proc`.
fn from_ps() -> Vec<(i32, i32)> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
    let listing = output.map(|output| output.stdout).unwrap_or_default();
    let listing = String::from_utf8_lossy(&listing);
    let pair = |line: &str| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    listing.lines().filter_map(pair).collect()
}
