//! Lua scripts, and what one call of a script is given.

use std::sync::OnceLock;

use redis::{Arg, Cmd, Script, ToRedisArgs};

/// Pieces that several scripts share, by the line that stands for each.
const SHARED: [(&str, &str); 5] = [
    ("--@certificate\n", include_str!("lua/certificate.lua")),
    ("--@certificate_fields\n", include_str!("lua/certificate_fields.lua")),
    ("--@outdate\n", include_str!("lua/outdate.lua")),
    ("--@take_unit\n", include_str!("lua/take_unit.lua")),
    ("--@whole\n", include_str!("lua/whole.lua")),
];

/// A script out of a `.lua` file, with the shared pieces in their places.
pub(crate) struct LuaScript {
    source: &'static str,
    script: OnceLock<Script>,
}

impl LuaScript {
    pub(crate) const fn new(source: &'static str) -> Self {
        LuaScript { source, script: OnceLock::new() }
    }

    pub(super) fn script(&self) -> &Script {
        self.script.get_or_init(|| {
            let put_in = |source: String, (line, piece): (&str, &str)| source.replace(line, piece);
            Script::new(&SHARED.into_iter().fold(self.source.to_owned(), put_in))
        })
    }
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
