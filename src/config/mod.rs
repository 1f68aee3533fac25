//! Every setting: a struct a topic, each field with its flag and its variable. A flag wins over its
//! variable, or over the file that a variable of a secret may name; there are no other sources. What must fit together
//! is checked at boot ([`crate::process`]).

mod access;
mod ingress;
mod secret_file;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command, Parser};

pub use access::AccessConfig;
pub use secret_file::{FILE_SUFFIX, SECRET_VARIABLES, documented};

use crate::failure::SetUpError;
use crate::mongo::{self, Database};
use crate::recovery::Durability;
use crate::runtime::telemetry::LogFormat;
use crate::text::never_shown;
pub use ingress::IngressConfig;

/// A URL for people to see: without user, password and options.
pub(crate) fn shown_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "…".into() };
    // A user's part that is not encoded may have any of these in it.
    let (hidden, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("…@", rest));
    let shown = rest.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{hidden}{shown}")
}

/// Reads the command line and the environment; ends the process if they are wrong. A variable that is empty
/// is as if it were not set: that is how many tools say so.
///
/// Neither an error nor the help repeats a value: it may be a secret, or one that was put there by mistake.
pub fn parse<C: Parser>() -> C {
    let declared = documented(C::command());
    let mut command = prepared(declared.clone(), is_empty);
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let parsed = parsed.and_then(|matches| {
        let file_of = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        // As declared: an argument whose variable is empty has lost its name in the other.
        let with_files = secret_file::with_files(declared, &matches, &file_of)?;
        prepared(with_files, is_empty).try_get_matches_from(std::env::args_os())
    });
    let read = parsed.and_then(|matches| C::from_arg_matches(&matches));
    read.unwrap_or_else(|error| without_value(error).format(&mut command).exit())
}

/// The error without the value that is wrong.
fn without_value(mut error: clap::Error) -> clap::Error {
    let hidden = || ContextValue::String("…".into());
    if let Some(ContextValue::String(_)) = error.get(ContextKind::InvalidValue) {
        error.insert(ContextKind::InvalidValue, hidden());
    }
    if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
        && error.kind() == ErrorKind::UnknownArgument
        && !argument.starts_with('-')
    {
        error.insert(ContextKind::InvalidArg, hidden());
        error.remove(ContextKind::Suggested);
    }
    error
}

fn is_empty(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| value.is_empty())
}

/// The command, and all commands in it, without the variables that are empty, and with help that shows of the
/// others only that they are there.
pub(crate) fn prepared(command: Command, is_empty: fn(&OsStr) -> bool) -> Command {
    let prepare = |argument: Arg| match argument.get_env().map(&is_empty) {
        Some(true) => argument.env(Resettable::Reset),
        _ => argument.hide_env_values(true),
    };
    command.mut_args(prepare).mut_subcommands(|verb| prepared(verb, is_empty))
}

never_shown!(RedisConfig, MongoConfig, LogConfig, ApiConfig);

/// Where Redis is, and how durable it must be.
#[derive(Clone, Args)]
#[command(next_help_heading = "Redis")]
pub struct RedisConfig {
    /// URL of the Redis that holds stock and queue, such as rediss://USER:PASSWORD@HOST:6379/0; of a cluster, such as
    /// redis+cluster://HOST:6379,HOST:6379 (any of its nodes will do); or of Sentinels, such as
    /// redis+sentinel://HOST:26379,HOST:26379/SERVICE/0. With TLS: rediss+cluster, rediss+sentinel
    #[arg(long, env = "COUPON_REDIS_URL", value_name = "URL", default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,

    /// How durable Redis must be for a process to start
    #[arg(long, env = "COUPON_REDIS_DURABILITY", value_name = "LEVEL", value_enum, default_value = "always")]
    pub redis_durability: Durability,

    /// Replicas that must have an accepted request before it is answered with 202; fewer, and the answer is 503. It is
    /// exact only if these are all replicas of a primary: Redis may promote one that did not acknowledge
    #[arg(long, env = "COUPON_REDIS_ACKNOWLEDGED_BY", value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=8))]
    pub redis_acknowledged_by: u8,
}

/// Where MongoDB is.
#[derive(Clone, Args)]
#[command(next_help_heading = "MongoDB")]
pub struct MongoConfig {
    /// URI of the MongoDB replica set that holds the ledger
    #[arg(
        long,
        env = "COUPON_MONGODB_URI",
        value_name = "URI",
        default_value = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
    )]
    pub mongodb_uri: String,

    /// Name of the ledger's database
    #[arg(long, env = "COUPON_MONGODB_DATABASE", value_name = "NAME", default_value = "coupon")]
    pub mongodb_database: String,
}

impl MongoConfig {
    /// Connects to the database.
    ///
    /// # Errors
    ///
    /// If the URI cannot be used. The error repeats nothing of it.
    pub(crate) async fn connect(&self) -> Result<Database, SetUpError> {
        let connected = mongo::connect(&self.mongodb_uri, &self.mongodb_database).await;
        connected.map_err(|why| SetUpError(vec![format!("--mongodb-uri: {why}")]))
    }
}

/// What a process logs, to standard error.
#[derive(Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogConfig {
    /// Format of log lines
    #[arg(long, env = "COUPON_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// Which lines a process logs: a level (error, warn, info, debug, trace), or a filter such as
    /// coupon_system=debug,info
    #[arg(long, env = "COUPON_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// How the API answers.
#[derive(Clone, Args)]
#[command(next_help_heading = "API")]
pub struct ApiConfig {
    /// Address on which the API serves HTTP
    #[arg(long, env = "COUPON_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub listen: SocketAddr,

    /// URL under which clients reach the API, if that is not the listen address; the API puts its path before every
    /// link
    #[arg(long, env = "COUPON_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,

    /// Seconds from SIGTERM until the API stops accepting requests. Until then it serves everything, and /readyz
    /// answers 503, so that load balancers have time to notice
    #[arg(long, env = "COUPON_SHUTDOWN_DELAY", value_name = "SECONDS", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub shutdown_delay: u32,

    #[command(flatten)]
    pub access: AccessConfig,

    #[command(flatten)]
    pub limits: ApiLimits,
}

/// How much the API accepts, and how much it keeps in memory.
#[derive(Debug, Clone, Args)]
pub struct ApiLimits {
    /// Refuse users who are not registered; with `false`, the API accepts every user id that a caller sends
    #[arg(long, env = "COUPON_REQUIRE_REGISTERED_USERS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub require_registered_users: bool,

    /// Most issuances that may wait for a decision; beyond them the API answers requests with 503
    #[arg(long, env = "COUPON_BACKLOG_MAX", value_name = "NUMBER", default_value_t = 1_000_000)]
    pub backlog_max: u64,

    /// Seconds between two audits of the accounts, which one API process at a time runs; 0 for none
    #[arg(long, env = "COUPON_AUDIT_EVERY", value_name = "SECONDS", default_value_t = 30)]
    pub audit_every: u32,

    /// Seconds from the request to delete a user until the API anonymises their records, at least 1. Give every API
    /// process the same value: one that has not reached MongoDB for half as long asks it about every user
    #[arg(long, env = "COUPON_USER_DELETION_DELAY", value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub user_deletion_delay: u32,

    /// Days for which the API keeps the record of a rejection after its coupon ended; 0 for ever
    #[arg(long, env = "COUPON_TOMBSTONE_RETENTION_DAYS", value_name = "DAYS", default_value_t = 400,
        value_parser = clap::value_parser!(u32).range(0..=36_500))]
    pub tombstone_retention_days: u32,

    /// Decided outcomes that each API process keeps in memory for polls
    #[arg(long, env = "COUPON_OUTCOME_CACHE", value_name = "NUMBER", default_value_t = 200_000)]
    pub outcome_cache: usize,

    /// Registered users that each API process keeps in memory
    #[arg(long, env = "COUPON_USER_CACHE", value_name = "NUMBER", default_value_t = 1_000_000)]
    pub user_cache: usize,

    #[command(flatten)]
    pub ingress: IngressConfig,
}

/// Where a worker serves its probes, and how much it works on at once.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Worker")]
pub struct WorkerConfig {
    /// Address on which the worker serves health probes and metrics
    #[arg(long, env = "COUPON_METRICS_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    pub metrics_listen: SocketAddr,

    #[command(flatten)]
    pub concurrency: Concurrency,
}

/// How many entries a worker works on at once.
#[derive(Debug, Clone, Copy, Args)]
pub struct Concurrency {
    /// Batches that a worker has in progress at once, 1 to 64
    #[arg(long = "concurrency", env = "COUPON_CONCURRENCY", value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub batches: u16,

    /// Most entries in a batch, 1 to 1000
    #[arg(long = "batch", env = "COUPON_BATCH", value_name = "NUMBER", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub batch_size: u16,
}

/// Serves the API: accepts requests, reserves stock, queues issuances, answers polls.
///
/// Workers (coupon-worker) decide what the API accepts. Any number of each may run on the same Redis and MongoDB.
///
/// The first SIGTERM makes the API finish what it has in hand, after --shutdown-delay; a second one ends it at once.
#[derive(Debug, Parser)]
#[command(
    name = "coupon-api",
    version,
    after_long_help = "\
Examples:
  coupon-api --open
  coupon-api --listen 0.0.0.0:3000 --redis-url redis://10.0.0.5:6379 \\
      --mongodb-uri 'mongodb://10.0.0.6:27017/?replicaSet=rs0' \\
      --jwt-algorithm RS256 --jwt-issuer https://login.example \\
      --jwt-audience coupons --jwt-jwks-file jwks.json

Callers without a user's token need an API key: `couponctl key create` makes one."
)]
pub struct ApiCommand {
    #[command(flatten)]
    pub api: ApiConfig,
    #[command(flatten)]
    pub redis: RedisConfig,
    #[command(flatten)]
    pub mongodb: MongoConfig,
    #[command(flatten)]
    pub log: LogConfig,
}

/// Drains the queue: decides issuances in MongoDB and settles them in Redis.
///
/// Any number of workers may run. The first SIGTERM makes a worker finish what it has in hand; a second one ends it
/// at once.
#[derive(Debug, Parser)]
#[command(
    name = "coupon-worker",
    version,
    after_long_help = "\
Examples:
  coupon-worker
  coupon-worker --concurrency 8 --redis-url redis://10.0.0.5:6379 \\
      --mongodb-uri 'mongodb://10.0.0.6:27017/?replicaSet=rs0'"
)]
pub struct WorkerCommand {
    #[command(flatten)]
    pub worker: WorkerConfig,
    #[command(flatten)]
    pub redis: RedisConfig,
    #[command(flatten)]
    pub mongodb: MongoConfig,
    #[command(flatten)]
    pub log: LogConfig,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "redis://:hunter2@10.0.0.5:6379/1",
            "redis://coupon:hunter2@10.0.0.5",
            "mongodb://coupon:hunter2@a:27017,b:27017/x?authSource=admin",
            "mongodb://coupon:hunt@er/hunter2@a/?replicaSet=rs0",
            "mongodb://a/?tlsCertificateKeyFilePassword=hunter2",
            "coupon:hunter2",
        ] {
            assert!(!shown_url(url).contains("hunter2"), "{}", shown_url(url));
        }
        assert_eq!(shown_url("mongodb://u:p@a:1,b:2/x?replicaSet=rs0"), "mongodb://…@a:1,b:2/x");
    }

    #[test]
    fn every_flag_has_its_variable() {
        for command in [ApiCommand::command(), WorkerCommand::command()] {
            command.clone().debug_assert();
            for flag in
                command.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str()))
            {
                let long = flag.get_long().expect("every setting is a long flag");
                let variable = format!("COUPON_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(flag.get_env().and_then(|env| env.to_str()), Some(variable.as_str()), "--{long}");
                assert!(flag.get_help().is_some(), "--{long} says nothing of itself");
            }
        }
    }
}
