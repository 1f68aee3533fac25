//! The rules and dashboards that operators deploy (`deploy/observability`, `deploy/kubernetes`): they name metrics that
//! exist, with labels that exist, and each alert has its section in the runbook. That Prometheus takes them, and that
//! the alerts fire, is tested by `tests/observability/run`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use coupon_system::metrics::names::{ALL, Kind, Metric};
use regex::Regex;

/// Labels that the scrape settings give, and the one of a histogram's buckets.
const TARGET_LABELS: &[&str] = &["deployment", "job", "instance", "le"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files below a folder.
fn files_in(folder: PathBuf) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let entries = entries.map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files_in(path) } else { vec![path] }).collect()
}

/// The metric of a series: a histogram has three series.
fn metric_of(series: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| {
        metric.name == series
            || matches!(metric.kind, Kind::Histogram(_))
                && ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| series.strip_suffix(suffix) == Some(metric.name))
    })
}

#[test]
fn files_for_operators_name_metrics_and_labels_that_exist() {
    let series = Regex::new(r#"\b((?:coupon|http|process)_[a-z_]+)\b(?:\{((?:[^}"]|\\?"[^"]*")*)\})?"#)
        .expect("a pattern");
    let matcher = Regex::new(r"([a-z_]+)\s*(?:=~|!~|!=|=)").expect("a pattern");
    let mut named = 0;
    for path in ["deploy/kubernetes", "deploy/observability", "tests/observability"]
        .into_iter()
        .flat_map(|folder| files_in(root().join(folder)))
    {
        let is_query = path
            .extension()
            .is_some_and(|extension| ["yml", "yaml", "json"].iter().any(|known| extension == *known));
        if !is_query {
            continue;
        }
        for found in series.captures_iter(&read(&path)) {
            let metric = metric_of(&found[1]);
            let metric = metric.unwrap_or_else(|| panic!("{}: no metric {}", path.display(), &found[1]));
            let labels = found.get(2).map_or("", |labels| labels.as_str());
            for label in matcher.captures_iter(labels) {
                let exists = TARGET_LABELS.contains(&&label[1])
                    || metric.labels.iter().any(|known| known.0 == &label[1]);
                assert!(exists, "{}: {} has no label {}", path.display(), metric.name, &label[1]);
            }
            named += 1;
        }
    }
    assert!(named > 100, "{named}");
}

#[test]
fn the_dashboard_shows_every_metric() {
    let dashboard = read("deploy/observability/grafana/dashboards/coupon-system.json");
    for metric in ALL {
        assert!(dashboard.contains(metric.name), "no panel shows {}", metric.name);
    }
}

#[test]
fn each_alert_has_its_section_in_the_runbook_and_a_link_to_it() {
    let rules = read("deploy/observability/rules.yml");
    let named = |pattern: &str| -> BTreeSet<String> {
        let pattern = Regex::new(pattern).expect("a pattern");
        pattern.captures_iter(&rules).map(|found| found[1].to_owned()).collect()
    };
    let alerts = named(r"- alert: (\w+)");
    let links = named(r"runbook_url: deploy/docs/runbook\.md#(\w+)");
    assert_eq!(links, alerts.iter().map(|alert| alert.to_lowercase()).collect());
    let heading = Regex::new(r"(?m)^#+ (Coupon\w+)$").expect("a pattern");
    for page in ["deploy/docs/runbook.md", "deploy/docs/ko/runbook.md"] {
        let sections: BTreeSet<_> =
            heading.captures_iter(&read(page)).map(|found| found[1].to_owned()).collect();
        assert_eq!(sections, alerts, "{page}");
    }
}
