//! Secrets out of files: beside a variable `X` whose value is, or contains, a secret, `X_FILE` names a file whose
//! content is the value. That is how orchestrators hand secrets over.
//!
//! The order is flag, then `X` or `X_FILE`, then default. A process reads the file once, when it starts.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// The variables whose value is, or contains, a secret.
pub const SECRET_VARIABLES: &[&str] = &["COUPON_REDIS_URL", "COUPON_MONGODB_URI", "COUPON_TOKEN"];

/// What follows the name of a variable in the name of its file's.
pub const FILE_SUFFIX: &str = "_FILE";

/// No URL and no key is longer.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The command, and all commands in it, with help that tells of the files.
#[must_use]
pub fn documented(command: Command) -> Command {
    let tell = |argument: Arg| match (secret_variable(&argument), argument.get_help()) {
        (Some(variable), Some(help)) => {
            let help = format!("{help}. {variable}{FILE_SUFFIX} may name a file that holds it");
            argument.help(help)
        }
        _ => argument,
    };
    command.mut_args(tell).mut_subcommands(documented)
}

/// The variable of this argument, if its value is a secret.
fn secret_variable(argument: &Arg) -> Option<&'static str> {
    let variable = argument.get_env()?;
    SECRET_VARIABLES.iter().find(|secret| variable == **secret).copied()
}

/// The command with the contents of files as the values of its secrets.
///
/// `matches` are what the command line and the environment gave without the files: a file is read only where a
/// command that runs needs it, and no flag gives the value.
///
/// # Errors
///
/// If a variable and its file are both given, or a file cannot be read or holds no value. The error names the variable
/// and the file, and repeats nothing of a value.
pub(super) fn with_files(
    command: Command,
    matches: &ArgMatches,
    variable: &impl Fn(&str) -> Option<PathBuf>,
) -> Result<Command, clap::Error> {
    let mut failed = None;
    let mut command = command.mut_args(|argument| match value_in_file(&argument, matches, variable) {
        Ok(None) => argument,
        // clap keeps a default for the life of the process, which this value has anyway.
        Ok(Some(value)) => {
            argument.env(Resettable::Reset).default_value(&*value.leak()).hide_default_value(true)
        }
        Err(error) => {
            failed = Some(error);
            argument
        }
    });
    if let Some((verb, matches)) = matches.subcommand() {
        command = command.mut_subcommand(verb, |verb| match with_files(verb.clone(), matches, variable) {
            Ok(verb) => verb,
            Err(error) => {
                failed = Some(error);
                verb
            }
        });
    }
    failed.map_or(Ok(command), Err)
}

fn value_in_file(
    argument: &Arg,
    matches: &ArgMatches,
    variable: &impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<String>, clap::Error> {
    let Some(name) = secret_variable(argument) else { return Ok(None) };
    let file_name = format!("{name}{FILE_SUFFIX}");
    let id = argument.get_id().as_str();
    let Some(path) = variable(&file_name) else { return Ok(None) };
    if is_flag_given(matches, id) {
        return Ok(None);
    }
    if matches.value_source(id) == Some(ValueSource::EnvVariable) {
        let why = format!("{name} and {file_name} are both set: set one of them");
        return Err(clap::Error::raw(ErrorKind::ArgumentConflict, why));
    }
    let read = read(&path);
    // A secret may have been put there by mistake.
    let name_of_file = path.to_string_lossy();
    let is_doubtful = name_of_file.contains("://") || name_of_file.contains('@');
    let shown = if is_doubtful { "a file of this name" } else { &*name_of_file };
    let failed =
        |why| clap::Error::raw(ErrorKind::ValueValidation, format!("{file_name}: cannot use {shown}: {why}"));
    read.map(Some).map_err(failed)
}

/// Whether this flag is on the command line, here or behind a verb.
fn is_flag_given(matches: &ArgMatches, id: &str) -> bool {
    let is_here = matches.try_contains_id(id).unwrap_or(false)
        && matches.value_source(id) == Some(ValueSource::CommandLine);
    is_here || matches.subcommand().is_some_and(|(_, matches)| is_flag_given(matches, id))
}

/// The value that a file holds: its content without the line break at its end.
///
/// # Errors
///
/// Why the file cannot be used, without anything of its content.
fn read(path: &Path) -> Result<String, String> {
    let mut content = Vec::new();
    // Before it is opened, which would wait for a writer if it were a pipe. Secrets of Kubernetes are links to files.
    if !std::fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("it is no regular file".into());
    }
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    let Ok(content) = String::from_utf8(content) else { return Err("it is not UTF-8".into()) };
    let value = content.strip_suffix('\n').map_or(&*content, |line| line.strip_suffix('\r').unwrap_or(line));
    if value.is_empty() {
        return Err("it is empty".into());
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::config::WorkerCommand;

    #[test]
    fn one_line_break_at_the_end_is_no_part_of_the_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("value");
        for (content, value) in [
            ("redis://a", Ok("redis://a")),
            ("redis://a\n", Ok("redis://a")),
            ("redis://a\r\n", Ok("redis://a")),
            ("redis://a\n\n", Ok("redis://a\n")),
            (" a ", Ok(" a ")),
            ("", Err("it is empty")),
            ("\n", Err("it is empty")),
        ] {
            std::fs::write(&path, content).expect("it is written");
            assert_eq!(read(&path).as_deref().map_err(|why| &**why), value, "{content:?}");
        }
        std::fs::write(&path, [0xff]).expect("it is written");
        assert_eq!(read(&path), Err("it is not UTF-8".into()));
        std::fs::write(&path, vec![b'a'; 65_537]).expect("it is written");
        assert_eq!(read(&path), Err("it is larger than 65536 bytes".into()));
        assert!(read(&folder.path().join("none")).is_err());
    }

    #[test]
    fn only_a_regular_file_or_a_link_to_one_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("value"), "redis://a").expect("it is written");
        std::os::unix::fs::symlink(path("value"), path("link")).expect("a link");
        assert_eq!(read(&path("link")).as_deref(), Ok("redis://a"));
        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status().expect("mkfifo runs");
        assert!(made.success());
        for wrong in [path("pipe"), folder.path().to_owned(), "/dev/null".into()] {
            assert_eq!(read(&wrong), Err("it is no regular file".into()), "{}", wrong.display());
        }
    }

    #[test]
    fn a_flag_wins_over_a_file_and_a_file_over_the_default() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("url");
        std::fs::write(&path, "redis://in-a-file\n").expect("it is written");
        let variable = |name: &str| (name == "COUPON_REDIS_URL_FILE").then(|| path.clone());
        let url = |words: &[&str]| {
            let command = WorkerCommand::command();
            let matches = command.clone().try_get_matches_from(words).expect("it parses");
            let command = with_files(command, &matches, &variable).expect("it is read");
            let matches = command.try_get_matches_from(words).expect("it parses");
            WorkerCommand::from_arg_matches(&matches).expect("it fits").redis.redis_url
        };
        assert_eq!(url(&["coupon-worker"]), "redis://in-a-file");
        assert_eq!(url(&["coupon-worker", "--redis-url", "redis://a-flag"]), "redis://a-flag");
    }
}
