//! `couponctl coupon export`.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::client::{ApiClient, ApiRequest, is_retryable};
use super::lines::{JsonLine, JsonLineRead};
use super::output::{self, ExistingFile, NewFile};
use super::progress::ProgressLine;
use crate::api::wire::export::{UNREADABLE, titles, units};
use crate::ids::CouponId;

/// An export gives up after this many transfers in a row that broke off without a new unit.
const FRUITLESS_MAX: u32 = 5;
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Lines between two updates of the progress.
const SHOWN_EVERY: u64 = 500;

/// Exports all held units of a coupon, by serial, to a file or to standard output.
///
/// The export resumes by itself if the transfer breaks off. Of a coupon in several shares, units that were moved between
/// them come last, and may be there twice after an interruption: their id tells. It may or may not contain units that are issued meanwhile;
/// `couponctl outcome follow` reports those. In CSV, an apostrophe precedes a cell that a spreadsheet would take for a
/// formula.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  couponctl coupon export summer > summer.ndjson
  couponctl coupon export summer --format csv --output summer.csv
  couponctl coupon export summer --format csv --output summer.csv --after 1700")]
pub(super) struct ExportArgs {
    /// The coupon's id
    id: CouponId,
    /// Format of the export
    #[arg(long, value_enum, default_value_t = ExportFormat::Ndjson)]
    format: ExportFormat,
    /// Write to this new file (default: standard output); with --after, append to it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Export only serials above this one
    #[arg(long, value_name = "SERIAL")]
    after: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    Ndjson,
    Csv,
}

/// An export under way.
struct ExportWriter {
    out: BufWriter<Box<dyn Write + Send>>,
    format: ExportFormat,
    /// The last serial that was written.
    after: u32,
    count: u64,
    /// Units whose record the API cannot read.
    unreadable: u64,
}

/// How one transfer ended.
enum TransferEnd {
    Whole,
    Cut(String),
}

impl ExportArgs {
    pub(super) async fn run(self, api: &ApiClient) -> anyhow::Result<()> {
        let coupon = api.send(ApiRequest::get(format!("/coupons/{}", self.id))).await?;
        let issued = coupon.body["stock"]["issued"].as_u64();
        let (out, file) = self.open()?;
        let mut writing = ExportWriter {
            out: BufWriter::new(out),
            format: self.format,
            after: self.after.unwrap_or(0),
            count: 0,
            unreadable: 0,
        };
        if self.format == ExportFormat::Csv && self.after.is_none() {
            writing.out.write_all(&titles())?;
        }
        let progress = ProgressLine::start();
        let ended = self.write(api, &mut writing, &progress, issued).await;
        progress.finish();
        match file {
            // An empty file would only refuse the next attempt.
            Some(_) if writing.count == 0 && self.after.is_none() && ended.is_err() => {
                return ended.context("no unit was written");
            }
            Some(file) => file.keep()?,
            None => {}
        }
        writing.out.flush()?;
        let ExportWriter { after, count, unreadable, .. } = writing;
        ended.with_context(|| format!("{count} units were written; `--after {after}` goes on from there"))?;
        if unreadable > 0 {
            eprintln!(
                "the records of {unreadable} of them cannot be read: status {UNREADABLE}; the API's log says why"
            );
        }
        if self.output.is_some() {
            eprintln!("{count} units written; the last serial is {after}");
        }
        Ok(())
    }

    /// Where the units go, and the file if it is one.
    fn open(&self) -> anyhow::Result<(Box<dyn Write + Send>, Option<NewFile>)> {
        let Some(path) = &self.output else { return Ok((Box::new(std::io::stdout()), None)) };
        let existing = if self.after.is_some() { ExistingFile::Append } else { ExistingFile::Refuse };
        let (out, file) = output::open(path, existing)
            .with_context(|| format!("cannot write to {} (--output)", path.display()))?;
        Ok((Box::new(out), Some(file)))
    }

    async fn write(
        &self,
        api: &ApiClient,
        writing: &mut ExportWriter,
        progress: &ProgressLine,
        issued: Option<u64>,
    ) -> anyhow::Result<()> {
        let mut fruitless = 0;
        loop {
            let before = writing.after;
            let why = match self.transfer(api, writing, progress, issued).await {
                Ok(TransferEnd::Whole) => return Ok(()),
                Ok(TransferEnd::Cut(why)) => why,
                Err(error) if is_retryable(&error) => error.to_string(),
                Err(error) => return Err(error),
            };
            fruitless = if writing.after > before { 0 } else { fruitless + 1 };
            if fruitless >= FRUITLESS_MAX {
                bail!("the export breaks off again and again: {why}");
            }
            progress.say(&format!("broken off after serial {}, going on: {why}", writing.after));
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    async fn transfer(
        &self,
        api: &ApiClient,
        writing: &mut ExportWriter,
        progress: &ProgressLine,
        issued: Option<u64>,
    ) -> anyhow::Result<TransferEnd> {
        let request = ApiRequest::get(format!("/coupons/{}/user-coupons", self.id))
            .query("format", Some("ndjson"))
            .query("after", Some(writing.after));
        let mut lines = api.lines(request).await?;
        loop {
            match lines.next().await {
                JsonLineRead::Line(line) if line.body["end"] == true => return Ok(TransferEnd::Whole),
                JsonLineRead::Line(line) => writing.unit(&line)?,
                JsonLineRead::End => return Ok(TransferEnd::Cut("its last line is missing".into())),
                JsonLineRead::Cut(why) => return Ok(TransferEnd::Cut(why)),
            }
            if writing.count.is_multiple_of(SHOWN_EVERY) {
                progress.at("units", writing.count, issued.unwrap_or(writing.count).max(writing.count));
            }
        }
    }
}

impl ExportWriter {
    fn unit(&mut self, line: &JsonLine) -> anyhow::Result<()> {
        let serial = line.body["serial"].as_u64().and_then(|serial| u32::try_from(serial).ok());
        let is_unreadable = line.body["status"] == UNREADABLE;
        let serial = serial.or(is_unreadable.then_some(self.after));
        let serial = serial.context("a line has no serial: is this the API?")?;
        match self.format {
            ExportFormat::Ndjson => writeln!(self.out, "{}", line.raw)?,
            ExportFormat::Csv => self.out.write_all(&units([&line.body]))?,
        }
        self.after = serial;
        self.count += 1;
        self.unreadable += u64::from(is_unreadable);
        Ok(())
    }
}
