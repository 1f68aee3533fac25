//! `couponctl watch`: coupons, workers and dead letters as they change.
//!
//! On a terminal the command redraws the screen every second. Elsewhere it prints a line of totals each second, and a
//! line for every coupon whose figures changed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;
use console::Term;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

use super::client::{ApiClient, ApiRequest, ApiResponse, ApiTarget, CallError, print};
use super::{coupon, dead_letter, table, worker};

const EVERY: Duration = Duration::from_secs(1);
/// The newest coupons that are shown; more would not fit on a screen.
const COUPONS_MAX: u32 = 50;

/// Shows coupons, workers and dead letters as they change.
///
/// On a terminal the command redraws the screen every second. Elsewhere it prints a line of totals each second, and a
/// line for every coupon whose figures changed. It ends on Ctrl-C, or after --for.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl watch
  couponctl watch --for 60 > figures.log")]
pub(super) struct WatchArgs {
    /// End after this many seconds (default: on Ctrl-C)
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: Option<u32>,
    #[command(flatten)]
    target: ApiTarget,
}

/// The service at one moment.
struct ServiceSnapshot {
    at: Timestamp,
    coupons: ApiResponse,
    workers: ApiResponse,
    dead_letters: ApiResponse,
}

impl WatchArgs {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let api = self.target.open()?;
        // The first failure ends the command: the API may be the wrong one. A later one may pass.
        let mut seen = Ok(read_snapshot(&api).await?);
        let term = Term::stdout();
        let mut shown: Box<dyn SnapshotOutput> =
            if term.is_term() { Box::new(ScreenOutput::new(term)?) } else { Box::<LineOutput>::default() };
        let ends = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let end = async {
            match ends {
                Some(ends) => tokio::time::sleep_until(ends.into()).await,
                None => std::future::pending().await,
            }
        };
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(end, interrupted);
        loop {
            shown.show(&seen)?;
            tokio::select! {
                () = &mut end => return Ok(()),
                stopped = &mut interrupted => return Ok(stopped?),
                next = async { ticks.tick().await; read_snapshot(&api).await } => seen = next,
            }
        }
    }
}

async fn read_snapshot(api: &ApiClient) -> Result<ServiceSnapshot, CallError> {
    let (coupons, workers, dead_letters) = tokio::try_join!(
        api.send(ApiRequest::get("/coupons").query("limit", Some(COUPONS_MAX))),
        api.send(ApiRequest::get("/workers")),
        api.send(ApiRequest::get("/dead-letters")),
    )?;
    Ok(ServiceSnapshot { at: Timestamp::now(), coupons, workers, dead_letters })
}

impl ServiceSnapshot {
    fn coupons(&self) -> impl Iterator<Item = &Value> {
        self.coupons.body["items"].as_array().into_iter().flatten()
    }

    fn time(&self) -> String {
        format!("{:.0}", self.at)
    }

    fn workers_alive(&self) -> (usize, usize) {
        let all = self.workers.body.as_array().map_or(&[][..], Vec::as_slice);
        (all.iter().filter(|worker| worker["alive"] == true).count(), all.len())
    }

    /// How many dead letters there are.
    fn dead_letters(&self) -> &Value {
        &self.dead_letters.body["matched"]
    }
}

/// A way to show snapshots.
trait SnapshotOutput {
    fn show(&mut self, seen: &Result<ServiceSnapshot, CallError>) -> anyhow::Result<()>;
}

/// Lines for a log or another program.
#[derive(Default)]
struct LineOutput {
    /// The last line of each coupon, without its time.
    told: HashMap<String, String>,
}

impl SnapshotOutput for LineOutput {
    fn show(&mut self, seen: &Result<ServiceSnapshot, CallError>) -> anyhow::Result<()> {
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(());
            }
        };
        let (alive, workers) = seen.workers_alive();
        let mut text = format!(
            "{} workers={workers} workers_alive={alive} dead_letters={}\n",
            seen.time(),
            seen.dead_letters()
        );
        for coupon in seen.coupons() {
            let figure = |pointer: &str| table::clean(&table::cell(coupon, pointer));
            let id = figure("/id");
            let line = format!(
                "coupon={id} status={} remaining={} reserved={} issued={} total={}",
                figure("/status"),
                figure("/stock/remaining"),
                figure("/stock/reserved"),
                figure("/stock/issued"),
                figure("/stock/total"),
            );
            if self.told.get(&id) != Some(&line) {
                text.push_str(&format!("{} {line}\n", seen.time()));
                self.told.insert(id, line);
            }
        }
        print(&text)
    }
}

/// A terminal, redrawn with each snapshot.
struct ScreenOutput {
    term: Term,
    /// The last good snapshot, shown while the service does not answer.
    last: String,
}

impl ScreenOutput {
    fn new(term: Term) -> anyhow::Result<Self> {
        term.hide_cursor()?;
        term.clear_screen()?;
        Ok(ScreenOutput { term, last: String::new() })
    }
}

impl SnapshotOutput for ScreenOutput {
    fn show(&mut self, seen: &Result<ServiceSnapshot, CallError>) -> anyhow::Result<()> {
        let text = match seen {
            Ok(seen) => {
                let (alive, workers) = seen.workers_alive();
                self.last = format!(
                    "{}   workers {alive} of {workers} alive   dead letters {}   (Ctrl-C ends)\n\n{}\n{}\n{}",
                    seen.time(),
                    seen.dead_letters(),
                    coupon::list(&seen.coupons.body),
                    worker::workers(&seen.workers.body),
                    dead_letter::list(&seen.dead_letters.body),
                );
                self.last.clone()
            }
            Err(error) => format!("error: {error}\n\nbefore:\n{}", self.last),
        };
        let (rows, columns) = self.term.size();
        // One line is left for the cursor, so that the screen never scrolls.
        let rows = usize::from(rows).saturating_sub(1);
        let mut drawn = String::from("\u{1b}[H");
        for line in text.lines().take(rows) {
            drawn.push_str(&table::fit(line, columns.into()));
            drawn.push_str("\u{1b}[K\n");
        }
        drawn.push_str("\u{1b}[J");
        self.term.write_str(&drawn)?;
        self.term.flush()?;
        Ok(())
    }
}

impl Drop for ScreenOutput {
    fn drop(&mut self) {
        // A terminal that is gone needs no cursor.
        let _ = self.term.show_cursor();
    }
}
