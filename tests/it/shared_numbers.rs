//! A number or letter that a Lua script and its Rust caller both name is the same in both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn text(source: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(source);
    std::fs::read_to_string(path).expect("a source")
}

/// The number that follows these words in a source.
fn number(source: &str, words: &str) -> u64 {
    let text = text(source);
    let found: Vec<&str> = text.split(words).skip(1).collect();
    assert_eq!(found.len(), 1, "{source} says {words:?} once");
    let digits: String =
        found[0].chars().take_while(|letter| letter.is_ascii_digit() || *letter == '_').collect();
    digits.replace('_', "").parse().unwrap_or_else(|_| panic!("{source}: no number behind {words:?}"))
}

#[test]
fn what_lua_and_rust_both_name_is_one_number() {
    for (name, kind) in [("TOLD_MAX", "usize"), ("KEYS_REMEMBERED", "u64")] {
        let lua = number("issuance/reserve.lua", &format!("local {name} = "));
        let rust = number("issuance/reserve.rs", &format!("pub const {name}: {kind} = "));
        assert_eq!(lua, rust, "{name}");
    }
    let rust = number("issuance/shares/look.rs", "const DRAINED_FOR_MS: u64 = ");
    for script in ["issuance/reserve.lua", "redis/lua/units.lua"] {
        assert_eq!(number(script, "local DRAINED_FOR = "), rust, "{script}");
    }
    for version in ["OF_ONE", "OF_MANY"] {
        let lua = number("redis/lua/entry.lua", &format!("local {version} = '"));
        let rust = number("queue/entry.rs", &format!("pub const VERSION_{version}: &str = \""));
        assert_eq!(lua, rust, "{version}");
    }
    // Lua counts the digits.
    let digits = number("redis/lua/certificate_fields.lua", "#held[2] < ") - 1;
    let rust = number("redis/partition.rs", "const TERMS_MAX: i64 = ");
    assert_eq!(Some(rust), 10_u64.checked_pow(u32::try_from(digits).expect("a few")), "TERMS_MAX");
}

/// The letters that a source names, by their names.
fn letters(source: &str, pattern: &str) -> BTreeMap<String, String> {
    let (text, pattern) = (text(source), regex::Regex::new(pattern).expect("a pattern"));
    pattern.captures_iter(&text).map(|found| (found[1].to_owned(), found[2].to_owned())).collect()
}

#[test]
fn lua_and_rust_name_the_same_letters() {
    for (script, count) in [("reserve", 16), ("settle", 6)] {
        let lua = letters(&format!("issuance/{script}.lua"), r"(?m)^local ([A-Z_]+) = '(.)'");
        let rust = letters(&format!("issuance/{script}.rs"), r"const ([A-Z_]+): (?:u8|char) = b?'(.)';");
        assert_eq!(lua, rust, "{script}");
        assert_eq!(lua.values().collect::<BTreeSet<_>>().len(), count, "{script}: each has its own");
    }
}

#[test]
fn a_script_that_checks_the_certificate_names_its_contract() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![src];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for found in std::fs::read_dir(folder).expect("a folder") {
            let path = found.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "lua") {
                continue;
            }
            let script = std::fs::read_to_string(&path).expect("a script");
            if script.contains("\n--@certificate\n") {
                count += 1;
                for line in
                    ["-- KEYS  1 certificate", "-- ARGV  1 credential", "-- Returns a certificate fault, or"]
                {
                    assert!(script.contains(&format!("\n{line}")), "{}: {line}", path.display());
                }
            }
        }
    }
    assert!(count > 30, "{count} scripts check the certificate");
}
