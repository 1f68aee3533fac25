//! The layers of the library: imports run one way, from the top down.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every module of the library, from the top. A module uses those of the rows below its own, and of its own row
/// those to its right.
const LAYERS: &[&[&str]] = &[
    // The programs' commands.
    &["cli"],
    // The simulator, measuring, one machine's stack.
    &["bench", "rush", "dev"],
    // What the two servers do.
    &["api", "worker"],
    // What every process has: connections that were checked, probes, gauges.
    &["process"],
    // Settings: their types belong to what they set, so they stand above it.
    &["config"],
    // What keeps the accounts right, and the life of what was issued.
    &["audit", "privacy", "recovery", "redemption"],
    // The domain and its stores.
    &["queue", "issuance", "coupon", "service", "access", "user", "limits"],
    // What API and worker share of a server.
    &["http"],
    // The ground.
    &["redis", "mongo", "runtime", "metrics", "failure", "ids", "text"],
];

/// The files that name a driver's crate (`redis`, `mongodb`), beside those of the ground that wrap them: stores,
/// connections of one's own, and what starts or measures the servers themselves.
const DRIVER_FILES: &[&str] = &[
    "access/action.rs",
    "access/key_store.rs",
    "bench/",
    "coupon/restock.rs",
    "coupon/store.rs",
    "coupon/terms.rs",
    "dev/servers/",
    "issuance/feed/subscriber.rs",
    "issuance/ledger/",
    "mongo/",
    "queue/reader.rs",
    "recovery/certificate.rs",
    "recovery/deployment.rs",
    "recovery/fence.rs",
    "recovery/lease.rs",
    "recovery/settings.rs",
    "redemption/record.rs",
    "redemption/store.rs",
    "redis/",
    "service.rs",
    "user/secret.rs",
    "user/store.rs",
];

/// The modules at the root of the crate that this code names: `crate::a::…`, and each first name in
/// `crate::{a, b::{…}}`. `crate::Failure`, which the root exports, is of its module.
fn modules_named(code: &str) -> BTreeSet<String> {
    let first_name = |path: &str| -> String {
        let name: String =
            path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name == "Failure" { "failure".into() } else { name }
    };
    let code = without_comments(code);
    let mut named = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        match path.strip_prefix('{') {
            Some(group) => named.extend(members(group).into_iter().map(first_name)),
            None => drop(named.insert(first_name(path))),
        }
    }
    named.remove("");
    named
}

fn without_comments(code: &str) -> String {
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// Every source file of the library: its path below `src`, and its text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let read = |file: &PathBuf| {
        let path = file.strip_prefix(&root).ok()?.to_str()?.to_owned();
        Some((path, std::fs::read_to_string(file).ok()?))
    };
    files.iter().map(|file| read(file).expect("a text with a name in UTF-8")).collect()
}

/// The members of a group such as `a, b::{c, d}}`, whose first brace is left out.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (1, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if depth == 0 || depth == 1 && letter == ',' {
            members.push(&group[start..at]);
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    members
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn imports_run_from_the_top_down_and_nowhere_in_a_circle() {
    let order: Vec<&str> = LAYERS.iter().flat_map(|row| row.iter().copied()).collect();
    let place = |module: &str| order.iter().position(|known| *known == module);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let module = path.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        seen.insert(module.to_owned());
        let own = place(module).unwrap_or_else(|| panic!("{module} has no place in LAYERS"));
        for used in modules_named(&code) {
            match place(&used) {
                Some(place) if place >= own => {}
                Some(_) => wrong.push(format!("{}: {module} uses {used}, which is above it", path)),
                None => wrong.push(format!("{}: crate::{used} has no place in LAYERS", path)),
            }
        }
    }
    assert_eq!(seen.len(), order.len(), "LAYERS names what is not there: {order:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_ground_and_stores_name_a_driver() {
    // In a `use` or in a path.
    let driver = regex::Regex::new(r"(?m)(^|[^\w:.])(redis|mongodb)::").expect("a pattern");
    let names_one = |(_, code): &(String, String)| driver.is_match(&without_comments(code));
    let naming: Vec<String> = sources().into_iter().filter(names_one).map(|(path, _)| path).collect();
    let is_declared = |path: &String| DRIVER_FILES.iter().any(|declared| path.starts_with(declared));
    let undeclared: Vec<_> = naming.iter().filter(|path| !is_declared(path)).collect();
    assert!(undeclared.is_empty(), "these name a driver: {undeclared:?}");
    let is_needed = |declared: &&&str| naming.iter().any(|path| path.starts_with(**declared));
    let needless: Vec<_> = DRIVER_FILES.iter().filter(|declared| !is_needed(declared)).collect();
    assert!(needless.is_empty(), "these name none: {needless:?}");
}

#[test]
fn no_file_that_writes_filters_knows_a_json_value() {
    let filters: Vec<_> = sources().into_iter().filter(|(_, code)| code.contains("doc! {")).collect();
    assert!(filters.len() > 10, "they are written otherwise now");
    for (path, code) in filters {
        assert!(!code.contains("serde_json::{") && !code.contains("serde_json::Value"), "{path}");
    }
}

#[test]
fn what_code_names_is_found_in_every_form_of_a_path() {
    let code =
        "use crate::a;\nuse crate::{Failure, b::{c, d}, e as f};\n// crate::g\nlet x = crate::h::i(1, 2);";
    assert_eq!(modules_named(code).into_iter().collect::<Vec<_>>(), ["a", "b", "e", "failure", "h"]);
}
