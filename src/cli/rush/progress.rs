//! How far a rush is, on standard error: one line that changes on a terminal, a line now and then
//! elsewhere.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::cli::progress::ProgressLine;
use crate::rush::run::{RunPhase, RunSettings};
use crate::rush::sample::TimelineSample;
use crate::rush::virtual_users::VirtualUsers;

/// Shows how far a rush is.
pub(super) struct RunProgress {
    line: ProgressLine,
    requests: usize,
    seed: u64,
    /// The phase that was shown last.
    phase: Mutex<Option<RunPhase>>,
}

impl RunProgress {
    pub(super) fn new(settings: &RunSettings) -> Self {
        let (requests, seed) = (settings.requests, settings.seed);
        RunProgress { line: ProgressLine::start(), requests, seed, phase: Mutex::new(None) }
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
        let begins = self.phase.lock().replace(phase) != Some(phase);
        self.line.state(&text, begins);
    }

    pub(super) fn end(&self) {
        self.line.finish();
    }
}
