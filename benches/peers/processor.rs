//! Processor time of other processes, to the nanosecond: what the scheduler says of each thread.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// What a process and all that it has started have used so far.
pub(crate) fn of_family(pid: u32) -> Duration {
    let mut found = vec![pid];
    let mut next = 0;
    let mut nanos = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            nanos += on_processor(&thread.path()).unwrap_or(0);
            let children = fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .flat_map(|pid| pid.parse::<u32>()),
            );
        }
    }
    Duration::from_nanos(nanos)
}

fn on_processor(thread: &Path) -> Option<u64> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    text.split(' ').next()?.parse().ok()
}
