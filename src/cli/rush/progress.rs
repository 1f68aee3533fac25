//! How far a rush is, on standard error: one line that changes on a terminal, a line now and then
//! elsewhere.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::Term;
use parking_lot::Mutex;

use crate::cli::table::fit;
use crate::rush::run::{RunPhase, RunSettings};
use crate::rush::sample::TimelineSample;
use crate::rush::virtual_users::VirtualUsers;

/// Where progress goes to no terminal, a line in this time.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows how far a rush is.
pub(super) struct RunProgress {
    term: Option<Term>,
    requests: usize,
    seed: u64,
    shown: Mutex<(Option<RunPhase>, Instant)>,
}

impl RunProgress {
    pub(super) fn new(settings: &RunSettings) -> Self {
        let term = Term::stderr();
        RunProgress {
            term: term.is_term().then_some(term),
            requests: settings.requests,
            seed: settings.seed,
            shown: Mutex::new((None, Instant::now())),
        }
    }

    pub(super) fn tell(&self, phase: RunPhase, seen: Option<(&Arc<VirtualUsers>, Option<TimelineSample>)>) {
        let text = match (phase, seen) {
            (RunPhase::SettingUp, _) | (_, None) => {
                format!("setting up: users, a coupon (seed {})", self.seed)
            }
            (phase, Some((people, latest))) => {
                let name = match phase {
                    RunPhase::Draining => "draining",
                    RunPhase::Judging => "judging",
                    _ => "sending",
                };
                let live = &people.live;
                let left = latest.and_then(|sample| sample.stock).map(|stock| stock.remaining);
                let backlog = latest.and_then(|sample| sample.backlog);
                let known = |number: Option<u64>| number.map_or("?".into(), |number| number.to_string());
                format!(
                    "{name} sent={} of={} accepted={} refused={} issued={} left={} backlog={} dropped={} unanswered={}",
                    live.sent.get(),
                    people.plan.visits.len().max(self.requests),
                    live.accepted.get(),
                    live.refused.get(),
                    live.issued.get(),
                    known(left),
                    known(backlog),
                    live.dropped.get(),
                    live.faults.get(),
                )
            }
        };
        let mut shown = self.shown.lock();
        // A terminal that takes no text stops no run.
        let _ = match &self.term {
            Some(term) => {
                let width = usize::from(term.size().1);
                term.clear_line().and_then(|()| term.write_str(&fit(&text, width)))
            }
            None if shown.0 == Some(phase) && shown.1.elapsed() < LINE_EVERY => return,
            None => writeln!(std::io::stderr(), "{text}"),
        };
        *shown = (Some(phase), Instant::now());
    }

    pub(super) fn end(&self) {
        if let Some(term) = &self.term {
            let _ = term.clear_line();
        }
    }
}
