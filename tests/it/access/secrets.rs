//! No error, no help and no log repeats a secret.

use std::process::Stdio;

use tokio::process::Command;

use crate::helpers::{API, CTL, WORKER};

const SECRET: &str = "hunter2-hunter2";

/// What a program says that must fail with this code.
async fn said(mut command: Command, code: i32) -> String {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("it runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains(SECRET) && !said.contains("hunter2"), "{said}");
    said
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
        // Who does not send it does not mind it.
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
async fn help_does_not_show_what_is_in_the_environment() {
    let words: [(&str, &[&str]); 8] = [
        (API, &["--help"]),
        (WORKER, &["--help"]),
        (CTL, &["dev", "--help"]),
        (CTL, &["key", "create", "--help"]),
        (CTL, &["rush", "--help"]),
        (CTL, &["audit", "--help"]),
        (CTL, &["queue", "show", "--help"]),
        (CTL, &["watch", "--help"]),
    ];
    for (program, words) in words {
        let mut command = Command::new(program);
        command.args(words);
        for variable in ["COUPON_TOKEN", "COUPON_MONGODB_URI", "COUPON_REDIS_URL", "COUPON_API_URL"] {
            command.env(variable, SECRET);
        }
        said(command, 0).await;
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
