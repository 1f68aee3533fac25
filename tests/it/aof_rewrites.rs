//! Redis's append-only file is rewritten when that disturbs nobody, and an operator is told before a campaign what would
//! have it rewritten in the rush.

use coupon_system::process::aof_rewriter::{AofRewriter, RewriteBounds, RewriteReason, RewriteRound};
use coupon_system::redis::append_only_file;

use crate::helpers::{API, CTL, CommandOutput, System, at, eventually, logging, program, stopped};

/// Whatever was appended is worth a rewrite.
const ANY_GROWTH: RewriteBounds = RewriteBounds { growth_min_bytes: 1, growth_max_bytes: 1 << 40 };
/// More than may wait at a quiet time.
const BACKLOG: usize = 1_001;

fn rewriter(system: &System, bounds: RewriteBounds) -> AofRewriter {
    AofRewriter::new(system.backends.partitions.clone(), system.backends.coupons.clone(), bounds)
}

/// What a rewriter does that knows how much Redis has appended lately: nearly nothing.
async fn round(system: &System, bounds: RewriteBounds) -> RewriteRound {
    let mut rewriter = rewriter(system, bounds);
    // The first round can only be due in need.
    let first = rewriter.round().await.expect("Redis and MongoDB answer");
    if first != RewriteRound::NotDue {
        return first;
    }
    rewriter.round().await.expect("Redis and MongoDB answer")
}

async fn queue_many(system: &System) {
    let coupon = system.coupon("rush", 5_000, 1).await;
    system.accept_all(&coupon, (0..BACKLOG).map(|number| format!("u{number}"))).await;
}

/// Waits for the end of a rewrite. What is appended before it counts as rewritten.
async fn rewritten(system: &System) {
    eventually("the file is rewritten", async || {
        let file =
            append_only_file(system.partition()).await.expect("Redis answers").expect("there is a file");
        (!file.is_rewriting && file.last_rewrite.is_some() && !file.has_failed).then_some(())
    })
    .await;
}

/// The number of rewrites that Redis has begun.
async fn rewrites(system: &System) -> u64 {
    let info: String = system.command(&["INFO", "persistence"]).await;
    let count = info.lines().find_map(|line| line.strip_prefix("aof_rewrites:"));
    count.and_then(|count| count.parse().ok()).expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_is_asked_for_after_the_drain_and_not_while_issuances_wait() {
    let system = System::start().await;
    queue_many(&system).await;
    assert_eq!(round(&system, ANY_GROWTH).await, RewriteRound::NotDue);
    assert_eq!(rewrites(&system).await, 0);

    system.drain().await;
    assert_eq!(round(&system, ANY_GROWTH).await, RewriteRound::Asked(RewriteReason::Quiet));
    rewritten(&system).await;
    assert_eq!(rewrites(&system).await, 1);
    // Whatever the workers append meanwhile.
    let again = round(&system, ANY_GROWTH).await;
    assert!([RewriteRound::NotDue, RewriteRound::AskedBefore].contains(&again), "{again:?}");
}

#[tokio::test]
async fn while_a_coupon_opens_no_time_is_quiet() {
    let system = System::start().await;
    system.coupon_within("later", 9, 1, at(3_000), at(3_600)).await;
    for (id, opens) in [("opens", 30), ("opened", -30)] {
        let coupon = system.coupon_within(id, 9, 1, at(opens), at(3_600)).await;
        assert_eq!(round(&system, ANY_GROWTH).await, RewriteRound::NotDue, "{id}");
        let gone = mongodb::bson::doc! {"_id": coupon.as_str()};
        let coupons = system.backends.database.collection::<mongodb::bson::Document>("coupons");
        coupons.delete_one(gone).await.expect("it is deleted");
    }
    assert_eq!(round(&system, ANY_GROWTH).await, RewriteRound::Asked(RewriteReason::Quiet));
}

#[tokio::test]
async fn minutes_before_an_opening_a_large_file_is_rewritten_although_issuances_wait() {
    let system = System::start().await;
    system.leaves_in_flight();
    queue_many(&system).await;
    system.coupon_within("soon", 9, 1, at(300), at(3_600)).await;
    // It may well not outgrow its bound in the rush.
    assert_eq!(round(&system, ANY_GROWTH).await, RewriteRound::NotDue);
    let file = append_only_file(system.partition()).await.expect("Redis answers").expect("there is a file");
    let bounds = RewriteBounds { growth_max_bytes: file.bytes * 3, ..ANY_GROWTH };
    assert_eq!(round(&system, bounds).await, RewriteRound::Asked(RewriteReason::BeforeOpening));
}

#[tokio::test]
async fn in_need_a_rewrite_is_asked_for_in_the_middle_of_a_rush_by_one_process_at_a_time() {
    let system = System::start().await;
    system.leaves_in_flight();
    queue_many(&system).await;
    system.coupon_within("opens", 9, 1, at(10), at(3_600)).await;
    let bounds = RewriteBounds { growth_min_bytes: 1, growth_max_bytes: 1 };
    // Redis shows that one runs for this long.
    let _: () = system.command(&["CONFIG", "SET", "rdb-key-save-delay", "200000"]).await;
    assert_eq!(round(&system, bounds).await, RewriteRound::Asked(RewriteReason::Need));
    assert_eq!(round(&system, bounds).await, RewriteRound::NotDue, "it runs");
    let _: () = system.command(&["CONFIG", "SET", "rdb-key-save-delay", "0"]).await;
    rewritten(&system).await;
    system.accept_all(&"rush".parse().expect("an id"), (0..BACKLOG).map(|number| format!("v{number}"))).await;
    assert_eq!(round(&system, bounds).await, RewriteRound::AskedBefore);
    assert_eq!(rewrites(&system).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forbids_rewrites_is_asked_again_in_the_end_and_the_log_says_so_once() {
    let mut system = System::start().await;
    // It would not be asked twice while the turn lasts.
    let end_turn = async || {
        let _: () = system.command(&["DEL", &system.keys().rewrite_turn()]).await;
    };
    let _: () = system.command(&["ACL", "SETUSER", "default", "-bgrewriteaof"]).await;
    let mut rewriter = rewriter(&system, RewriteBounds { growth_min_bytes: 1, growth_max_bytes: 1 });
    let mut round = async || rewriter.round().await.expect("Redis and MongoDB answer");
    assert_eq!(round().await, RewriteRound::Forbidden);
    let lasts: u64 = system.command(&["PTTL", &system.keys().rewrite_turn()]).await;
    assert_eq!(round().await, RewriteRound::AskedBefore);
    end_turn().await;
    assert_eq!(round().await, RewriteRound::Forbidden);
    let lasts_now: u64 = system.command(&["PTTL", &system.keys().rewrite_turn()]).await;
    assert!(lasts_now > 5 * lasts, "it asks less often: {lasts_now} ms, {lasts} at first");
    let _: () = system.command(&["ACL", "SETUSER", "default", "+bgrewriteaof"]).await;
    end_turn().await;
    assert_eq!(round().await, RewriteRound::Asked(RewriteReason::Need));
    rewritten(&system).await;
    assert_eq!(rewrites(&system).await, 1);

    // Its API would take the turn.
    let _: () = system.command(&["ACL", "SETUSER", "default", "-bgrewriteaof"]).await;
    system.stop().await;
    let _: () = system.command(&["DEL", &system.keys().rewrite_turn()]).await;
    grow(&system).await;
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (api, _, log) = logging(api).await;
    log.says("ask for no rewrite").await;
    assert_eq!(stopped(api).await.code(), Some(0));
    assert_eq!(
        log.lines().iter().filter(|line| line.contains("append-only file")).count(),
        1,
        "{:?}",
        log.lines()
    );
}

/// Makes the file larger than any that is not worth a rewrite.
async fn grow(system: &System) {
    let large = "x".repeat(1 << 20);
    for _ in 0..70 {
        let _: () = system.command(&["SET", "large", &large]).await;
    }
    let _: () = system.command(&["DEL", "large"]).await;
}

/// `couponctl check` with these flags.
async fn check(system: &System, flags: &[&str]) -> CommandOutput {
    let mut check = tokio::process::Command::new(CTL);
    check.arg("check").args(["--redis-url", &system.redis.url(), "--mongodb-uri", &system.mongodb_uri]);
    check.args(["--mongodb-database", &system.database]).args(flags);
    check.output().await.expect("it runs").into()
}

/// The warnings of `couponctl check` about these.
async fn warnings(system: &System, about: &[&str]) -> Vec<String> {
    let checked = check(system, &["--json"]).await;
    checked.assert(0, &[], &[]);
    let lines = checked.json();
    let warnings = lines.as_array().expect("a list").iter().filter(|line| line["warning"] == true);
    let of_these = warnings.filter(|line| about.contains(&line["check"].as_str().expect("a text")));
    of_these.map(|line| line["says"].as_str().expect("a text").to_owned()).collect()
}

#[tokio::test]
async fn check_warns_of_what_would_slow_a_campaign_down_and_still_ends_with_0() {
    let system = System::start().await;
    system.coupon_within("large", 1_000_000, 1, at(3_000), at(3_600)).await;
    // As much as is there beside it would do for a small one.
    let _: () = system.command(&["CONFIG", "SET", "maxmemory", "200mb"]).await;
    let about = ["append-only file", "redis memory"];
    let said = warnings(&system, &about).await;
    assert!(said.len() == 1 && said[0].contains("1000000 units open within 24 hours"), "{said:?}");

    let _: () = system.command(&["CONFIG", "SET", "maxmemory", "1gb"]).await;
    assert_eq!(warnings(&system, &["append-only file"]).await, [""; 0]);
    for (name, value, expected) in [
        ("auto-aof-rewrite-min-size", "64mb", "by itself from 64 MiB on, also in the middle of a rush"),
        ("auto-aof-rewrite-percentage", "0", "never rewrites its append-only file by itself"),
    ] {
        let _: () = system.command(&["CONFIG", "SET", name, value]).await;
        let said = warnings(&system, &about[..1]).await;
        assert!(said.len() == 1 && said[0].contains(expected), "{said:?}");
    }
    check(&system, &[]).await.assert(0, &["WARN  append-only file", "ok    redis"], &[]);

    // Administrators of Redis are told about the user that processes have.
    let _: () = system.command(&["ACL", "SETUSER", "default", "-bgrewriteaof"]).await;
    let said = warnings(&system, &about[..1]).await;
    assert!(said.iter().any(|says| says.contains("ACL SETUSER default +bgrewriteaof")), "{said:?}");
}
