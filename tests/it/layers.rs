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

/// The modules at the root of the crate that this code names: `crate::a::…`, and each first name in
/// `crate::{a, b::{…}}`. `crate::Failure`, which the root exports, is of its module.
fn modules_named(code: &str) -> BTreeSet<String> {
    let first_name = |path: &str| -> String {
        let name: String =
            path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name == "Failure" { "failure".into() } else { name }
    };
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in &files {
        let path = file.strip_prefix(&root).expect("a file of src");
        let module = path.iter().next().and_then(|name| name.to_str()).expect("a name in UTF-8");
        let module = module.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        seen.insert(module.to_owned());
        let own = place(module).unwrap_or_else(|| panic!("{module} has no place in LAYERS"));
        let code = std::fs::read_to_string(file).expect("a text");
        for used in modules_named(&code) {
            match place(&used) {
                Some(place) if place >= own => {}
                Some(_) => wrong.push(format!("{}: {module} uses {used}, which is above it", path.display())),
                None => wrong.push(format!("{}: crate::{used} has no place in LAYERS", path.display())),
            }
        }
    }
    assert_eq!(seen.len(), order.len(), "LAYERS names what is not there: {order:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_code_names_is_found_in_every_form_of_a_path() {
    let code =
        "use crate::a;\nuse crate::{Failure, b::{c, d}, e as f};\n// crate::g\nlet x = crate::h::i(1, 2);";
    assert_eq!(modules_named(code).into_iter().collect::<Vec<_>>(), ["a", "b", "e", "failure", "h"]);
}
