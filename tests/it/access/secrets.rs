//! No error, no help and no log repeats a secret.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use clap::CommandFactory;
use coupon_system::config::{ApiCommand, FILE_SUFFIX, SECRET_VARIABLES, WorkerCommand, documented};
use tokio::process::Command;

use super::token_flags;
use crate::helpers::{API, CTL, Client, System, WORKER, eventually, program_as_it_is, serving};

const SECRET: &str = "hunter2-hunter2";

/// The output of a program that must fail with this code.
async fn said(mut command: Command, code: i32) -> String {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains(SECRET) && !said.contains("hunter2"), "{said}");
    said
}

/// The output of a program, whatever its exit code.
async fn hushed(mut command: Command, what: &str) {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(20), output).await;
    let output = output.unwrap_or_else(|_| panic!("{what} does not end")).expect("it runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{what}: {said}");
    assert!(!said.contains("hunter2"), "{what}: {said}");
}

/// Each command without subcommands: the words that name it, and its flags that take a value, with their variables.
fn flags_of(command: &clap::Command, words: &[String]) -> Vec<(Vec<String>, String, Option<OsString>)> {
    let mut all = Vec::new();
    for flag in command.get_arguments().filter(|flag| flag.get_action().takes_values()) {
        let variable = flag.get_env().map(ToOwned::to_owned);
        all.extend(flag.get_long().map(|long| (words.to_vec(), format!("--{long}"), variable)));
    }
    for verb in command.get_subcommands() {
        all.extend(flags_of(verb, &[words, &[verb.get_name().to_owned()]].concat()));
    }
    all
}

#[tokio::test]
async fn whatever_setting_a_secret_is_given_for_by_mistake_it_is_not_repeated() {
    let programs = [
        (API, ApiCommand::command()),
        (WORKER, WorkerCommand::command()),
        (CTL, coupon_system::cli::CtlCommand::command()),
    ];
    let mut tried = 0;
    for (program, command) in programs {
        let flags = flags_of(&command, &[]);
        let shown: BTreeSet<_> = flags.iter().map(|(words, ..)| words).collect();
        for words in shown {
            let mut help = Command::new(program);
            help.args(words).arg("--help");
            help.envs(flags.iter().filter_map(|(.., variable)| variable.as_ref()).map(|name| (name, SECRET)));
            said(help, 0).await;
        }
        for (words, flag, variable) in flags {
            let start = || {
                let mut command = Command::new(program);
                command
                    .args(&words)
                    .env("COUPON_API_URL", "http://127.0.0.1:1")
                    .env("COUPON_TOKEN", "cpn_a_b");
                command.env("COUPON_LISTEN", "127.0.0.1:0").env("COUPON_METRICS_LISTEN", "127.0.0.1:0");
                // An address that refuses connections, so that the command ends.
                command.env("COUPON_MONGODB_URI", "nonsense");
                command
            };
            // These commands would start servers of their own, or poll for ever.
            if words.iter().any(|word| ["dev", "bench", "follow", "watch"].contains(&word.as_str())) {
                continue;
            }
            let secrets = [SECRET.to_owned(), format!("https://hong:{SECRET}@shop.example/?key={SECRET}")];
            for secret in secrets {
                let mut by_flag = start();
                by_flag.arg(&flag).arg(&secret);
                hushed(by_flag, &format!("{program} {words:?} {flag}")).await;
                if let Some(variable) = &variable {
                    let mut by_variable = start();
                    by_variable.env(variable, &secret);
                    hushed(by_variable, &format!("{program} {words:?} {}", variable.display())).await;
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 200, "{tried}");
    hushed(ctl(&["queue", "show", SECRET]), "a word too many").await;
    hushed(ctl(&["queue", "show", &format!("--tokn={SECRET}")]), "a flag that there is not").await;
}

#[tokio::test]
async fn what_is_read_only_once_the_servers_answer_is_not_repeated() {
    let system = System::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut tokens = token_flags(&folder);
    *tokens.last_mut().expect("a file") = SECRET.into();
    let set =
        ["--jwt-algorithm", "ES256", "--jwt-issuer", "i", "--jwt-audience", "a", "--jwt-jwks-file", SECRET];
    let url = |url: &str| vec!["--open".to_owned(), "--public-url".to_owned(), url.to_owned()];
    for flags in [
        tokens,
        set.map(str::to_owned).to_vec(),
        url(SECRET),
        url(&format!("https://hong:{SECRET}@shop.example")),
        url(&format!("https://shop.example/?key={SECRET}")),
    ] {
        let mut api = program_as_it_is(API, &system);
        api.args(["--listen", "127.0.0.1:0"]).args(&flags);
        let told = said(api, 5).await;
        assert!(
            ["--jwt-secret-file", "--jwt-jwks-file", "--public-url"].iter().any(|flag| told.contains(flag)),
            "{told}"
        );
    }
}

fn ctl(words: &[&str]) -> Command {
    let mut command = Command::new(CTL);
    command.args(words);
    command
}

#[tokio::test]
async fn a_malformed_token_is_not_repeated() {
    for bad in
        [format!("cpn_a_{SECRET} with a space"), format!("{SECRET}\n{SECRET}"), format!("쿠폰{SECRET}")]
    {
        let mut by_variable = ctl(&["queue", "show"]);
        by_variable.env("COUPON_TOKEN", &bad);
        let told = said(by_variable, 2).await;
        assert!(told.contains("COUPON_TOKEN") && told.contains("without spaces"), "{told}");
        said(ctl(&["queue", "show", "--token", &bad]), 2).await;
        said(ctl(&["rush", "--token", &bad]), 2).await;
        // A command that sends no token ignores it.
        let mut elsewhere = ctl(&["completion", "bash"]);
        elsewhere.env("COUPON_TOKEN", &bad);
        said(elsewhere, 0).await;
    }
}

#[tokio::test]
async fn a_password_in_a_url_is_not_repeated() {
    for url in [
        format!("http://hong:{SECRET}@shop.example"),
        format!("{SECRET}@shop.example:3000"),
        format!("http://shop.example/?key={SECRET}"),
    ] {
        let mut by_variable = ctl(&["queue", "show"]);
        by_variable.env("COUPON_API_URL", &url);
        let told = said(by_variable, 2).await;
        assert!(told.contains("COUPON_API_URL"), "{told}");
        said(ctl(&["rush", "--url", &url]), 2).await;
    }
    for uri in [
        format!("mongodb://coupon:{SECRET}"),
        format!("mongodb://coupon:{SECRET}/x@127.0.0.1/"),
        format!("mongodb://coupon:{SECRET}%zz@127.0.0.1/"),
        format!("mongodb://127.0.0.1/?tlsCertificateKeyFilePassword={SECRET}&tls=perhaps"),
        format!("coupon:{SECRET}@127.0.0.1"),
    ] {
        for program in [API, WORKER] {
            let mut command = Command::new(program);
            command.env("COUPON_MONGODB_URI", &uri);
            let listen = if program == API { "--listen" } else { "--metrics-listen" };
            command.args([listen, "127.0.0.1:0"]);
            let told = said(command, 5).await;
            assert!(told.contains("--mongodb-uri") && told.contains("percent-encoded"), "{told}");
        }
        let mut key = ctl(&["key", "list"]);
        key.env("COUPON_MONGODB_URI", &uri);
        said(key, 5).await;
    }
    for url in
        [format!("redis://coupon:{SECRET}"), SECRET.to_owned(), format!("redis://:{SECRET}/x@127.0.0.1")]
    {
        let mut api = Command::new(API);
        api.args(["--listen", "127.0.0.1:0"]).env("COUPON_REDIS_URL", &url);
        let told = said(api, 5).await;
        assert!(told.contains("--redis-url") && told.contains("percent-encoded"), "{told}");
    }
}

#[tokio::test]
async fn a_key_that_is_to_be_revoked_is_not_repeated() {
    let (uri, database) = (crate::helpers::mongodb().await, crate::helpers::database());
    let secret = "hunter2".repeat(10);
    for key in [format!("cpn_k3v9x2m4q7ab_{secret}"), format!("k3v9x2m4q7ab_{secret}"), secret.clone()] {
        let mut revoke = ctl(&["key", "revoke", &key]);
        revoke.args(["--mongodb-uri", &uri, "--mongodb-database", &database]);
        said(revoke, 1).await;
    }
    let connected = coupon_system::mongo::connect(&uri, &database).await.expect("a URI");
    let records = connected.collection::<mongodb::bson::Document>("operator_actions");
    let mut records = records.find(mongodb::bson::doc! {}).await.expect("a look");
    while records.advance().await.expect("a record") {
        assert!(!format!("{:?}", records.current()).contains("hunter2"));
    }
}

#[test]
fn every_variable_that_sounds_like_a_secret_may_be_in_a_file_and_help_says_so() {
    fn walk(command: &clap::Command, seen: &mut BTreeSet<String>) {
        for argument in command.get_arguments() {
            let variable = argument.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            let ends = ["_REDIS_URL", "_URI", "_TOKEN", "_SECRET", "_PASSWORD", "_KEY"];
            let sounds_secret = ends.iter().any(|end| variable.ends_with(end));
            assert_eq!(sounds_secret, SECRET_VARIABLES.contains(&variable), "{variable}");
            if sounds_secret {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains(&format!("{variable}{FILE_SUFFIX}")), "{}: {help}", command.get_name());
                seen.insert(variable.to_owned());
            }
        }
        command.get_subcommands().for_each(|verb| walk(verb, seen));
    }
    let mut seen = BTreeSet::new();
    let ctl = coupon_system::cli::CtlCommand::command();
    for program in [ApiCommand::command(), WorkerCommand::command(), ctl] {
        walk(&documented(program), &mut seen);
    }
    assert_eq!(seen, SECRET_VARIABLES.iter().map(ToString::to_string).collect());
}

#[tokio::test]
async fn programs_take_their_secrets_from_files() {
    let system = System::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("it is written");
        path
    };
    let redis = file("redis", &format!("{}\n", system.redis.url()));
    let mongodb = file("mongodb", &system.mongodb_uri);
    let check = || {
        let mut check = ctl(&["check", "--mongodb-database", &system.database]);
        check.env_remove("COUPON_REDIS_URL").env_remove("COUPON_MONGODB_URI");
        check.env("COUPON_REDIS_URL_FILE", &redis).env("COUPON_MONGODB_URI_FILE", &mongodb);
        check
    };
    let told = said(check(), 0).await;
    assert!(told.contains("redis certificate") && !told.contains("FAILED"), "{told}");

    // A program that serves, too.
    let mut worker = Command::new(WORKER);
    worker.args(["--metrics-listen", "127.0.0.1:0", "--mongodb-database", &system.database]);
    worker.env("COUPON_REDIS_URL_FILE", &redis).env("COUPON_MONGODB_URI_FILE", &mongodb);
    worker.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (_worker, address) = serving(worker).await;
    let client = Client::new(address);
    eventually("the worker is ready", async || (client.get("/readyz").await.status == 200).then_some(()))
        .await;

    // The file is one of two, or is not there: the error names what, and shows nothing.
    let secret = format!("redis://:{SECRET}@127.0.0.1:1");
    let mut both = check();
    both.env("COUPON_REDIS_URL", &secret);
    let told = said(both, 2).await;
    assert!(told.contains("COUPON_REDIS_URL and COUPON_REDIS_URL_FILE are both set"), "{told}");
    let mut missing = check();
    missing.env("COUPON_MONGODB_URI_FILE", folder.path().join("none"));
    let told = said(missing, 2).await;
    assert!(
        told.contains("COUPON_MONGODB_URI_FILE: cannot use") && told.contains("none: No such file"),
        "{told}"
    );
    let mut unreadable = check();
    unreadable.env("COUPON_REDIS_URL_FILE", OsStr::from_bytes(b"/none/\xff"));
    assert!(said(unreadable, 2).await.contains("COUPON_REDIS_URL_FILE: cannot use /none/"));
    let mut folder_for_file = check();
    folder_for_file.env("COUPON_MONGODB_URI_FILE", folder.path());
    assert!(said(folder_for_file, 2).await.contains("it is no regular file"));
    let mut garbled = check();
    garbled.env("COUPON_REDIS_URL_FILE", file("garbled", &format!("{SECRET}\n{SECRET}")));
    said(garbled, 5).await;

    // An empty variable is none; a flag wins, and then no file is read.
    let mut empty = check();
    empty.env("COUPON_REDIS_URL", "").env("COUPON_TOKEN_FILE", "");
    said(empty, 0).await;
    let mut flag = check();
    flag.args(["--redis-url", &system.redis.url()]).env("COUPON_REDIS_URL_FILE", folder.path().join("none"));
    said(flag, 0).await;

    // A flag behind the verb, of an option that stands before it too; and a command that needs no secret.
    let mut unread = ctl(&["queue", "show", "--token", "cpn_a_b", "--api-url", "http://127.0.0.1:1"]);
    unread.env("COUPON_TOKEN_FILE", "/nowhere/at/all");
    let told = said(unread, 1).await;
    assert!(!told.contains("COUPON_TOKEN_FILE"), "{told}");
    let mut read = ctl(&["queue", "show", "--api-url", "http://127.0.0.1:1"]);
    read.env("COUPON_TOKEN_FILE", "/nowhere/at/all");
    assert!(said(read, 2).await.contains("COUPON_TOKEN_FILE: cannot use /nowhere/at/all"));
    let mut needless = ctl(&["completion", "bash"]);
    needless.env("COUPON_TOKEN_FILE", "/nowhere/at/all").env("COUPON_REDIS_URL_FILE", "/nowhere/at/all");
    said(needless, 0).await;
}
