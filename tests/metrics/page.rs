//! What the exporter shows, read as Prometheus reads it.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use diesel_replicated::metrics::BUCKETS;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// The recorder of this process.
pub fn recorder() -> &'static PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new().set_buckets(&BUCKETS).unwrap();
        builder.install_recorder().unwrap()
    })
}

/// The names of series that an instrument has in Prometheus.
pub fn names(instrument: &str) -> [String; 4] {
    let name = instrument.replace('.', "_");
    ["", "_count", "_sum", "_bucket"].map(|suffix| format!("{name}{suffix}"))
}

/// The exporter's page.
pub struct Page {
    pub text: String,
}

struct Series<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    value: f64,
}

impl Page {
    pub fn read() -> Self {
        Self {
            text: recorder().render(),
        }
    }

    fn all(&self) -> impl Iterator<Item = Series<'_>> {
        let lines = self.text.lines();
        let lines = lines.filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}');
            let labels = labels
                .split("\",")
                .filter(|label| !label.is_empty())
                .map(|label| {
                    let (name, value) = label.split_once("=\"").unwrap();
                    (name, value.trim_end_matches('"'))
                });
            Series {
                name,
                labels: labels.collect(),
                value: value.parse().unwrap(),
            }
        })
    }

    /// The sum of all series of this name with these labels, whose node begins with this.
    pub fn sum(&self, name: &str, wanted: &[(&str, &str)], node: &str) -> f64 {
        let fits = |series: &Series<'_>| {
            let begins =
                |(label, value): &(&str, &str)| *label == "node" && value.starts_with(node);
            series.name == name
                && wanted.iter().all(|label| series.labels.contains(label))
                && (node.is_empty() || series.labels.iter().any(begins))
        };
        self.all().filter(fits).map(|series| series.value).sum()
    }

    /// The value of the one series of this name with these labels.
    pub fn value(&self, name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
        let fits = |series: &Series<'_>| {
            series.name == name && wanted.iter().all(|label| series.labels.contains(label))
        };
        self.all().find(fits).map(|series| series.value)
    }

    /// All values of a label.
    pub fn values(&self, label: &str) -> BTreeSet<String> {
        let labels = self.all().flat_map(|series| series.labels);
        labels
            .filter(|(name, _)| *name == label)
            .map(|(_, value)| value.to_owned())
            .collect()
    }

    /// Whether the instrument has a series.
    pub fn has(&self, instrument: &str) -> bool {
        let names = names(instrument);
        self.all()
            .any(|series| names.iter().any(|name| name == series.name))
    }

    /// The name and the labels of each series.
    pub fn series(&self) -> Vec<(String, Vec<String>)> {
        let owned = |series: Series<'_>| {
            let labels = series.labels.iter().map(|(name, _)| (*name).to_owned());
            (series.name.to_owned(), labels.collect())
        };
        self.all().map(owned).collect()
    }
}
