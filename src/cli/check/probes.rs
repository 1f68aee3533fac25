//! Whether Redis has the commands that the system needs. A managed Redis may lack some, or forbid them.

use super::{CheckResult, failed, passed};
use crate::redis::{Call, LuaScript, Partition};

const COMMANDS: &str = "redis commands";

/// Not a line of the scripts of the system: with the flags that these have.
static RUN: LuaScript = LuaScript::new("#!lua flags=allow-oom\nreturn {'ok'}");
static DESCRIBE: LuaScript =
    LuaScript::new("#!lua flags=allow-oom\nreturn {redis.call('INFO', 'server', 'replication')}");
static ANNOUNCE: LuaScript =
    LuaScript::new("#!lua flags=allow-oom\nredis.call(ARGV[1], ARGV[2], '')\nreturn {'ok'}");

/// Tries what scripts and the outcome feed need. Writes nothing.
pub(super) async fn probes(partition: &Partition) -> Vec<CheckResult> {
    let (client, channel) = (partition.client(), partition.outcome_channel());
    let announce = client.publish_command();
    let mut lines = Vec::new();
    let mut lacks = |what: String, why: String| lines.push(failed(COMMANDS, format!("Redis {what}: {why}")));
    let call = |args: &[&str]| {
        let mut call = Call::default();
        call.arg(args);
        call
    };

    if let Err(failure) = client.invoke(&RUN, "run a script", &call(&[])).await {
        // Nothing else can be tried, nor done.
        lacks("runs no scripts (SCRIPT LOAD, EVALSHA)".into(), failure.chain());
        return lines;
    }
    match client.invoke(&DESCRIBE, "describe itself in a script", &call(&[])).await {
        Err(failure) => lacks("has no INFO inside a script".into(), failure.chain()),
        Ok(mut reply) => {
            let told = reply.text().unwrap_or_default();
            if let Some(missing) = ["run_id:", "master_replid:"].iter().find(|name| !told.contains(**name)) {
                lacks(
                    "has no INFO inside a script that the certificate can be compared with".into(),
                    format!("{missing} is missing"),
                );
            }
        }
    }
    if let Err(failure) = client.invoke(&ANNOUNCE, "announce", &call(&[announce, &channel])).await {
        lacks(format!("has no {announce} inside a script"), failure.chain());
    }
    if let Err(error) = client.subscribe(&channel).await {
        lacks(
            format!("has no {} for the outcome feed", announce.replace("PUBLISH", "SUBSCRIBE")),
            error.to_string(),
        );
    }
    if lines.is_empty() {
        lines.push(passed(COMMANDS, "scripts, what they call, and the outcome feed work"));
    }
    lines
}
