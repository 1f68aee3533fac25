//! Lua scripts, and what one call of a script is given.

use std::collections::HashMap;
use std::sync::OnceLock;

use redis::{Arg, Cmd, Script, ToRedisArgs};

/// Pieces that several scripts share, by the line that each of these has in a piece's place; one that names others comes
/// before them.
const SHARED: [(&str, &str); 7] = [
    ("--@split\n", include_str!("lua/split.lua")),
    ("--@certificate\n", include_str!("lua/certificate.lua")),
    ("--@certificate_fields\n", include_str!("lua/certificate_fields.lua")),
    ("--@entry\n", include_str!("lua/entry.lua")),
    ("--@outdate\n", include_str!("lua/outdate.lua")),
    ("--@units\n", include_str!("lua/units.lua")),
    ("--@whole\n", include_str!("lua/whole.lua")),
];

/// A script out of a `.lua` file, with the shared pieces in their places.
pub(crate) struct LuaScript {
    source: &'static str,
    script: OnceLock<Script>,
    /// Its caller promises somebody that what it wrote lasts: replicas acknowledge it where the process asks for that.
    pub(super) is_promised: bool,
}

impl LuaScript {
    pub(crate) const fn new(source: &'static str) -> Self {
        LuaScript { source, script: OnceLock::new(), is_promised: false }
    }

    /// A script whose writes are promised to somebody: see [`RedisNodes::acknowledged_by`](super::RedisNodes).
    pub(crate) const fn promised(source: &'static str) -> Self {
        LuaScript { source, script: OnceLock::new(), is_promised: true }
    }

    pub(super) fn script(&self) -> &Script {
        self.script.get_or_init(|| {
            let put_in = |source: String, (line, piece): (&str, &str)| source.replace(line, piece);
            Script::new(&with_constants(&SHARED.into_iter().fold(self.source.to_owned(), put_in)))
        })
    }
}

/// Puts the constants of a script (`local NAME = 'TEXT'`, or a number) into the places that name them. Lua 5.1
/// has no constants: every call of the script would bind each of them anew to each function that names it.
fn with_constants(source: &str) -> String {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let constants: HashMap<&str, &str> = source.lines().filter_map(constant).collect();
    let mut put_in = String::with_capacity(source.len());
    for line in source.lines() {
        // An empty line stays in its place, so that errors name the right line.
        if constant(line).is_none() {
            for piece in line.split_inclusive(|letter| !is_part(letter)) {
                let name = piece.trim_end_matches(|letter| !is_part(letter));
                put_in.push_str(constants.get(name).unwrap_or(&name));
                put_in.push_str(&piece[name.len()..]);
            }
        }
        put_in.push('\n');
    }
    put_in
}

/// The name and the value of the constant that a line declares.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("local ")?.split_once(" = ")?;
    let value = rest.split(' ').next()?;
    let is_text = value.len() > 1 && value.starts_with('\'') && value.ends_with('\'');
    let is_literal = is_text || value.bytes().all(|byte| byte.is_ascii_digit());
    (name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') && is_literal)
        .then_some((name, value))
}

/// The keys and arguments of one call, in order. The arguments lie in one buffer: there are hundreds.
#[derive(Default)]
pub(crate) struct Call {
    keys: Vec<String>,
    args: Cmd,
}

impl Call {
    pub(crate) fn key(&mut self, key: String) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(crate) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.args.arg(arg);
        self
    }

    /// The command that calls the script with this hash.
    pub(super) fn command(&self, hash: &str) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(hash).arg(self.keys.len()).arg(&self.keys);
        for arg in self.args.args_iter() {
            if let Arg::Simple(arg) = arg {
                command.arg(arg);
            }
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_put_in_where_they_are_named_and_nothing_else_is() {
        let source = "local MAX = 20  -- of them\nlocal ENDED = 'E'\nlocal NAMES = {'MAX_AGE'}\n\
                      local max = MAX_AGE(MAX, ENDED)\nif x < MAX then return ENDED end\n";
        let folded =
            "\n\nlocal NAMES = {'MAX_AGE'}\nlocal max = MAX_AGE(20, 'E')\nif x < 20 then return 'E' end\n";
        assert_eq!(with_constants(source), folded);
    }
}
