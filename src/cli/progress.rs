//! Progress of long work, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// The pause between two lines where standard error is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Shows progress; clones share one line.
#[derive(Clone)]
pub(super) struct ProgressLine {
    bar: ProgressBar,
    /// When the last line about a count was written; `None` on a terminal.
    lines: Option<Arc<Mutex<Instant>>>,
}

impl ProgressLine {
    pub(super) fn start() -> Self {
        if !Term::stderr().is_term() {
            return ProgressLine {
                bar: ProgressBar::hidden(),
                lines: Some(Arc::new(Mutex::new(Instant::now()))),
            };
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {msg} {wide_bar} {human_pos}/{human_len} {eta}")
        {
            bar.set_style(style);
        }
        ProgressLine { bar, lines: None }
    }

    /// Prints a line.
    pub(super) fn say(&self, what: &str) {
        match &self.lines {
            Some(_) => eprintln!("{what}"),
            None => self.bar.println(what),
        }
    }

    /// Shows that `done` of `of` are done.
    pub(super) fn at(&self, what: &str, done: u64, of: u64) {
        let Some(lines) = &self.lines else {
            self.bar.set_length(of);
            self.bar.set_message(what.to_owned());
            self.bar.set_position(done);
            return;
        };
        let mut last = lines.lock();
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            eprintln!("{what}: {done} of {of}");
        }
    }

    /// Clears the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
