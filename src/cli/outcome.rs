//! `couponctl outcome`.

use std::time::Duration;

use clap::Subcommand;

use super::client::{ApiRequest, Noun, PrintingClient, is_retryable, print};
use super::lines::{JsonLine, JsonLineRead};
use super::table::{cell, clean, time};

/// How long the API holds an answer that has no outcome yet.
const WAIT_SECONDS: u32 = 25;
/// The pause after an answer that was cut or did not come.
const RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum OutcomeVerb {
    /// Prints a line for every outcome as it is decided; Ctrl-C ends it and prints where to resume
    #[command(after_long_help = "\
Examples:
  couponctl outcome follow
  couponctl outcome follow --json --after gmWg_wAAAAE >> outcomes.ndjson")]
    Follow {
        /// Resume after this place, an `after` of an earlier run (default: now)
        #[arg(long, value_name = "PLACE")]
        after: Option<String>,
        /// End when every outcome so far is printed
        #[arg(long)]
        once: bool,
    },
}

impl Noun<OutcomeVerb> {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let session = self.api.open()?;
        let OutcomeVerb::Follow { after, once } = self.verb;
        let mut place = after;
        let interrupted = tokio::signal::ctrl_c();
        let ended = tokio::select! {
            ended = follow(&session, &mut place, once) => ended,
            stopped = interrupted => Ok(stopped?),
        };
        if let Some(place) = place {
            eprintln!("`couponctl outcome follow --after {place}` goes on from here");
        }
        ended
    }
}

async fn follow(session: &PrintingClient, place: &mut Option<String>, once: bool) -> anyhow::Result<()> {
    let mut told_of_trouble = false;
    loop {
        let wait = if once { 0 } else { WAIT_SECONDS };
        let began = place.is_some();
        match answer(session, place, wait).await {
            Ok(StreamEnd::Nothing) if once => return Ok(()),
            Ok(StreamEnd::Nothing | StreamEnd::Outcomes) => told_of_trouble = false,
            Ok(StreamEnd::Cut(why)) => trouble(&mut told_of_trouble, &why).await,
            // The first failure ends the command: the API may be the wrong one. A later one may pass.
            Err(error) if began && is_retryable(&error) => {
                trouble(&mut told_of_trouble, &error.to_string()).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn trouble(told: &mut bool, why: &str) {
    if !std::mem::replace(told, true) {
        eprintln!("going on in a moment: {why}");
    }
    tokio::time::sleep(RETRY_AFTER).await;
}

/// What one answer had.
enum StreamEnd {
    Outcomes,
    Nothing,
    Cut(String),
}

async fn answer(
    session: &PrintingClient,
    place: &mut Option<String>,
    wait: u32,
) -> anyhow::Result<StreamEnd> {
    let request = ApiRequest::get("/outcomes").query("after", place.clone()).query("wait", Some(wait));
    let mut lines = session.api.lines(request).await?;
    let mut answered = StreamEnd::Nothing;
    loop {
        match lines.next().await {
            JsonLineRead::Line(line) => {
                *place = line.body["after"].as_str().map(str::to_owned).or(place.take());
                if line.body["end"] == true {
                    return Ok(answered);
                }
                let words = if session.is_json() { line.raw } else { words(&line) };
                print(&words)?;
                answered = StreamEnd::Outcomes;
            }
            JsonLineRead::End => return Ok(StreamEnd::Cut("the last line of the answer is missing".into())),
            JsonLineRead::Cut(why) => return Ok(StreamEnd::Cut(why)),
        }
    }
}

fn words(line: &JsonLine) -> String {
    let body = &line.body;
    let what = match body["outcome"].as_str() {
        Some("issued") => format!("issued    #{}", cell(body, "/serial")),
        Some("rejected") => format!("rejected  {}", cell(body, "/reason")),
        _ => cell(body, "/outcome"),
    };
    let (at, coupon, user) = (time(body, "/decidedAt"), cell(body, "/couponId"), cell(body, "/userId"));
    clean(&format!("{at}  {coupon}  {user}  {what}  {}", cell(body, "/id")))
}
