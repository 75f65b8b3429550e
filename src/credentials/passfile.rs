//! libpq's file of passwords.
//!
//! See <https://www.postgresql.org/docs/18/libpq-pgpass.html>.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{Credential, Credentials, CredentialsError, LoginRequest};

/// A file with lines of `host:port:database:user:password`, as `~/.pgpass` is. It is read anew for each connection.
///
/// A URL without a password uses the one that `passfile`, `PGPASSFILE` or the home directory name; this type is for
/// any other place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassFile(PathBuf);

impl PassFile {
    /// The file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The password for a log-in; `None` if the file has none.
    pub(crate) fn password(&self, login: &LoginRequest) -> Result<Option<Vec<u8>>, String> {
        let shown = self.0.display();
        is_kept(&self.0)?;
        let text = fs::read(&self.0).map_err(|error| format!("`{shown}`: {error}"))?;
        Ok(find(&text, login))
    }
}

#[async_trait]
impl Credentials for PassFile {
    async fn credential(&self, login: &LoginRequest) -> Result<Credential, CredentialsError> {
        match self.password(login)? {
            Some(password) => Ok(Credential::new(password)),
            None => Err(format!("`{}` has no line for this login", self.0.display()).into()),
        }
    }
}

/// The first line that fits counts.
fn find(text: &[u8], login: &LoginRequest) -> Option<Vec<u8>> {
    // A socket in its usual place is called so.
    let host = match login.host.as_str() {
        "" | "/tmp" | "/var/run/postgresql" | "/run/postgresql" => "localhost",
        host => host,
    };
    let port = login.port.to_string();
    let wanted = [host, &port, &login.dbname, &login.user].map(str::as_bytes);
    let lines = text.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = lines.filter(|line| !line.starts_with(b"#"));
    let password = lines.find_map(|line| wanted.into_iter().try_fold(line, after_field))?;
    // It goes to a colon, or to the end of the line.
    let mut out = Vec::new();
    let mut bytes = password.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b':' => break,
            b'\\' => out.push(*bytes.next().unwrap_or(byte)),
            byte => out.push(*byte),
        }
    }
    (!out.is_empty()).then_some(out)
}

/// What follows the field at the beginning of `line`, if that field fits `wanted`.
fn after_field<'l>(line: &'l [u8], wanted: &[u8]) -> Option<&'l [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let mut rest = line;
    for byte in wanted {
        rest = rest.strip_prefix(b"\\").unwrap_or(rest);
        rest = rest.strip_prefix(std::slice::from_ref(byte))?;
    }
    rest.strip_prefix(b":")
}

/// Refuses a file that others may read, as libpq does.
#[cfg(unix)]
fn is_kept(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;

    let shown = path.display();
    let data = fs::metadata(path).map_err(|error| format!("`{shown}`: {error}"))?;
    if !data.is_file() {
        return Err(format!("`{shown}` is not a file"));
    }
    if data.mode() & 0o077 != 0 {
        return Err(format!(
            "`{shown}` may be read by others, and is not used: `chmod 0600` it"
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
fn is_kept(_: &Path) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(host: &str, port: u16, dbname: &str, user: &str) -> LoginRequest {
        LoginRequest {
            node: String::new(),
            host: host.to_owned(),
            port,
            user: user.to_owned(),
            dbname: dbname.to_owned(),
        }
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let file = b"# db1:5432:app:app:commented\n\
            db1:5432:app:app:one\r\n\
            db1:*:app:app:any port\n\
            \\:\\:1:5432:app:app:v6\n\
            ::2:5432:app:app:not escaped\n\
            db2:5432:a\\:b:u\\\\v:p\\:q\\\\r\n\
            db3:5432:*:app:with:more\n\
            localhost:5432:*:*:socket\n\
            db4:5432:app:app:\n\
            db4:5432:app:app:too late\n\
            broken\n\
            \\*:1:app:app:star\n\
            *:9:*:*:all";
        for (login, expected) in [
            (login("db1", 5432, "app", "app"), Some("one")),
            (login("db1", 5433, "app", "app"), Some("any port")),
            (login("db1", 5432, "app", "other"), None),
            (login("::1", 5432, "app", "app"), Some("v6")),
            (login("::2", 5432, "app", "app"), Some("not escaped")),
            (login("db2", 5432, "a:b", "u\\v"), Some("p:q\\r")),
            (login("db3", 5432, "x", "app"), Some("with")),
            (login("/var/run/postgresql", 5432, "x", "y"), Some("socket")),
            (login("db4", 5432, "app", "app"), None),
            (login("db5", 1, "app", "app"), None),
            (login("*", 1, "app", "app"), Some("star")),
            (login("anything", 9, "x", "y"), Some("all")),
        ] {
            let found = find(file, &login);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{login:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let folder = std::env::temp_dir().join(format!("passfile-{}", std::process::id()));
        fs::write(&folder, "*:*:*:*:secret\n").unwrap();
        let file = PassFile::new(&folder);
        let with = |mode| {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            file.password(&login("db1", 1, "a", "b"))
        };
        let refused = with(0o640).unwrap_err();
        assert!(refused.contains("chmod 0600"), "{refused}");
        assert!(!refused.contains("secret"));
        assert_eq!(with(0o600), Ok(Some(b"secret".to_vec())));
        fs::remove_file(&folder).unwrap();
        assert!(file.password(&login("db1", 1, "a", "b")).is_err());
    }
}
