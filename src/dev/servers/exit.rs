//! Why a server ended while it was starting, as far as its output tells, and what to do about it.

use std::{fmt, path::PathBuf, process::ExitStatus};

const LINES_SHOWN_MAX: usize = 12;
const LINE_CHARS_SHOWN_MAX: usize = 300;

/// A server that ended before it was ready.
#[derive(Debug)]
pub(super) struct ServerExit {
    pub(super) name: &'static str,
    pub(super) status: ExitStatus,
    pub(super) port: u16,
    pub(super) log: PathBuf,
    /// What it wrote since it was started.
    pub(super) output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitCause {
    PortTaken,
    DiskFull,
    MissingLibrary,
    NotAllowed,
    OtherVersion,
    Unknown,
}

impl ExitCause {
    fn of(output: &str) -> Self {
        let signs = [
            ("Address already in use", Self::PortTaken),
            ("No space left on device", Self::DiskFull),
            ("error while loading shared libraries", Self::MissingLibrary),
            ("Permission denied", Self::NotAllowed),
            ("UPGRADE PROBLEM", Self::OtherVersion),
            ("incompatible with version", Self::OtherVersion),
            ("Can't handle RDB format version", Self::OtherVersion),
        ];
        signs
            .into_iter()
            .find_map(|(sign, cause)| output.contains(sign).then_some(cause))
            .unwrap_or(Self::Unknown)
    }
}

impl ServerExit {
    pub(super) fn cause(&self) -> ExitCause {
        ExitCause::of(&self.output)
    }
}

impl fmt::Display for ServerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, status, port, .. } = self;
        let log = self.log.display();
        write!(f, "{name} ended while it was starting ({status}): ")?;
        match self.cause() {
            ExitCause::PortTaken => write!(
                f,
                "port {port} is taken; end what listens on 127.0.0.1:{port}, or choose another port"
            )?,
            ExitCause::DiskFull => write!(f, "the disk is full; make room where {log} is")?,
            ExitCause::MissingLibrary => write!(
                f,
                "a shared library is missing; install it, or delete the folder of the fetched \
                 servers (COUPON_SERVERS_DIR, else ~/.cache/coupon-system/servers) and try again"
            )?,
            ExitCause::NotAllowed => {
                write!(f, "it was refused access to a file; give this user the folder of {log}")?
            }
            ExitCause::OtherVersion => write!(
                f,
                "its data was written by another version; start it with that version, or empty the \
                 folder of {log}"
            )?,
            ExitCause::Unknown => write!(f, "its output says why")?,
        }
        write!(f, "\nfrom {log}:\n{}", tail(&self.output))
    }
}

impl std::error::Error for ServerExit {}

/// The last lines worth showing. mongod writes JSON, and after an error some forty lines about its
/// shutdown: of those only errors and fatal errors are kept.
pub(super) fn tail(output: &str) -> String {
    let is_news = |line: &&str| {
        !line.trim().is_empty()
            && (!line.starts_with('{') || line.contains(r#""s":"E""#) || line.contains(r#""s":"F""#))
    };
    let mut lines: Vec<&str> = output.lines().filter(is_news).collect();
    if lines.is_empty() {
        lines = output.lines().collect();
    }
    let first_shown = lines.len().saturating_sub(LINES_SHOWN_MAX);
    let shown: Vec<String> = lines[first_shown..]
        .iter()
        .map(|line| format!("  {}", line.chars().take(LINE_CHARS_SHOWN_MAX).collect::<String>()))
        .collect();
    if shown.is_empty() { "  (no output)".to_owned() } else { shown.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_tells_the_cause() {
        let cases = [
            ("bind: Address already in use", ExitCause::PortTaken),
            ("write error: No space left on device", ExitCause::DiskFull),
            (
                "mongod: error while loading shared libraries: libcurl.so.4: cannot open",
                ExitCause::MissingLibrary,
            ),
            ("", ExitCause::Unknown),
        ];
        for (output, cause) in cases {
            assert_eq!(ExitCause::of(output), cause, "{output}");
        }
    }

    #[test]
    fn of_json_lines_only_errors_are_shown() {
        let output = "{\"s\":\"I\",\"msg\":\"starting\"}\n\
                      {\"s\":\"E\",\"msg\":\"the reason\"}\n\
                      {\"s\":\"I\",\"msg\":\"shutting down\"}\n";
        assert_eq!(tail(output), "  {\"s\":\"E\",\"msg\":\"the reason\"}");
        assert_eq!(tail("{\"s\":\"I\"}\n"), "  {\"s\":\"I\"}");
        assert_eq!(tail(""), "  (no output)");
    }
}
