//! The documents: both languages have the same structure, every link has a target, and everything that they name exists.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use coupon_system::cli;
use coupon_system::config::{self, ApiCommand, WorkerCommand};
use regex::Regex;

/// Most words of the README, so that a reader needs only some minutes.
const README_WORDS_MAX: usize = 1_500;

/// Flags of other programs that the documents show.
const FOREIGN_FLAGS: &[&str] = &[
    "--all-targets",
    "--base64url",
    "--bench",
    "--bins",
    "--build",
    "--bullmq",
    "--ignored",
    "--latency",
    "--locked",
    "--no-build",
    "--no-deps",
    "--no-log-prefix",
    "--nestjs",
    "--now",
    "--ours",
    "--partitions",
    "--path",
    "--profile",
    "--release",
    "--short",
    "--test",
    "--volumes",
    "--wait",
];

/// The three programs.
fn programs() -> [Command; 3] {
    [ApiCommand::command(), WorkerCommand::command(), cli::CtlCommand::command()].map(config::documented)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn pages_in(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect("a folder");
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages
}

/// Every page in English with its page in Korean. The page of flags is what the programs print, in English.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let mut english = pages_in("deploy/docs");
    english.retain(|page| !page.ends_with("flags.md"));
    english.push(root().join("README.md"));
    let korean = |page: &PathBuf| root().join("deploy/docs/ko").join(page.file_name().expect("a name"));
    english.iter().map(|page| (page.clone(), korean(page))).collect()
}

/// Every document.
fn all() -> Vec<PathBuf> {
    let mut all = vec![root().join("README.md")];
    for folder in ["deploy/docs", "deploy/docs/ko", ".github"] {
        all.extend(pages_in(folder));
    }
    all
}

/// What two pages that say the same have in common.
#[derive(Debug, Default)]
struct Outline {
    /// The level of each heading.
    headings: Vec<usize>,
    /// The language and the lines of each fenced block, without comments.
    blocks: Vec<(String, Vec<String>)>,
    /// The columns of each row of each table.
    tables: Vec<Vec<usize>>,
    /// The text of each heading.
    titles: Vec<String>,
}

fn outline(text: &str) -> Outline {
    let mut outline = Outline::default();
    let mut in_block = false;
    let mut in_table = false;
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            in_block = !in_block;
            if in_block {
                outline.blocks.push((language.to_owned(), Vec::new()));
            }
            continue;
        }
        if in_block {
            let (language, lines) = outline.blocks.last_mut().expect("an open block");
            // The text of a diagram is in the page's language.
            if language != "text" && language != "mermaid" {
                let command = line.split(" #").next().unwrap_or_default().trim_end();
                lines.push(command.to_owned());
            }
            continue;
        }
        if line.starts_with('#') {
            let title = line.trim_start_matches('#');
            outline.headings.push(line.len() - title.len());
            outline.titles.push(title.trim().to_owned());
        }
        if line.starts_with('|') {
            if !in_table {
                outline.tables.push(Vec::new());
            }
            let columns = line.replace("\\|", "").matches('|').count();
            outline.tables.last_mut().expect("an open table").push(columns);
        }
        in_table = line.starts_with('|');
    }
    outline
}

#[test]
fn every_page_has_the_same_headings_commands_and_tables_in_both_languages() {
    let korean: BTreeSet<PathBuf> = pages_in("deploy/docs/ko").into_iter().collect();
    let paired: BTreeSet<PathBuf> = pairs().into_iter().map(|(_, korean)| korean).collect();
    assert_eq!(korean, paired);
    for (english, korean) in pairs() {
        let name = korean.display();
        let (english, korean) = (outline(&read(&english)), outline(&read(&korean)));
        assert_eq!(english.headings, korean.headings, "{name}: {:?}", korean.titles);
        assert_eq!(english.blocks, korean.blocks, "{name}");
        assert_eq!(english.tables, korean.tables, "{name}");
    }
}

#[test]
fn the_readme_is_read_in_some_minutes() {
    let words = read(&root().join("README.md")).split_whitespace().count();
    assert!(words <= README_WORDS_MAX, "{words} words");
}

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = HashMap::new();
    let anchor = |title: &String| {
        let kept = title.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = seen.entry(anchor.clone()).and_modify(|count| *count += 1).or_insert(0);
        if *count == 0 { anchor } else { format!("{anchor}-{count}") }
    };
    outline(text).titles.iter().map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("a pattern");
    let mut links = 0;
    for page in all() {
        let text = read(&page);
        for target in link.captures_iter(&text).map(|found| found[1].to_owned()) {
            if target.starts_with("http") {
                continue;
            }
            links += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let from = page.parent().expect("a folder");
            let file = if path.is_empty() { page.clone() } else { from.join(path) };
            assert!(file.exists(), "{}: {target} leads nowhere", page.display());
            let is_known = anchor.is_empty() || anchors(&read(&file)).contains(anchor);
            assert!(is_known, "{}: {target} has no such heading", page.display());
        }
    }
    assert!(links > 50, "{links}");
}

#[test]
fn every_file_that_is_named_exists() {
    let path = Regex::new(r"`((?:src|bin|tests|deploy|\.ci)/[\w./-]+)`").expect("a pattern");
    for page in all() {
        for found in path.captures_iter(&read(&page)) {
            assert!(root().join(&found[1]).exists(), "{}: no {}", page.display(), &found[1]);
        }
    }
}

/// Visits a command and all commands in it, each with its full name.
fn walk(command: &Command, above: &str, visit: &mut impl FnMut(&Command, &str)) {
    let name = format!("{above} {}", command.get_name()).trim().to_owned();
    visit(command, &name);
    command.get_subcommands().for_each(|verb| walk(verb, &name, visit));
}

#[test]
fn every_flag_and_variable_that_is_named_exists() {
    let mut known: BTreeSet<String> = FOREIGN_FLAGS.iter().map(ToString::to_string).collect();
    known.insert("--help".into());
    known
        .extend(config::SECRET_VARIABLES.iter().map(|variable| format!("{variable}{}", config::FILE_SUFFIX)));
    for program in programs() {
        walk(&program, "", &mut |command, _| {
            for argument in command.get_arguments() {
                known.extend(argument.get_long().map(|long| format!("--{long}")));
                known.extend(argument.get_env().and_then(|env| env.to_str()).map(str::to_owned));
            }
        });
    }
    let scripts = [
        "deploy/Dockerfile",
        "deploy/example.env",
        "deploy/fetch-servers.sh",
        ".ci/run",
        "tests/browser/pages",
    ];
    let variable = Regex::new(r"COUPON_[A-Z_]*[A-Z]").expect("a pattern");
    for script in scripts.map(|script| read(&root().join(script))) {
        known.extend(variable.find_iter(&script).map(|found| found.as_str().to_owned()));
    }
    let named =
        Regex::new(r"COUPON_[A-Z_]*[A-Z]|(?:^|[\s`(])(--[a-z][a-z0-9-]*[a-z0-9])").expect("a pattern");
    for page in all() {
        let text = read(&page);
        for found in named.captures_iter(&text) {
            let name = found.get(1).unwrap_or_else(|| found.get(0).expect("a match")).as_str();
            assert!(known.contains(name), "{}: {name} does not exist", page.display());
        }
    }
    // A program does not see a variable whose name is wrong, and goes on with its default.
    let mut deployments = vec![root().join("docker-compose.yml")];
    for folder in ["deploy/kubernetes", "deploy/packages"] {
        let files = std::fs::read_dir(root().join(folder)).expect("a folder");
        deployments.extend(files.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()));
    }
    for file in deployments {
        for found in variable.find_iter(&read(&file)) {
            assert!(known.contains(found.as_str()), "{}: {} does not exist", file.display(), found.as_str());
        }
    }
}

#[test]
fn compose_passes_on_what_the_example_of_its_settings_names() {
    let compose = read(&root().join("docker-compose.yml"));
    let setting = Regex::new(r"(?m)^#?([A-Z][A-Z_0-9]+)=").expect("a pattern");
    let example = read(&root().join("deploy/example.env"));
    let named: Vec<_> = setting.captures_iter(&example).map(|found| found[1].to_owned()).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let is_passed =
            Regex::new(&format!(r"\$\{{{name}\b|\b{name}:")).expect("a pattern").is_match(&compose);
        assert!(is_passed, "{name} of deploy/example.env reaches no container");
    }
}

#[test]
fn every_route_that_is_named_is_in_the_openapi_document() {
    let snapshot = read(&root().join("tests/it/snapshots/it__openapi__openapi.snap"));
    let document = snapshot.splitn(3, "---").nth(2).expect("a snapshot with a head");
    let document: serde_json::Value = serde_json::from_str(document).expect("JSON");
    let route = Regex::new(r"`(GET|POST|PATCH|DELETE) (/[^\s`?]*)").expect("a pattern");
    let mut routes = 0;
    for page in all() {
        for found in route.captures_iter(&read(&page)) {
            let (method, path) = (found[1].to_lowercase(), &found[2]);
            // The document describes the API; metrics are no part of it.
            let exists = document["paths"][path].get(&method).is_some() || path == "/metrics";
            assert!(exists, "{}: {method} {path} is in no document", page.display());
            routes += 1;
        }
    }
    assert!(routes > 20, "{routes}");
}

#[test]
fn every_metric_that_is_named_is_declared() {
    let declared = read(&root().join("src/metrics/names.rs"));
    let metric = Regex::new(r"`[^`\n]*\b((?:coupon|http)_[a-z_]*[a-z])\b[^`\n]*`").expect("a pattern");
    for page in all() {
        for found in metric.captures_iter(&read(&page)) {
            assert!(declared.contains(&found[1]), "{}: no metric {}", page.display(), &found[1]);
        }
    }
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
    let possible = if takes_value && !possible.is_empty() {
        format!(" ({})", possible.join(", "))
    } else {
        String::new()
    };
    format!("| {} | {} | {} | {}{possible} |\n", code(&flag), code(variable), code(&default), cell(&help))
}

/// The page of all flags, generated from clap's commands.
fn page_of_flags() -> String {
    let mut page = String::from(
        "# Flags\n\n\
         [README](../../README.md)\n\n\
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
