//! `couponctl audit` as an operator runs it.

use coupon_system::audit::FindingKind;
use serde_json::Value;

use super::AuditStage;
use crate::helpers::{CTL, System, program};

/// Runs the command. Returns its exit code, standard output and standard error.
async fn audit(system: &System, flags: &[&str]) -> (i32, String, String) {
    // The flags of the servers follow the command.
    let mut command = tokio::process::Command::new(CTL);
    command.arg("audit").args(program(CTL, system).as_std().get_args()).args(flags);
    let output = command.output().await.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
}

async fn audit_json(system: &System, flags: &[&str]) -> (i32, Value) {
    let (code, output, errors) = audit(system, &[flags, &["--json"]].concat()).await;
    (code, serde_json::from_str(&output).unwrap_or_else(|_| panic!("{output} {errors}")))
}

#[tokio::test]
async fn a_clean_system_ends_with_0_and_its_figures() {
    let stage = AuditStage::start().await;
    let (code, output, errors) = audit(&stage.system, &[]).await;
    assert_eq!(code, 0, "{output} {errors}");
    let row: Vec<_> = output.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(row, ["c", "yes", "6", "6", "6", "2", "12", "0"]);
    assert_eq!(errors, "audited coupon=c findings=0\n");

    let (code, body) = audit_json(&stage.system, &["--full", "--coupon", "c"]).await;
    assert_eq!((code, body["verdict"].as_str()), (0, Some("clean")));
    assert_eq!(body["epoch"], stage.system.keys().epoch().to_string());
    assert_eq!(
        (&body["full"], &body["repair"], &body["findings"]),
        (&true.into(), &Value::Null, &Value::Array(vec![]))
    );
    let coupon = &body["coupons"][0];
    let figures = ["total", "settledBefore", "issued", "settledAfter", "reserved", "free"]
        .map(|name| coupon[name].as_u64());
    assert_eq!(figures, [20, 6, 6, 6, 2, 12].map(Some));
    assert_eq!((&coupon["holds"], &coupon["counted"]), (&true.into(), &true.into()));
}

#[tokio::test]
async fn drift_ends_with_3_until_it_is_mended() {
    let stage = AuditStage::start().await;
    stage.change("SREM", &[stage.free_key().as_bytes(), b"9"]).await;
    let (code, body) = audit_json(&stage.system, &["--full"]).await;
    assert_eq!((code, body["verdict"].as_str()), (3, Some("drift")));
    let found = &body["findings"][0];
    assert_eq!((found["code"].as_str(), found["serial"].as_u64()), (Some("serial-leaked"), Some(9)));
    assert_eq!(found["means"], FindingKind::SerialLeaked.means());

    let (code, body) = audit_json(&stage.system, &["--repair", "--dry-run"]).await;
    assert_eq!((code, body["repair"].as_str()), (3, Some("dry-run")));
    assert_eq!(body["wouldMend"][0]["code"], "serial-leaked");
    let (code, output, errors) = audit(&stage.system, &["--repair", "--dry-run"]).await;
    assert_eq!(code, 3, "{errors}");
    assert!(output.contains("would mend  serial-leaked coupon=c serial=9"), "{output}");
    assert!(errors.contains("error: the accounts drifted: 1 findings"), "{errors}");

    let (code, body) = audit_json(&stage.system, &["--repair"]).await;
    assert_eq!((code, body["repair"].as_str()), (0, Some("done")));
    assert_eq!(body["mended"][0]["code"], "serial-leaked");
    assert_eq!(audit(&stage.system, &["--full"]).await.0, 0);
}

#[tokio::test]
async fn without_full_drift_is_seen_and_the_advice_is_to_look_closer() {
    let stage = AuditStage::start().await;
    let _: i64 = stage.redis("HINCRBY", (stage.coupon_key(), "settled", 3)).await;
    let (code, output, _) = audit(&stage.system, &[]).await;
    assert_eq!(code, 3);
    assert!(output.contains("figures-disagree coupon=c") && output.contains("--full"), "{output}");
}

#[tokio::test]
async fn a_broken_promise_ends_with_4_whatever_was_mended_beside_it() {
    let stage = AuditStage::start().await;
    let beyond = stage.late("late", 21, 1).await;
    stage.change("SREM", &[stage.free_key().as_bytes(), b"9"]).await;
    let (code, output, errors) = audit(&stage.system, &["--repair"]).await;
    assert_eq!(code, 4, "{output} {errors}");
    assert!(output.contains("mended  serial-leaked coupon=c serial=9"), "{output}");
    assert!(output.contains(&format!("serial-beyond-total coupon=c serial=21 issuance={beyond} user=late")));
    assert!(output.contains("Restock the coupon"), "{output}");
}

#[tokio::test]
async fn what_cannot_be_done_says_why_in_its_exit_code() {
    let system = System::start().await;
    let (code, _, errors) = audit(&system, &["--dry-run"]).await;
    assert_eq!(code, 2, "{errors}");
    let (code, _, errors) = audit(&system, &["--coupon", "nowhere"]).await;
    assert_eq!((code, errors.as_str()), (1, "error: there is no coupon nowhere\n"));
    let mut system = system;
    system.redis.kill().await.expect("it is killed");
    let (code, _, errors) = audit(&system, &[]).await;
    assert_eq!(code, 5, "{errors}");
    assert!(errors.contains("Redis does not answer"), "{errors}");
}
