//! A file with a line for each node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::{Discovery, DiscoveryError};
use crate::config::NodeConfig;

/// A file that is read again once in a second.
///
/// Each line is a name and a URL, or a URL alone, which names the node `host:port`. Empty lines and those that begin
/// with `#` say nothing. Whoever changes the file should write another one and rename it: half a file is half a list.
///
/// ```text
/// # name  URL
/// db1     postgres://app@10.0.0.1/app
/// db2     postgres://app@10.0.0.2/app
/// ```
#[derive(Clone, Debug)]
pub struct File {
    path: PathBuf,
}

/// How often the file is read.
const INTERVAL: Duration = Duration::from_secs(1);

impl File {
    /// Reads this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl Discovery for File {
    async fn nodes(&self) -> Result<Vec<NodeConfig>, DiscoveryError> {
        let path = self.path.clone();
        let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await?;
        let text = text.map_err(|error| format!("{}: {error}", self.path.display()))?;
        Ok(nodes(&text))
    }

    async fn changed(&self) {
        tokio::time::sleep(INTERVAL).await;
    }
}

fn nodes(text: &str) -> Vec<NodeConfig> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_once(char::is_whitespace) {
            Some((name, url)) if !name.contains(['=', '/']) => {
                NodeConfig::new(url.trim()).name(name)
            }
            _ => NodeConfig::new(line),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_node_with_a_name_or_without() {
        let text =
            "# name URL\n\n db1\tpostgres://a@h1/x \npostgres://a@h2/x\nhost=h3 user=a dbname=x\n";
        let expected = [
            NodeConfig::new("postgres://a@h1/x").name("db1"),
            NodeConfig::new("postgres://a@h2/x"),
            NodeConfig::new("host=h3 user=a dbname=x"),
        ];
        assert_eq!(nodes(text), expected);
    }
}
