//! What was measured on, and with which versions.

use std::fs;
use std::path::Path;

use diesel_replicated::testing::LocalCluster;

pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// How busy it was before, over the last minute.
    pub(crate) load: String,
    pub(crate) versions: Vec<String>,
}

pub(crate) fn describe() -> Machine {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors
        .lines()
        .find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(':'));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = fs::read_to_string(lock).unwrap_or_default();
    let crates = ["diesel", "diesel-async", "bb8", "deadpool", "tokio"];
    Machine {
        processor: model.map_or_else(
            || "unknown processor".to_owned(),
            |(_, model)| model.trim().to_owned(),
        ),
        cores: std::thread::available_parallelism().map_or(1, Into::into),
        kernel: kernel.trim().to_owned(),
        load: load.split(' ').next().unwrap_or_default().to_owned(),
        versions: crates.iter().filter_map(|it| locked(&lock, it)).collect(),
    }
}

/// A crate with its version.
fn locked(lock: &str, name: &str) -> Option<String> {
    let (_, rest) = lock.split_once(&format!("\nname = \"{name}\"\nversion = \""))?;
    Some(format!("{name} {}", rest.split('"').next()?))
}

pub(crate) fn server(cluster: &LocalCluster) -> String {
    let rows = cluster.primary().sql("bench", "SHOW server_version");
    let version = rows.unwrap().into_iter().flatten().flatten().next();
    let version = version.unwrap_or_default();
    format!(
        "PostgreSQL {}",
        version.split(' ').next().unwrap_or_default()
    )
}
