//! `couponctl bench`: measures the system and compares the figures with its targets.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::progress::ProgressLine;
use super::table::{number, sentence, table, words};
use crate::bench;
use crate::bench::report::{BenchReport, FigureRow};
use crate::bench::{BenchSection, IS_RELEASE, bare};
use crate::failure::Fault;
use crate::runtime::telemetry::LogFormat;
use crate::runtime::{shutdown, telemetry};

/// Measures how fast the system is, as ratios to plain programs that are measured beside it.
///
/// The bench starts redis-server, mongod and the system's own programs in a temporary folder, and needs nothing else.
/// All of them run on this machine: let it do nothing else meanwhile.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl bench
  couponctl bench --only accept,drain
  couponctl bench --quick --json > bench.json
  couponctl bench --enforce

Build with `cargo build --release`: figures of a debug build mean nothing. The
folder must be on a disk like that of your Redis, because most of the cost of
durability is the disk's (fsyncMicros is the time of one sync, in microseconds).

JSON is one object: version, build, quick, cores, fsyncMicros, startedAt, targets
[{name, value, atLeast or atMost, ok}], and an object for each section, null if it
was not measured: accept, drain, latency, redis, nodes, overload, rewrite, ready.
The rows of the table are named as their fields; src/bench documents each. Where there were several
rounds, a figure is {median, min, max, rounds}.

Exit codes:
  0  measured
  1  the bench could not be finished
  2  the command line is wrong
  3  a target was missed, and --enforce was given
  5  the environment is wrong")]
pub(super) struct BenchArgs {
    /// Measure only these sections, separated by commas (default: all)
    #[arg(long, value_enum, value_name = "SECTION", value_delimiter = ',')]
    only: Vec<BenchSection>,
    /// Use small sizes: rough figures in less than two minutes
    #[arg(long)]
    quick: bool,
    /// Exit with 3 if a target is missed
    #[arg(long)]
    enforce: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Folder in which the bench makes its temporary folder (default: the operating system's)
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Serve the handler that the bench compares the API with; the bench starts it itself
    #[arg(long, hide = true, exclusive = true)]
    serve_bare: bool,
}

impl BenchArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let stop = shutdown::on_signal()?;
        if self.serve_bare {
            telemetry::start(LogFormat::Json, "info")?;
            return bare::serve(stop).await;
        }
        if !IS_RELEASE && self.enforce {
            let why =
                "this is a debug build, whose figures mean nothing: build with `cargo build --release`\n";
            return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, why).into());
        }
        let progress = ProgressLine::start();
        if !IS_RELEASE {
            progress.say("WARNING: this is a debug build, and its figures mean nothing; build with `cargo build --release`");
        }
        let sections = if self.only.is_empty() { BenchSection::value_variants() } else { &self.only };
        let folder = self.folder.clone().unwrap_or_else(std::env::temp_dir);
        let measured = bench::run(&folder, sections, self.quick, &stop, &|what| progress.say(what)).await;
        progress.finish();
        let report = measured.context("the bench could not be finished")?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", tables(&report));
        }
        let missed: Vec<_> = report.targets.iter().filter(|target| !target.ok).collect();
        if self.enforce && !missed.is_empty() {
            let missed: Vec<_> = missed
                .iter()
                .map(|judged| {
                    format!("{} is {}, and is to be {}", judged.name, plain(judged.value), judged.target)
                })
                .collect();
            return Err(Fault::Threshold(format!("missed: {}", missed.join("; "))).into());
        }
        Ok(())
    }
}

fn tables(report: &BenchReport) -> String {
    let columns =
        [words("FIGURE"), number("VALUE"), words("ROUNDS"), words("TARGET"), words(""), sentence("OF")];
    let mut text = format!(
        "{} build, {} cores, {:.0} µs a sync to disk{}\n",
        report.build,
        report.cores,
        report.fsync_micros,
        if report.quick { ", quick" } else { "" }
    );
    for (name, rows) in report.sections() {
        let rows = rows.iter().map(cells).collect();
        text.push_str(&format!("\n{name}\n{}", table(&columns, rows, "nothing")));
    }
    text
}

fn cells(row: &FigureRow) -> Vec<String> {
    let ok = row.judged().map_or("", |judged| if judged.ok { "ok" } else { "MISSED" });
    vec![
        row.name.clone(),
        plain(row.value),
        row.range.map(|(min, max)| format!("{} – {}", plain(min), plain(max))).unwrap_or_default(),
        row.target.map(|target| target.to_string()).unwrap_or_default(),
        ok.into(),
        row.says.clone(),
    ]
}

/// As many digits as mean something.
fn plain(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
