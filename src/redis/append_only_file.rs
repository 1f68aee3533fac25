//! Redis's append-only file: its size, how its rewrites went, and asking for one.
//!
//! A rewrite replaces the commands that led to the data by the data itself. Redis forks for it: the child writes the
//! new file, and competes for the disk and for a core meanwhile.

use std::time::Duration;

use redis::RedisError;

use crate::Failure;
use crate::redis::{Partition, cmd};

/// The append-only file, as Redis describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppendOnlyFile {
    /// Its size, in bytes.
    pub bytes: u64,
    /// Its size after the last rewrite or the start of Redis, whichever was later, in bytes.
    pub base_bytes: u64,
    /// A rewrite runs, or is scheduled.
    pub is_rewriting: bool,
    /// The last rewrite failed.
    pub has_failed: bool,
    /// How long the last rewrite took, in whole seconds; `None` if there was none since Redis started.
    pub last_rewrite: Option<Duration>,
    /// How long Redis stood still for its last fork; zero if there was none, `None` if it does not tell.
    pub last_fork: Option<Duration>,
}

/// The answer to a request for a rewrite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RewriteAnswer {
    /// It runs, or is scheduled: because of this request, or since before.
    Begun,
    /// Redis lets this process ask for none: it has no right to the command, or there is no such command.
    Forbidden(String),
}

impl AppendOnlyFile {
    /// The bytes that were appended since the last rewrite or the start of Redis.
    pub fn growth(&self) -> u64 {
        self.bytes.saturating_sub(self.base_bytes)
    }

    /// Parses the sections `persistence` and `stats` of INFO; `None` if Redis has no append-only file or does not
    /// describe it.
    pub(crate) fn parse(info: &str) -> Option<Self> {
        let text = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = |name: &str| text(name).and_then(|number| number.parse::<u64>().ok());
        let is_set = |name: &str| text(name) == Some("1");
        if !is_set("aof_enabled") {
            return None;
        }
        Some(AppendOnlyFile {
            bytes: number("aof_current_size")?,
            base_bytes: number("aof_base_size")?,
            is_rewriting: is_set("aof_rewrite_in_progress") || is_set("aof_rewrite_scheduled"),
            has_failed: text("aof_last_bgrewrite_status").is_some_and(|status| status != "ok"),
            // -1 stands for none.
            last_rewrite: number("aof_last_rewrite_time_sec").map(Duration::from_secs),
            last_fork: number("latest_fork_usec").map(Duration::from_micros),
        })
    }
}

/// Reads the state of the append-only file; `None` if Redis has none, or does not describe it. Cheap.
///
/// # Errors
///
/// If Redis fails.
pub async fn append_only_file(partition: &Partition) -> Result<Option<AppendOnlyFile>, Failure> {
    let mut info = cmd("INFO");
    info.arg("persistence").arg("stats");
    let info: String = partition.query("describe its append-only file", &info).await?;
    Ok(AppendOnlyFile::parse(&info))
}

/// Asks Redis to rewrite its append-only file, in the background.
///
/// # Errors
///
/// If Redis fails, or cannot begin: it cannot fork, for example.
pub(crate) async fn rewrite(partition: &Partition) -> Result<RewriteAnswer, Failure> {
    let asked: Result<String, RedisError> =
        cmd("BGREWRITEAOF").query_async(&mut partition.connection()).await;
    match asked {
        Ok(_) => Ok(RewriteAnswer::Begun),
        Err(error) if error.code() == Some("NOPERM") || says(&error, "unknown command") => {
            Ok(RewriteAnswer::Forbidden(error.to_string()))
        }
        Err(error) if says(&error, "already in progress") => Ok(RewriteAnswer::Begun),
        Err(error) => Err(Failure::redis("rewrite its append-only file")(error)),
    }
}

fn says(error: &RedisError, words: &str) -> bool {
    error.detail().is_some_and(|detail| detail.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Persistence\r\nloading:0\r\naof_enabled:1\r\naof_rewrite_in_progress:0\r\n\
        aof_rewrite_scheduled:1\r\naof_last_rewrite_time_sec:-1\r\naof_last_bgrewrite_status:err\r\n\
        aof_current_size:900\r\naof_base_size:1000\r\n# Stats\r\nlatest_fork_usec:1500\r\n";

    #[test]
    fn the_file_is_read_from_what_redis_tells() {
        let expected = AppendOnlyFile {
            bytes: 900,
            base_bytes: 1_000,
            is_rewriting: true,
            has_failed: true,
            last_rewrite: None,
            last_fork: Some(Duration::from_micros(1_500)),
        };
        assert_eq!(AppendOnlyFile::parse(INFO), Some(expected));
        assert_eq!(expected.growth(), 0);
        let rewritten = INFO.replace("time_sec:-1", "time_sec:3").replace("status:err", "status:ok");
        let rewritten = AppendOnlyFile::parse(&rewritten).expect("there is a file");
        assert_eq!((rewritten.last_rewrite, rewritten.has_failed), (Some(Duration::from_secs(3)), false));
    }

    #[test]
    fn without_a_file_or_without_its_description_there_is_none() {
        for info in
            [INFO.replace("enabled:1", "enabled:0"), INFO.replace("aof_base_size", "other"), String::new()]
        {
            assert_eq!(AppendOnlyFile::parse(&info), None, "{info}");
        }
    }
}
