//! Lua scripts, and what one call of a script is given.

use redis::{Arg, Cmd, Script, ToRedisArgs};

/// Builds a script from a `.lua` file, with what it shares with others put into its place.
pub(crate) fn script(source: &str) -> Script {
    let shared = [
        ("--@certificate\n", include_str!("lua/certificate.lua")),
        ("--@certificate_fields\n", include_str!("lua/certificate_fields.lua")),
        ("--@outdate\n", include_str!("lua/outdate.lua")),
        ("--@take_unit\n", include_str!("lua/take_unit.lua")),
        ("--@whole\n", include_str!("lua/whole.lua")),
    ];
    let source = shared.iter().fold(source.to_owned(), |source, (line, piece)| source.replace(line, piece));
    Script::new(&source)
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
