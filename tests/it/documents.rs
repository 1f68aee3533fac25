//! The documents that the programs write: the page of flags, and man pages.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use coupon_system::cli;
use coupon_system::config::{ApiCommand, WorkerCommand};

/// The three programs.
fn programs() -> [Command; 3] {
    [ApiCommand::command(), WorkerCommand::command(), cli::CtlCommand::command()]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Visits a command and all commands in it, each with its full name.
fn walk(command: &Command, above: &str, visit: &mut impl FnMut(&Command, &str)) {
    let name = format!("{above} {}", command.get_name()).trim().to_owned();
    visit(command, &name);
    command.get_subcommands().for_each(|verb| walk(verb, &name, visit));
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn row(argument: &Arg) -> String {
    let takes_value = argument.get_action().takes_values();
    let value = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let value = value.filter(|_| takes_value).map(|name| format!("<{name}>"));
    let parts = [argument.get_long().map(|long| format!("--{long}")), value];
    let flag = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{}`", cell(text)) };
    let variable = argument.get_env().and_then(|env| env.to_str()).unwrap_or_default();
    let defaults = if takes_value { argument.get_default_values() } else { &[] };
    let default = defaults.iter().filter_map(|value| value.to_str()).collect::<Vec<_>>().join(" ");
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let possible: Vec<String> =
        argument.get_possible_values().iter().map(|value| code(value.get_name())).collect();
    let possible = match takes_value && !possible.is_empty() {
        true => format!(" ({})", possible.join(", ")),
        false => String::new(),
    };
    format!("| {} | {} | {} | {}{possible} |\n", code(&flag), code(variable), code(&default), cell(&help))
}

/// The page of all flags, of what clap knows of them.
fn page_of_flags() -> String {
    let mut page = String::from(
        "# Flags\n\n\
         Every flag and variable of the three programs, as their `--help` tells it. A flag wins over its variable; an\n\
         empty variable is as if it were not set. `cargo test` compares this page with the programs, and\n\
         `UPDATE_DOCS=1 cargo test --test it documents::` writes it anew.\n",
    );
    for program in programs() {
        walk(&program, "", &mut |command, name| {
            let level = if name.contains(' ') { "###" } else { "##" };
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let _ = write!(page, "\n{level} {name}\n\n{about}.\n");
            let arguments: Vec<&Arg> = command
                .get_arguments()
                .filter(|argument| {
                    !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str())
                })
                .collect();
            if !arguments.is_empty() {
                page.push_str("\n| flag | variable | default | |\n|---|---|---|---|\n");
                page.extend(arguments.into_iter().map(row));
            }
        });
    }
    page
}

#[test]
fn the_page_of_flags_tells_what_the_programs_tell() {
    let path = root().join("deploy/docs/flags.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page_of_flags()).expect("it is written");
    }
    let is_true = read(&path) == page_of_flags();
    assert!(is_true, "deploy/docs/flags.md is out of date: UPDATE_DOCS=1 cargo test --test it documents::");
}

#[test]
fn man_pages_of_the_three_programs_name_their_variables_and_show_no_value() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("man1");
    let mut couponctl = std::process::Command::new(env!("CARGO_BIN_EXE_couponctl"));
    let ended = couponctl.arg("man").arg(&pages).env("COUPON_TOKEN", "hunter2").output().expect("it runs");
    assert!(ended.status.success(), "{ended:?}");
    for (page, says) in [
        ("coupon-api.1", "COUPON_REDIS_URL"),
        ("coupon-worker.1", "COUPON_METRICS_LISTEN"),
        ("couponctl.1", "Exit codes"),
        ("couponctl-coupon-create.1", "total"),
        ("couponctl-coupon.1", "COUPON_TOKEN"),
    ] {
        let text = read(&pages.join(page)).replace("\\-", "-");
        assert!(text.contains(says) && !text.contains("hunter2"), "{page}:\n{text}");
    }
}
