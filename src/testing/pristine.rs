//! What `initdb` makes. It takes longer than the rest of a cluster's start, so that clusters which are there at the same
//! time share it. Each gets a copy with an identifier of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::error::{ClusterError, io};
use super::folders::{copy, place_for_data, run};
use super::node::Host;
use super::watchdog::Watchdog;

/// A data folder in which no server has run.
#[derive(Debug)]
pub(super) struct Pristine {
    initdb: PathBuf,
    directory: TempDir,
    watchdog: Watchdog,
}

impl Pristine {
    /// The one that is there, else a new one.
    pub(super) fn get(host: &Host) -> Result<Arc<Self>, ClusterError> {
        static LAST: Mutex<Weak<Pristine>> = Mutex::new(Weak::new());
        let initdb = host.binaries.program("initdb");
        // Whoever comes meanwhile waits for it rather than make another.
        let mut last = LAST.lock();
        if let Some(there) = last.upgrade().filter(|there| there.initdb == initdb) {
            return Ok(there);
        }
        let new = Arc::new(Self::new(host, initdb)?);
        *last = Arc::downgrade(&new);
        Ok(new)
    }

    fn new(host: &Host, initdb: PathBuf) -> Result<Self, ClusterError> {
        let directory = tempfile::Builder::new()
            .prefix("diesel-replicated-")
            .tempdir_in(place_for_data())
            .map_err(io("cannot make a temporary folder"))?;
        host.privileges.own(directory.path())?;
        let watchdog = Watchdog::start(directory.path())?;
        let mut command = Command::new(&initdb);
        command
            .args(["--username=postgres", "--auth=trust", "--no-sync"])
            // Small segments of WAL: there is less to copy.
            .args([
                "--encoding=UTF8",
                "--locale=C",
                "--wal-segsize=1",
                "--pgdata",
            ])
            .arg(data(&directory))
            .current_dir(directory.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        host.privileges.apply(&mut command);
        run(command)?;
        Ok(Self {
            initdb,
            directory,
            watchdog,
        })
    }

    /// Makes a copy that is another cluster.
    pub(super) fn place(&self, host: &Host, to: &Path) -> Result<(), ClusterError> {
        copy(host, &data(&self.directory), to)?;
        identify(to)
    }
}

impl Drop for Pristine {
    fn drop(&mut self) {
        self.watchdog.dismiss();
    }
}

fn data(directory: &TempDir) -> PathBuf {
    directory.path().join("data")
}

/// Gives a cluster that was never started another identifier. It stands in the control file and in each segment of WAL.
fn identify(data: &Path) -> Result<(), ClusterError> {
    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control).map_err(io("cannot read pg_control"))?;
    let unknown = || ClusterError::Config("pg_control is not as it should be".to_owned());
    let place = place_of_checksum(&bytes).ok_or_else(unknown)?;
    let old = *bytes.first_chunk::<8>().ok_or_else(unknown)?;
    let time = u64::from_ne_bytes(old) & !u64::from(u32::MAX);
    let new = (time | u64::from(rand::random::<u32>())).to_ne_bytes();
    bytes[..new.len()].copy_from_slice(&new);
    let checksum = crc32c(&bytes[..place]).to_ne_bytes();
    bytes[place..][..checksum.len()].copy_from_slice(&checksum);
    fs::write(&control, bytes).map_err(io("cannot write pg_control"))?;
    let segments = fs::read_dir(data.join("pg_wal")).map_err(io("cannot read pg_wal"))?;
    for segment in segments.flatten().map(|entry| entry.path()) {
        if !segment.is_file() {
            continue;
        }
        let mut bytes = fs::read(&segment).map_err(io("cannot read a segment of WAL"))?;
        let header = bytes.get(..64).unwrap_or_default();
        if let Some(at) = header.windows(old.len()).position(|window| window == old) {
            bytes[at..][..new.len()].copy_from_slice(&new);
            fs::write(&segment, bytes).map_err(io("cannot write a segment of WAL"))?;
        }
    }
    Ok(())
}

/// The control file ends with the checksum of all before it. How long it is depends on the version.
fn place_of_checksum(control: &[u8]) -> Option<usize> {
    let ends = |at: &usize| {
        let stored = control.get(*at..).and_then(|rest| rest.first_chunk::<4>());
        stored.is_some_and(|stored| *stored == crc32c(&control[..*at]).to_ne_bytes())
    };
    (64..512).step_by(4).find(ends)
}

/// CRC-32C, as PostgreSQL computes it.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }
}
