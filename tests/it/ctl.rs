//! `couponctl` as an operator runs it, with and without a running API.

use std::process::Stdio;

use coupon_system::queue::dead;
use serde_json::json;
use tokio::process::Command;

use crate::helpers::{CommandOutput, System, eventually};

/// The tool, with an API.
fn ctl(api: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_couponctl"));
    command.args(words).env("COUPON_API_URL", api).stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(system: &System, words: &[&str]) -> CommandOutput {
    ctl(system.client.base(), words).output().await.expect("it runs").into()
}

const ENDS: &str = "2036-01-01T09:00:00+09:00";

#[tokio::test]
async fn a_coupon_is_made_issued_and_shown() {
    let system = System::start().await;
    system.worker();
    let made = run(
        &system,
        &[
            "coupon",
            "create",
            "--id",
            "summer",
            "--name",
            "여름 할인",
            "--total",
            "2",
            "--ends-at",
            ENDS,
            "--percent-off",
            "10",
            "--max-amount",
            "10000",
            "--valid-for",
            "P30D",
        ],
    )
    .await;
    made.assert(
        0,
        &["summer", "여름 할인", "open", "2 remaining", "10 %, at most 10000 KRW", "2036-01-01T00:00:00Z"],
        &[],
    );
    run(&system, &["user", "create", "hong", "--name", "홍길동"]).await.assert(0, &["hong", "홍길동"], &[]);

    let issued = run(&system, &["issue", "hong", "summer", "--key", "order 42", "--wait"]).await;
    issued.assert(0, &["state", "issued", "serial", "/user-coupons/hong/"], &[]);
    let again = run(&system, &["issue", "hong", "summer", "--key", "order 42", "--json"]).await.json();
    let id = again["id"].as_str().expect("an id").to_owned();
    assert!(issued.out.contains(&id), "the same key, the same issuance");
    let shown = run(&system, &["issuance", "show", &id, "--json"]).await.json();
    assert_eq!((shown["state"].as_str(), shown["serial"].as_u64()), (Some("issued"), Some(1)));
    run(&system, &["issuance", "show", &id]).await.assert(0, &[&id, "issued"], &[]);

    let held = run(&system, &["user", "show", "hong"]).await;
    held.assert(0, &["홍길동", "COUPON", "summer", "active"], &[]);
    let coupons = run(&system, &["coupon", "list", "--status", "open"]).await;
    coupons.assert(0, &["COUPON", "LEFT", "summer", "여름 할인"], &[]);
    let refused = run(&system, &["issue", "hong", "summer"]).await;
    refused.assert(1, &[], &["already-issued", "userCoupons: /user-coupons/hong/", "request id", "next:"]);
}

#[tokio::test]
async fn shares_are_given_and_shown_and_those_that_only_thin_batches_are_told_of() {
    let system = System::builder().partitions(8).start().await;
    let create = async |id: &str, more: &[&str]| {
        let words = ["coupon", "create", "--id", id, "--name", "n", "--ends-at", ENDS];
        run(&system, &[&words[..], more].concat()).await
    };
    let thin = create("thin", &["--total", "1999", "--shares", "4"]).await;
    thin.assert(0, &["shares", "4"], &["1999 units in 4 shares", "fewer than 500 units a share"]);
    let good = create("good", &["--total", "2000", "--shares", "4", "--json"]).await;
    good.assert(0, &[], &[]);
    assert_eq!((good.json()["shares"].as_u64(), good.err.as_str()), (Some(4), ""));
    let shown = run(&system, &["coupon", "show", "good", "--json"]).await.json();
    assert_eq!(shown["shares"].as_u64(), Some(4));
    // On one node.
    let one = create("one", &["--total", "1000000"]).await;
    one.assert(0, &["shares", "1"], &[]);
    assert_eq!(one.err, "");
    create("none", &["--total", "9", "--shares", "0"]).await.assert(2, &[], &["--shares", "1..=64"]);
    create("many", &["--total", "9000", "--shares", "9"]).await.assert(1, &[], &["#/shares", "at most 8"]);

    let mut check = Command::new(env!("CARGO_BIN_EXE_couponctl"));
    check.args(["check", "--json", "--mongodb-database", &system.database]);
    check.args(["--redis-url", &system.redis.url(), "--mongodb-uri", &system.mongodb_uri]);
    let checked: CommandOutput = check.output().await.expect("it runs").into();
    checked.assert(0, &[], &[]);
    let lines = checked.json();
    let warnings = lines.as_array().expect("a list").iter().filter(|line| line["check"] == "coupon shares");
    let said: Vec<_> = warnings.map(|line| line["says"].as_str().expect("a text")).collect();
    for says in
        ["coupon thin has 4 shares on one node", "coupon thin has 1999 units", "coupon good has 4 shares"]
    {
        assert!(said.iter().any(|said| said.contains(says)), "{says}: {said:?}");
    }
    assert_eq!(said.len(), 3, "{said:?}");
}

#[tokio::test]
async fn a_coupon_is_steered() {
    let system = System::start().await;
    let users = system.users("u", 2).await;
    system.coupon("c", 5, 1).await;
    run(&system, &["coupon", "pause", "c"]).await.assert(0, &["paused"], &[]);
    run(&system, &["issue", "u0", "c"]).await.assert(1, &[], &["paused", "couponctl coupon resume"]);
    run(&system, &["coupon", "resume", "c"]).await.assert(0, &["open"], &[]);
    run(&system, &["coupon", "restock", "c", "7"]).await.assert(0, &["of 12"], &[]);
    run(&system, &["coupon", "edit", "c", "--name", "new name"]).await.assert(0, &["new name"], &[]);
    run(&system, &["coupon", "edit", "c"]).await.assert(2, &[], &["--name", "--end-now"]);
    run(&system, &["service", "pause"]).await.assert(0, &["nothing new is accepted"], &[]);
    run(&system, &["issue", "u0", "c"]).await.assert(1, &[], &["couponctl service resume"]);
    run(&system, &["service", "resume"]).await.assert(0, &["accepts requests"], &[]);
    run(&system, &["coupon", "edit", "c", "--end-now"]).await.assert(0, &["ended"], &[]);
    run(&system, &["coupon", "archive", "c"]).await.assert(2, &[], &["--yes"]);
    run(&system, &["coupon", "archive", "c", "--yes"]).await.assert(0, &["archived"], &[]);

    run(&system, &["user", "random", "12"]).await.assert(0, &["Registered 12 users", "…"], &[]);
    let page = run(&system, &["user", "list", "--limit", "3"]).await;
    page.assert(0, &["USER", "more:", "--cursor"], &[]);
    let cursor = page.out.split_whitespace().last().expect("a cursor");
    let rest = run(&system, &["user", "list", "--cursor", cursor, "--json"]).await.json();
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(12 + users.len() - 3));
}

#[tokio::test]
async fn why_a_campaign_is_changed_is_in_the_record_of_actions() {
    let system = System::start().await;
    system.coupon("c", 5, 1).await;
    let commands = [
        (&["coupon", "pause", "c"][..], json!({})),
        (&["coupon", "resume", "c"], json!({})),
        (&["coupon", "restock", "c", "--total", "7"], json!({"total": 7})),
        (&["coupon", "edit", "c", "--name", "n"], json!({"name": "n"})),
        (&["service", "pause"], json!({})),
        (&["service", "resume"], json!({})),
        (&["coupon", "archive", "c", "--yes"], json!({})),
    ];
    for (words, mut input) in commands {
        run(&system, &[words, &["--reason", " 점검 중 "]].concat()).await.assert(0, &[], &[]);
        let newest = run(&system, &["action", "list", "--limit", "1", "--json"]).await.json();
        input["reason"] = "점검 중".into();
        assert_eq!(newest["items"][0]["input"], input.to_string(), "{words:?}");
    }
    for wrong in [" ", "x\ny", &"y".repeat(201)] {
        let refused = run(&system, &["coupon", "pause", "c", "--reason", wrong]).await;
        refused.assert(2, &[], &["--reason", "must"]);
    }
}

#[tokio::test]
async fn json_is_what_the_api_says_and_nothing_else() {
    let system = System::start().await;
    system.coupon("c", 5, 1).await;
    for (words, path) in [
        (&["coupon", "list", "--json"][..], "/coupons"),
        (&["coupon", "--json", "show", "c"], "/coupons/c"),
        (&["user", "list", "--json"], "/users"),
        (&["worker", "list", "--json"], "/workers"),
        (&["dead-letter", "list", "--json"], "/dead-letters"),
    ] {
        let told = run(&system, words).await;
        assert_eq!((told.code, told.json()), (Some(0), system.client.get(path).await.body), "{words:?}");
    }
    run(&system, &["queue", "show"]).await.assert(0, &["backlog", "dead letters"], &[]);
    let problem = run(&system, &["coupon", "show", "nothing", "--json"]).await;
    problem.assert(1, &[], &["couponctl coupon list"]);
    assert_eq!(problem.json()["code"], "coupon-not-found");
}

#[tokio::test]
async fn a_problem_is_told_with_its_field_in_the_language_that_was_asked_for() {
    let system = System::start().await;
    let words = ["coupon", "create", "--name", "x", "--total", "1", "--ends-at", "2020-01-01T00:00:00Z"];
    let refused = run(&system, &words).await;
    refused.assert(1, &[], &["422 invalid", "#/endsAt: must be after startsAt", "request id:", "next:"]);
    assert_eq!(refused.out, "");
    let mut korean = words.to_vec();
    korean.extend(["--lang", "ko"]);
    run(&system, &korean).await.assert(1, &[], &["유효하지 않은 요청", "#/endsAt"]);
}

#[tokio::test]
async fn where_nobody_answers_the_next_step_is_told() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let api = format!("http://{free}");
    for words in [&["coupon", "list"][..], &["issue", "u", "c", "--wait"], &["watch"]] {
        let ended: CommandOutput = ctl(&api, words).output().await.expect("it runs").into();
        ended.assert(1, &[], &[&api, "refused", "cargo run -- dev", "--api-url", "COUPON_API_URL"]);
    }
}

#[tokio::test]
async fn what_cannot_be_right_is_wrong_usage() {
    for words in [
        &["coupon", "show", "a b"][..],
        &["coupon", "pause", ".."],
        &["user", "show", "a/b"],
        &["issuance", "show", "42"],
        &["dead-letter", "redrive", "nonsense"],
        &["coupon", "create", "--name", "x", "--total", "0", "--ends-at", ENDS],
        &["coupon", "create", "--name", "x", "--total", "1", "--ends-at", "tomorrow"],
        &["coupon", "create", "--name", "x", "--total", "1", "--ends-at", ENDS, "--valid-for", "P0D"],
        &["coupon", "list", "--status", "lost"],
        &["coupon", "list", "--api-url", "ftp://nowhere"],
        &["issue", "u", "c", "--key", "열쇠"],
        &["dead-letter", "discard", "01a206a0-caad-7000-95cf-bcf9c90eb941"],
        &["nonsense"],
    ] {
        let ended: CommandOutput = ctl("http://127.0.0.1:1", words).output().await.expect("it runs").into();
        assert_eq!(ended.code, Some(2), "{words:?}: {}", ended.err);
        assert!(ended.err.starts_with("error: "), "{words:?}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_dead_letter_is_redriven_and_another_discarded() {
    let system = System::start().await;
    system.users("u", 2).await;
    let coupon = system.coupon("c", 2, 1).await;
    system.poison(Some("u0")).await;
    system.worker();
    let accepted = run(&system, &["issue", "u0", "c"]).await;
    accepted.assert(0, &["queued"], &[]);
    let listed = eventually("it is set aside", async || {
        let listed = run(&system, &["dead-letter", "list", "--json"]).await.json();
        listed["items"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    assert!(accepted.out.contains(&listed));
    let table = run(&system, &["dead-letter", "list"]).await;
    table.assert(0, &["ISSUANCE", &listed, "validation", "u0"], &[]);
    run(&system, &["dead-letter", "show", &listed]).await.assert(0, &["attempts", "3", "validation"], &[]);
    let late = run(&system, &["issuance", "show", &listed, "--wait", "1"]).await;
    late.assert(1, &["queued"], &["not decided within 1 s", "next:"]);

    system.poison(None).await;
    run(&system, &["dead-letter", "redrive", &listed]).await.assert(0, &["On its way again"], &[]);
    run(&system, &["issuance", "show", &listed, "--wait"]).await.assert(0, &["issued"], &[]);
    run(&system, &["dead-letter", "list"]).await.assert(0, &["No dead letters."], &[]);

    system.poison(Some("u1")).await;
    let id = run(&system, &["issue", "u1", "c", "--json"]).await.json()["id"].as_str().unwrap().to_owned();
    eventually("it is set aside", async || {
        (run(&system, &["dead-letter", "show", &id]).await.code == Some(0)).then_some(())
    })
    .await;
    system.poison(None).await;
    run(&system, &["dead-letter", "discard", &id]).await.assert(2, &[], &["--yes"]);
    let discard = ["dead-letter", "discard", &id, "--yes", "--why", "refunded"];
    run(&system, &discard).await.assert(0, &["rejected"], &[]);
    run(&system, &["action", "list"]).await.assert(0, &[r#"{"reason":"refunded"}"#], &[]);
    run(&system, &["issuance", "show", &id, "--wait"]).await.assert(1, &["rejected"], &["(discarded)"]);
    // The command is repeated, as after a lost answer.
    run(&system, &["dead-letter", "discard", &id, "--yes"]).await.assert(0, &["rejected"], &[]);
    run(&system, &["dead-letter", "discard", &listed, "--yes"]).await.assert(1, &[], &["issuance-not-found"]);
    assert_eq!(system.settled(&coupon).await.issued, 1);
}

#[tokio::test]
async fn all_dead_letters_that_match_are_redriven_and_the_rest_discarded() {
    let system = System::start().await;
    system.users("u", 3).await;
    let (c, d) = (system.coupon("c", 5, 1).await, system.coupon("d", 5, 1).await);
    for (user, coupon) in [("u0", &c), ("u1", &c), ("u2", &d)] {
        system.accepted(user, coupon).await;
    }
    let keys = system.keys();
    for entry in system.take_entries_of_one().await {
        let aside = dead::set_aside(system.partition(), &keys, &entry.entry, entry.id, 3, "a reason");
        assert!(aside.await.expect("an answer"));
    }
    let listed = run(&system, &["dead-letter", "list", "--coupon", "c", "--limit", "1"]).await;
    listed.assert(0, &["a reason", "more:"], &[]);
    run(&system, &["dead-letter", "list", "--user", "u2", "--max-age", "1h"]).await.assert(0, &["u2"], &[]);
    run(&system, &["dead-letter", "list", "--min-age", "soon"]).await.assert(1, &[], &["minAge"]);

    for unclear in [
        &["dead-letter", "redrive-all", "--why", "w"][..],
        &["dead-letter", "redrive-all", "--coupon", "c"],
        &["dead-letter", "redrive-all", "--coupon", "c", "--everything", "--why", "w"],
    ] {
        assert_eq!(run(&system, unclear).await.code, Some(2), "{unclear:?}");
    }
    let redriven =
        run(&system, &["dead-letter", "redrive-all", "--coupon", "c", "--why", "it is mended"]).await;
    redriven.assert(0, &["2 of 2 redriven, 0 failed", "it is mended"], &[]);
    let discard = ["dead-letter", "discard-all", "--everything", "--why", "refunded", "--json"];
    run(&system, &discard).await.assert(2, &[], &["--yes"]);
    let discarded = run(&system, &[&discard[..], &["--yes"]].concat()).await;
    let action = discarded.json();
    assert_eq!((discarded.code, &action["progress"]["done"]), (Some(0), &1.into()), "{action}");
    let id = action["id"].as_str().expect("an id");
    run(&system, &["action", "show", id]).await.assert(
        0,
        &["POST /dead-letters/discard", "refunded", "200"],
        &[],
    );
    run(&system, &["dead-letter", "list"]).await.assert(0, &["No dead letters."], &[]);
    system.drain().await;
    assert_eq!((system.stock(&c).await.issued, system.stock(&d).await.remaining), (2, 5));
}

#[tokio::test]
async fn watching_from_a_pipe_gives_plain_lines_and_ends_in_time() {
    let system = System::start().await;
    system.users("u", 1).await;
    system.coupon("c", 5, 1).await;
    let worker = system.worker();
    eventually("it says that it lives", async || {
        (system.client.get("/workers").await.body != serde_json::json!([])).then_some(())
    })
    .await;
    let watching = tokio::spawn(ctl(system.client.base(), &["watch", "--for", "2"]).output());
    system.client.issue("u0", "c", None).await;
    let watched: CommandOutput = watching.await.expect("no panic").expect("it runs").into();
    watched.assert(0, &["coupon=c status=open remaining=", "total=5", "workers_alive=1 dead_letters=0"], &[]);
    assert!(!watched.out.contains('\u{1b}'), "{}", watched.out);
    assert!(watched.out.lines().filter(|line| line.contains("workers=1")).count() >= 2, "{}", watched.out);
    worker.cancel();
}

#[tokio::test]
async fn help_teaches_and_completions_are_made() {
    let help = |words: &'static [&'static str]| async {
        let ended: CommandOutput = ctl("http://127.0.0.1:1", words).output().await.expect("it runs").into();
        ended
    };
    help(&["--help"]).await.assert(0, &["dead-letter", "Examples:", "Exit codes:"], &[]);
    help(&["issue", "--help"]).await.assert(
        0,
        &["--wait", "COUPON_API_URL", "couponctl issue u1 summer"],
        &[],
    );
    for shell in ["bash", "zsh", "fish"] {
        let ended: CommandOutput =
            ctl("http://127.0.0.1:1", &["completion", shell]).output().await.expect("it runs").into();
        ended.assert(0, &["dead-letter"], &[]);
    }
}

#[tokio::test]
async fn a_held_coupon_is_used_restored_and_revoked_and_its_user_deleted() {
    let system = System::start().await;
    system.worker();
    system.users("u", 1).await;
    system.coupon("c", 3, 1).await;
    let id = system.client.issue("u0", "c", None).await.id();
    system.client.decided(&id).await;
    run(&system, &["user-coupon", "list", "u0", "--status", "active"]).await.assert(0, &[&id, "active"], &[]);
    run(&system, &["user-coupon", "use", "u0", &id, "order-1"]).await.assert(
        0,
        &["used", "order-1", "open"],
        &[],
    );
    let other = run(&system, &["user-coupon", "use", "u0", &id, "order-2"]).await;
    other.assert(1, &[], &["already-used", "next: `couponctl user-coupon get"]);
    run(&system, &["user-coupon", "restore", "u0", &id, "order-1"]).await.assert(
        0,
        &["active", "restored"],
        &[],
    );
    run(&system, &["user-coupon", "revoke", "u0", &id]).await.assert(2, &[], &["--yes"]);
    run(&system, &["user-coupon", "revoke", "u0", &id, "--yes"]).await.assert(0, &["revoked"], &[]);
    let shown = run(&system, &["user-coupon", "get", "u0", &id, "--json"]).await.json();
    assert_eq!(shown["history"].as_array().map(Vec::len), Some(4));
    run(&system, &["user", "delete", "u0"]).await.assert(2, &[], &["--yes"]);
    run(&system, &["user", "delete", "u0", "--yes"]).await.assert(0, &["Unknown to everybody"], &[]);
    run(&system, &["user", "delete", "nobody", "--yes"]).await.assert(1, &[], &["user-not-found"]);
}
