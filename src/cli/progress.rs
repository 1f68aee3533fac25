//! Progress of long work, on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// The pause between two lines where standard error is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// What a terminal shows of counted work, and of work whose size is not known.
const COUNT_TEMPLATE: &str = "{spinner} {msg} {wide_bar} {human_pos}/{human_len} {eta}";
const STATE_TEMPLATE: &str = "{spinner} {elapsed} {wide_msg}";

/// A reader of standard error that went away stops no work.
fn write_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Shows progress; clones share one line.
#[derive(Clone)]
pub(super) struct ProgressLine {
    bar: ProgressBar,
    /// When the last line about a count or a state was written; `None` on a terminal.
    lines: Option<Arc<Mutex<Instant>>>,
}

impl ProgressLine {
    pub(super) fn start() -> Self {
        let is_terminal = Term::stderr().is_term();
        ProgressLine {
            bar: if is_terminal { ProgressBar::no_length() } else { ProgressBar::hidden() },
            lines: (!is_terminal).then(|| Arc::new(Mutex::new(Instant::now()))),
        }
    }

    /// Prints a line that stays.
    pub(super) fn say(&self, what: &str) {
        match &self.lines {
            Some(_) => write_line(what),
            None => self.bar.println(what),
        }
    }

    /// Shows that `done` of `of` are done.
    pub(super) fn at(&self, what: &str, done: u64, of: u64) {
        if self.lines.is_some() {
            self.state(&format!("{what}: {done} of {of}"), false);
            return;
        }
        self.draw(COUNT_TEMPLATE, what);
        self.bar.set_length(of);
        self.bar.set_position(done);
    }

    /// Shows a state in place of the one before. Where standard error is no terminal, each state that is `news` is a
    /// line, and of the others one every two seconds at most.
    pub(super) fn state(&self, text: &str, news: bool) {
        let Some(lines) = &self.lines else { return self.draw(STATE_TEMPLATE, text) };
        let mut last = lines.lock();
        if news || last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            write_line(text);
        }
    }

    fn draw(&self, template: &str, message: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(message.to_owned());
    }

    /// Clears the line on a terminal.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
