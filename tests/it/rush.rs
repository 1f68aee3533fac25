//! `couponctl rush`: the verdict of a run is good, unless the test tampers with the ledger.

use std::process::Stdio;
use std::time::Duration;

use coupon_system::ids::CouponId;
use mongodb::bson::{Document, doc};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::helpers::{CTL, System, eventually, issued_to, send};

/// How a run ended: its exit code, its report, and its standard error.
struct RunOutput {
    code: Option<i32>,
    report: Value,
    err: String,
}

fn rush(system: &System, words: &[&str]) -> Command {
    let mut command = Command::new(CTL);
    command.args(["rush", "--json", "--connections", "16", "--seed", "7"]);
    command.env("COUPON_API_URL", system.client.base());
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn ended(child: Child) -> RunOutput {
    let output = child.wait_with_output().await.expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    RunOutput { code: output.status.code(), report, err }
}

async fn run(system: &System, words: &[&str]) -> RunOutput {
    ended(rush(system, words).spawn().expect("it starts")).await
}

impl RunOutput {
    /// One line of the verdict: whether the promise was kept, and the count.
    fn judged(&self, what: &str) -> (bool, u64) {
        let judged = self.report["verdict"]["judged"].as_array().unwrap_or_else(|| panic!("{}", self.err));
        let one = judged.iter().find(|one| one["what"] == what).expect("it is judged");
        (one["ok"].as_bool().expect("yes or no"), one["count"].as_u64().expect("a count"))
    }

    fn figure(&self, name: &str) -> u64 {
        self.report["figures"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {}", self.report))
    }

    #[track_caller]
    fn assert_kept(&self) {
        assert_eq!(self.code, Some(0), "{}\n{}", self.err, self.report["verdict"]);
        for what in ["oversold", "duplicates", "lost", "stuck", "unexpected", "indeterminate"] {
            assert_eq!(self.judged(what), (true, 0), "{what}");
        }
    }
}

/// The coupon of a run, once `issued` of its units are issued.
async fn coupon_of_the_run(system: &System, issued: u64) -> CouponId {
    eventually("the run issues", async || {
        let coupons = system.client.get("/coupons").await.body;
        let coupon = &coupons["items"][0];
        (coupon["stock"]["issued"].as_u64()? >= issued).then(|| coupon["id"].as_str()?.parse().ok())?
    })
    .await
}

fn ledger(system: &System) -> mongodb::Collection<Document> {
    system.backends.database.collection("user_coupons")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sell_out_keeps_every_promise_and_its_figures_add_up() {
    let system = System::start().await;
    system.worker();
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    let words = ["--users", "2000", "--total", "500", "--duration", "2", "--arrivals", "poisson"];
    let mut command = rush(&system, &words);
    command.args(["--mongodb-uri", &system.mongodb_uri, "--mongodb-database", &system.database]);
    command.arg("--report").arg(&page);
    command.args(["--expect", "dropped<=0", "--expect", "accept.p99<60s", "--expect", "rate.issued>0"]);
    let ended = ended(command.spawn().expect("it starts")).await;
    ended.assert_kept();
    let report = &ended.report;
    assert_eq!((ended.figure("planned"), ended.figure("sent")), (2_000, 2_000));
    assert_eq!((ended.figure("accepted"), ended.figure("issued")), (500, 500));
    assert_eq!(
        (report["answers"]["accepted"].as_u64(), report["answers"]["sold-out"].as_u64()),
        (Some(500), Some(1_500))
    );
    assert_eq!(report["outcomes"], serde_json::json!({"issued": 500}));
    assert_eq!(report["latency"]["accept"]["count"], 500);
    assert_eq!(report["latency"]["outcome"]["count"], 500);
    assert_eq!(report["verdict"]["recordsRead"], 500);
    assert_eq!(report["verdict"]["usersAsked"], 2_000);
    assert_eq!(report["settings"]["seed"], 7);
    for measured in ["sellOutMs", "drainMs", "acceptedPerSecond", "issuedPerSecond", "offeredPerSecond"] {
        assert!(
            report["figures"][measured].as_f64().is_some_and(|value| value > 0.0),
            "{measured}: {report}"
        );
    }
    let last = report["timeline"].as_array().and_then(|looks| looks.last()).expect("looks");
    assert_eq!((last["stock"]["issued"].as_u64(), last["offered"].as_u64()), (Some(500), Some(2_000)));
    assert!(report["expectations"].as_array().is_some_and(|all| all.iter().all(|met| met["ok"] == true)));
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.contains(r#""outcomes":{"issued":500}"#) && !page.contains("/*DATA*/"));
    assert!(!page.contains("src=") && !page.contains("href="), "it needs nothing but itself");
    assert!(ended.err.contains("sending sent=") && !ended.err.contains('\u{1b}'), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expectation_that_is_missed_ends_with_3() {
    let system = System::start().await;
    system.worker();
    let words = ["--users", "50", "--duration", "0.2", "--expect", "rate.accepted>1e9", "--follow", "wait"];
    let ended = run(&system, &words).await;
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    assert!(ended.err.contains("rate.accepted>1e9 (measured: "), "{}", ended.err);
    assert_eq!(
        (ended.report["ok"].as_bool(), ended.report["verdict"]["ok"].as_bool()),
        (Some(false), Some(true))
    );
    assert_eq!(ended.figure("issued"), 25);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_deleted_during_the_run_is_found_lost_by_the_api_alone() {
    let system = System::start().await;
    system.worker();
    let run = rush(&system, &["--users", "1500", "--duration", "3"]).spawn().expect("it starts");
    let coupon = coupon_of_the_run(&system, 50).await;
    let deleted = eventually("somebody who was told is found", async || {
        // The oldest record: its user has learned the outcome by now, or will be told that it is unknown.
        let record = ledger(&system).find_one(doc! {"couponId": coupon.as_str()}).await.expect("a record")?;
        let deleted = ledger(&system).delete_one(doc! {"_id": record.get("_id")?}).await.expect("a deletion");
        (deleted.deleted_count == 1).then(|| record.get_str("userId").map(str::to_owned).ok())?
    })
    .await;
    let ended = ended(run).await;
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    assert_eq!(ended.judged("lost"), (false, 1));
    assert!(ended.report["verdict"]["judged"].to_string().contains(&deleted), "{}", ended.report["verdict"]);
    for what in ["oversold", "duplicates", "stuck"] {
        assert_eq!(ended.judged(what), (true, 0), "{what}");
    }
    assert!(ended.err.contains("broken: 1 lost"), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_beyond_total_that_is_added_during_the_run_is_found_oversold() {
    let system = System::start().await;
    system.worker();
    let mut command = rush(&system, &["--users", "1500", "--duration", "3"]);
    command.args(["--mongodb-uri", &system.mongodb_uri, "--mongodb-database", &system.database]);
    let run = command.spawn().expect("it starts");
    let coupon = coupon_of_the_run(&system, 50).await;
    let beyond = issued_to(&coupon, "somebody-else", 751);
    system.write(std::slice::from_ref(&beyond)).await;
    let ended = ended(run).await;
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    // The unit itself is one finding; that there are more records than units is the other.
    assert_eq!(ended.judged("oversold"), (false, 2));
    assert_eq!(ended.judged("unexpected"), (false, 1), "nobody was told of it");
    assert!(ended.report["verdict"]["judged"].to_string().contains(&beyond.id.to_string()));
    assert_eq!(ended.judged("lost"), (true, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_birds_are_told_to_come_again_and_second_clicks_that_they_clicked_before() {
    let system = System::start().await;
    system.worker();
    let words = [
        "--users",
        "400",
        "--total",
        "400",
        "--duration",
        "1",
        "--early-birds",
        "0.5",
        "--double-clicks",
        "1",
    ];
    let ended = run(&system, &words).await;
    ended.assert_kept();
    let answers = &ended.report["answers"];
    let early = answers["not-started"].as_u64().expect("early birds");
    assert!((100..300).contains(&early), "{early}");
    assert_eq!(ended.figure("planned"), 800 + early);
    assert_eq!((answers["accepted"].as_u64(), answers["replayed"].as_u64()), (Some(400), Some(400)));
    assert_eq!((ended.figure("issued"), ended.figure("accepted")), (400, 400));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_decided_is_found_stuck() {
    let system = System::start().await;
    system.leaves_in_flight();
    let ended = run(&system, &["--users", "40", "--duration", "0.2", "--drain-max", "0.5"]).await;
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    assert_eq!(ended.judged("stuck"), (false, 20));
    assert_eq!(ended.judged("lost"), (true, 0));
    assert_eq!(ended.report["figures"]["drainMs"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_ends_the_sending_and_what_was_sent_is_judged() {
    let system = System::start().await;
    system.worker();
    let child = rush(&system, &["--users", "20000", "--duration", "100"]).spawn().expect("it starts");
    coupon_of_the_run(&system, 20).await;
    send(&child, Signal::INT);
    let ended = tokio::time::timeout(Duration::from_secs(60), ended(child)).await.expect("it ends early");
    ended.assert_kept();
    assert_eq!(ended.report["endedEarly"], true);
    let (accepted, sent) = (ended.figure("accepted"), ended.figure("sent"));
    assert!((20..20_000).contains(&sent) && accepted == sent && ended.figure("issued") == accepted, "{sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coupon_and_users_that_there_are_are_used_and_those_who_hold_it_are_told_so() {
    let system = System::start().await;
    system.worker();
    system.users("guest-", 60).await;
    let coupon = system.coupon("c", 100, 1).await;
    let words = ["--coupon", "c", "--user-prefix", "guest-", "--users", "60", "--duration", "0.3"];
    let first = run(&system, &[&words[..], &["--follow", "none"]].concat()).await;
    first.assert_kept();
    assert_eq!((first.figure("issued"), first.report["total"].as_u64()), (60, Some(100)));
    let second = run(&system, &words).await;
    second.assert_kept();
    assert_eq!(second.report["answers"], serde_json::json!({"already-issued": 60}));
    assert_eq!(system.settled(&coupon).await.issued, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_meet_a_full_backlog_try_again_when_they_are_told_to_until_all_have_a_unit() {
    let system = System::builder().flags(&["--backlog-max", "5"]).start().await;
    let words = ["--users", "40", "--total", "40", "--duration", "0.1", "--retry", "patient"];
    let run = rush(&system, &words).spawn().expect("it starts");
    eventually("the backlog is full", async || {
        (system.client.get("/queue").await.body["backlog"] == 5).then_some(())
    })
    .await;
    system.worker();
    let ended = ended(run).await;
    ended.assert_kept();
    assert_eq!((ended.figure("accepted"), ended.figure("issued")), (40, 40));
    assert!(ended.figure("retries") > 0);
    assert_eq!(ended.report["answers"]["overloaded"].as_u64(), Some(ended.figure("retries")));
    assert_eq!(ended.figure("sent"), 40 + ended.figure("retries"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_requests_without_an_answer_is_found_out() {
    let mut system = System::start().await;
    system.worker();
    let words = ["--users", "600", "--total", "600", "--duration", "3", "--answer-max", "0.3"];
    let mut command = rush(&system, &words);
    command.args(["--mongodb-uri", &system.mongodb_uri, "--mongodb-database", &system.database]);
    let run = command.spawn().expect("it starts");
    coupon_of_the_run(&system, 20).await;
    // Longer than users wait for an answer; Redis carries out afterwards what it was sent until then.
    system.redis.pause().await.expect("it is paused");
    tokio::time::sleep(Duration::from_secs(1)).await;
    system.redis.resume().expect("it goes on");
    let ended = ended(run).await;
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.err, ended.report["verdict"]);
    let (kept, unanswered) = ended.judged("indeterminate");
    assert!(kept && unanswered > 0, "{}", ended.report["verdict"]);
    let after_all =
        ended.report["verdict"]["recordsRead"].as_u64().expect("a count") - ended.figure("issued");
    assert!(after_all > 0, "none of them was issued after all");
    let says = format!("{after_all} of {unanswered} were issued after all");
    assert!(ended.report["verdict"].to_string().contains(&says), "{says}: {}", ended.report["verdict"]);
}

#[tokio::test]
async fn a_run_that_cannot_be_set_up_ends_with_5_and_nonsense_with_2() {
    let system = System::start().await;
    system.coupon("c", 1, 1).await;
    for (words, says) in [
        (&["--coupon", "nothing"][..], "coupon-not-found"),
        (&["--coupon", "c", "--early-birds", "0.5", "--users", "10"], "early birds"),
        (&["--url", "http://127.0.0.1:1"], "does not answer"),
        (&["--mongodb-uri", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"], "--mongodb-uri"),
        (&["--report", "/nowhere/report.html"], "--report"),
    ] {
        let ended = run(&system, words).await;
        assert_eq!(ended.code, Some(5), "{words:?}: {}", ended.err);
        assert!(ended.err.contains(says), "{words:?}: {}", ended.err);
    }
    for words in [
        &["--expect", "accept.p98<1ms"][..],
        &["--early-birds", "2"],
        &["--users", "0"],
        &["--rate", "1e6", "--duration", "1e6"],
        &["--coupon", "c", "--total", "5"],
        &["--user-prefix", "a b"],
    ] {
        let ended = run(&system, words).await;
        assert_eq!(ended.code, Some(2), "{words:?}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_run_that_cannot_be_set_up_leaves_no_report_behind_and_changes_none() {
    let system = System::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    let words = ["--coupon", "nothing", "--report", page.to_str().expect("UTF-8")];
    assert_eq!(run(&system, &words).await.code, Some(5));
    assert!(!page.exists());
    std::fs::write(&page, "of before").expect("it is written");
    assert_eq!(run(&system, &words).await.code, Some(5));
    assert_eq!(std::fs::read_to_string(&page).expect("it is there"), "of before");
}
