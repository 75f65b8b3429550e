//! Finding the programs of a PostgreSQL server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{ClusterError, io};

const OLDEST: u32 = 14;

/// The folder of a server for what the usual one is too old for.
const NEW: &str = "DIESEL_REPLICATED_NEW_PG_BIN";

/// The folder that holds `initdb` and `postgres`.
#[derive(Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    major: u32,
}

impl Binaries {
    /// Looks in `DIESEL_REPLICATED_PG_BIN`, else asks `pg_config`, else looks in the usual places
    /// of Debian, Red Hat, Homebrew, Postgres.app and source builds, in the user's cache, and in
    /// `PATH`; of several versions the newest.
    ///
    /// # Errors
    ///
    /// There is none, or the one that the variable names cannot be used.
    pub fn find() -> Result<Self, ClusterError> {
        if let Some(named) = std::env::var_os("DIESEL_REPLICATED_PG_BIN").filter(|v| !v.is_empty())
        {
            return Self::in_directory(named);
        }
        let mut looked = vec!["DIESEL_REPLICATED_PG_BIN (not set)".to_owned()];
        for places in [pg_config(), usual_places(), path()] {
            let mut found: Vec<Self> = Vec::new();
            for place in places {
                looked.push(place.display().to_string());
                found.extend(Self::in_directory(place));
            }
            if let Some(newest) = found.into_iter().max_by_key(|binaries| binaries.major) {
                return Ok(newest);
            }
        }
        Err(ClusterError::NoServer { looked })
    }

    /// As [`find`](Self::find), but of version `oldest` or later: if that finds an older one, looks in
    /// `DIESEL_REPLICATED_NEW_PG_BIN`.
    pub(super) fn find_since(oldest: u32) -> Result<Self, ClusterError> {
        let found = Self::find()?;
        if found.major >= oldest {
            return Ok(found);
        }
        let new = std::env::var_os(NEW).filter(|folder| !folder.is_empty());
        let new = new.map(Self::in_directory).transpose()?;
        new.filter(|new| new.major >= oldest).ok_or_else(|| {
            ClusterError::Config(format!(
                "this takes PostgreSQL {oldest} or later, and {} is {}: name the folder of a newer one in {NEW}",
                found.directory.display(),
                found.major
            ))
        })
    }

    /// Uses the programs in this folder.
    ///
    /// # Errors
    ///
    /// They are not there, or are older than version 14.
    pub fn in_directory(directory: impl Into<PathBuf>) -> Result<Self, ClusterError> {
        let directory = directory.into();
        let postgres = directory.join("postgres");
        if !postgres.is_file() || !directory.join("initdb").is_file() {
            let looked = vec![directory.display().to_string()];
            return Err(ClusterError::NoServer { looked });
        }
        let output = Command::new(&postgres)
            .arg("--version")
            .output()
            .map_err(io(format!("cannot run {}", postgres.display())))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // "postgres (PostgreSQL) 15.18 (Debian …)", "… 18.6", "… 19beta1".
        let number = version.split_whitespace().nth(2).unwrap_or_default();
        let digits = number.split(|c: char| !c.is_ascii_digit()).next();
        let major = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        if major < OLDEST {
            let directory = directory.display().to_string();
            return Err(ClusterError::TooOld { directory, version });
        }
        Ok(Self { directory, major })
    }

    /// The major version, such as 15.
    #[must_use]
    pub fn major_version(&self) -> u32 {
        self.major
    }

    /// The folder.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn pg_config() -> Vec<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output();
    let directory = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    directory.map(PathBuf::from).into_iter().collect()
}

fn usual_places() -> Vec<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let mut places = Vec::new();
    for (parent, prefix, below) in [
        (PathBuf::from("/usr/lib/postgresql"), "", "bin"),
        (PathBuf::from("/usr"), "pgsql-", "bin"),
        (PathBuf::from("/usr/libexec"), "postgresql", ""),
        (PathBuf::from("/opt/homebrew/opt"), "postgresql@", "bin"),
        (PathBuf::from("/usr/local/opt"), "postgresql@", "bin"),
        (
            PathBuf::from("/Applications/Postgres.app/Contents/Versions"),
            "",
            "bin",
        ),
        (PathBuf::from("/usr/local"), "pgsql", "bin"),
        (
            cache
                .unwrap_or_default()
                .join("diesel-replicated/postgresql"),
            "",
            "bin",
        ),
        (
            PathBuf::from("/var/cache/diesel-replicated/postgresql"),
            "",
            "bin",
        ),
    ] {
        places.extend(matching(&parent, prefix, below));
    }
    places
}

fn matching(parent: &Path, prefix: &str, below: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(below))
        .filter(|place| place.join("postgres").is_file())
        .collect()
}

fn path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|place| place.join("postgres").is_file())
        .collect()
}

impl fmt::Debug for Binaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PostgreSQL {} in {}",
            self.major,
            self.directory.display()
        )
    }
}
