//! The report of a rush for people.

use crate::cli::table::{details, number, sentence, table, words};
use crate::rush::report::{Percentiles, RunReport};

/// A report for people.
pub(super) fn tables(report: &RunReport) -> String {
    let (figures, settings) = (&report.figures, &report.settings);
    let rate = |rate: Option<f64>| rate.map(|rate| format!("{rate:.0}/s"));
    let ms = |ms: Option<f64>| ms.map(|ms| format!("{ms:.0} ms"));
    let mut text = details(&[
        ("url", Some(settings.url.clone())),
        ("coupon", Some(format!("{}, {} units", report.coupon, report.total))),
        ("seed", Some(settings.seed.to_string())),
        ("ended", report.ended_early.then(|| "early, by a signal".into())),
        (
            "sent",
            Some(format!("{} of {} planned, {} dropped", figures.sent, figures.planned, figures.dropped)),
        ),
        ("accepted", Some(format!("{}, and {} replayed", figures.accepted, figures.replayed))),
        ("offered rate", rate(figures.offered_per_second)),
        ("accepted rate", rate(figures.accepted_per_second)),
        ("issued rate", rate(figures.issued_per_second)),
        ("sold out after", ms(figures.sell_out_ms)),
        (
            "accepted after that",
            Some(figures.accepted_after_sold_out).filter(|count| *count > 0).map(|count| count.to_string()),
        ),
        ("peak backlog", figures.backlog_peak.map(|peak| peak.to_string())),
        ("drained after", ms(figures.drain_ms)),
        ("generator", Some(format!("{:.2} s of processor time", figures.generator_cpu_seconds))),
    ]);
    let latencies = [
        ("accept", report.latency.accept),
        ("refuse", report.latency.refuse),
        ("outcome", report.latency.outcome),
        ("send", report.latency.send),
    ];
    let row = |(name, percentiles): &(&str, Option<Percentiles>)| {
        let one = percentiles.as_ref()?;
        let mut row = vec![(*name).to_owned(), one.count.to_string()];
        let times = [one.p50_ms, one.p90_ms, one.p99_ms, one.p999_ms, one.max_ms];
        row.extend(times.map(|ms| format!("{ms:.1}")));
        Some(row)
    };
    let columns = ["COUNT", "P50 ms", "P90", "P99", "P99.9", "MAX"].map(number);
    let columns: Vec<_> = std::iter::once(words("LATENCY")).chain(columns).collect();
    text.push('\n');
    text.push_str(&table(&columns, latencies.iter().filter_map(row).collect(), "Nothing was answered."));
    let counted = |(name, count): (&&str, &u64)| vec![(*name).to_owned(), count.to_string()];
    text.push('\n');
    text.push_str(&table(
        &[words("ANSWER"), number("COUNT")],
        report.answers.iter().map(counted).collect(),
        "No answers.",
    ));
    text.push('\n');
    text.push_str(&table(
        &[words("OUTCOME"), number("COUNT")],
        report.outcomes.iter().map(counted).collect(),
        "No outcomes.",
    ));
    let judged = report.verdict.judged.iter().map(|one| {
        let ok = if one.ok { "ok" } else { "FAILED" };
        let says = if one.named.is_empty() { one.means.to_owned() } else { one.named.join("; ") };
        vec![one.what.to_owned(), ok.to_owned(), one.count.to_string(), says]
    });
    text.push('\n');
    text.push_str(&table(
        &[words("VERDICT"), words(""), number("COUNT"), sentence("")],
        judged.collect(),
        "Nothing was judged.",
    ));
    let by = match report.verdict.records_read {
        Some(records) => format!("and {records} records of the ledger"),
        None => "the ledger was not read (--mongodb-uri)".into(),
    };
    text.push_str(&format!("judged by what {} users hold; {by}\n", report.verdict.users_asked));
    for met in &report.expectations {
        text.push_str(&format!("{} {met}\n", if met.ok { "met   " } else { "MISSED" }));
    }
    text
}
