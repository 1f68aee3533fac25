//! A scrape of `/metrics`, read line by line.

use std::collections::{BTreeMap, BTreeSet};

use coupon_system::metrics::names::{self, Kind};

/// The value of each series, by its name and its labels as written.
pub type ScrapedSeries = BTreeMap<(String, String), f64>;

/// A scrape, read line by line.
#[derive(Debug, Default)]
pub struct Scrape {
    pub series: ScrapedSeries,
    pub helps: BTreeSet<String>,
    pub kinds: BTreeMap<String, String>,
}

impl Scrape {
    /// Reads `name{label="value",…} number` lines and the comments before them. Panics at any other line.
    pub fn parse(text: &str) -> Self {
        let mut scrape = Scrape::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && scrape.helps.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert!(scrape.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
                let (name, labels) = match series.split_once('{') {
                    Some((name, labels)) => (name, labels.strip_suffix('}').expect("an end")),
                    None => (series, ""),
                };
                assert!(
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
                    "{line}"
                );
                check_labels(labels);
                let value = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
                let twice = scrape.series.insert((name.to_owned(), labels.to_owned()), value);
                assert_eq!(twice, None, "{line}");
            }
        }
        scrape
    }

    /// The sum of a metric's series that have all of `labels`; for a histogram, the number of its observations.
    pub fn sum(&self, metric: &str, labels: &[&str]) -> Option<f64> {
        let name = match self.kinds.get(metric).map(String::as_str) {
            Some("histogram") => format!("{metric}_count"),
            _ => metric.to_owned(),
        };
        let found = self.series.iter().filter(|((of, has), _)| {
            *of == name && labels.iter().all(|label| has.split(',').any(|has| has == *label))
        });
        found.map(|(_, value)| *value).reduce(|sum, value| sum + value)
    }
}

/// Asserts that labels are `name="value",…` with escaped values. No value of ours contains a comma.
pub fn check_labels(labels: &str) {
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{labels:?}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        assert!(!name.is_empty() && value.is_some_and(|value| !value.contains('"')), "{labels:?}");
    }
}

/// The metric that a series belongs to.
pub fn metric_of(series: &str) -> Option<&'static names::Metric> {
    names::ALL.iter().find(|metric| match metric.kind {
        Kind::Histogram(_) => {
            series.strip_prefix(metric.name).is_some_and(|part| ["_bucket", "_sum", "_count"].contains(&part))
        }
        _ => series == metric.name,
    })
}
