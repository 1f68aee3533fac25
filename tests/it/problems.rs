//! Problems: each has a page and is documented, and none reveals internals.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use axum::{Router, routing};
use coupon_system::http::Code;
use coupon_system::http::request::CompleteLayer;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::helpers::{Client, System};

/// Collected log lines.
#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a lock").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for CapturedLog {
    type Writer = CapturedLog;

    fn make_writer(&'a self) -> CapturedLog {
        self.clone()
    }
}

impl CapturedLog {
    /// Collects the log lines about requests from now on, of all tests of this process.
    fn keep() -> Self {
        static LOG: OnceLock<CapturedLog> = OnceLock::new();
        let kept = LOG.get_or_init(|| {
            let log = CapturedLog::default();
            let only = EnvFilter::new("coupon_system::http=info");
            let subscriber = tracing_subscriber::fmt().json().with_env_filter(only).with_writer(log.clone());
            subscriber.init();
            log
        });
        kept.clone()
    }

    /// The lines that contain this text.
    fn lines_with(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().expect("a lock").clone()).expect("UTF-8");
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_panic_tells_the_client_only_where_to_look_and_the_log_what_happened() {
    async fn panics() -> &'static str {
        panic!("mongodb://user:secret@10.0.0.1 is full");
    }
    let log = CapturedLog::keep();
    let router = Router::new().route("/", routing::get(panics)).layer(CompleteLayer::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = Client::new(listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let answer = client.get("/").await;
    assert_eq!((answer.status, answer.code()), (500, "internal"));
    assert!(!answer.body.to_string().contains("secret") && !answer.body.to_string().contains("10.0.0.1"));
    let id = answer.body["requestId"].as_str().expect("an id");
    assert_eq!(answer.header("x-request-id"), id);
    let lines = log.lines_with(id);
    assert!(
        lines.iter().any(|line| line.contains("secret")),
        "the log does not say what happened: {lines:?}"
    );
    assert!(lines.iter().any(|line| line.contains("\"status\":500")), "{lines:?}");
}

#[tokio::test]
async fn a_damaged_record_is_told_to_the_log_and_not_to_the_client() {
    let log = CapturedLog::keep();
    let system = System::start().await;
    system.coupon("c", 1, 1).await;
    let coupons = system.backends.database.collection::<Document>("coupons");
    let damage = doc! {"$set": {"total": "a-secret"}};
    coupons.update_one(doc! {"_id": "c"}, damage).await.expect("changed");
    let request = system.client.request("GET", "/coupons/c").header("x-request-id", "mine-1");
    let answer = system.client.send(request).await;
    assert_eq!((answer.status, answer.code()), (503, "unavailable"));
    assert_eq!((&answer.body["requestId"], answer.header("x-request-id")), (&"mine-1".into(), "mine-1"));
    assert!(!answer.body.to_string().contains("secret") && !answer.body.to_string().contains("total"));
    let lines = log.lines_with("mine-1");
    assert!(lines.iter().any(|line| line.contains("a-secret")), "{lines:?}");
}

#[tokio::test]
async fn every_code_has_a_page_for_people_and_one_for_programs_in_both_languages() {
    let system = System::start().await;
    let page = async |path: &str, accept: &str, language: &str| {
        let request = system.client.request("GET", path).header("accept", accept);
        let response = request.header("accept-language", language).send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-language"], language);
        assert_eq!(response.headers()["vary"], "accept, accept-language");
        let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
        (kind, response.text().await.expect("a body"))
    };
    const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let (_, all) = page("/problems", "application/json", "en").await;
    let all: Vec<Value> = serde_json::from_str(&all).expect("JSON");
    assert_eq!(all.len(), Code::ALL.len());
    let (_, list) = page("/problems", BROWSER, "ko").await;
    for kind in &all {
        let code = kind["code"].as_str().expect("a code");
        assert!(list.contains(&format!("href=\"problems/{code}\"")), "{code}");
        let path = kind["type"].as_str().expect("a page");
        let (media_type, one) = page(path, "*/*", "en").await;
        assert_eq!(media_type, "application/json");
        assert_eq!(serde_json::from_str::<Value>(&one).expect("JSON"), *kind);
        let (_, korean) = page(path, "application/json", "ko").await;
        let korean: Value = serde_json::from_str(&korean).expect("JSON");
        let (media_type, html) = page(path, BROWSER, "ko").await;
        assert_eq!(media_type, "text/html; charset=utf-8");
        for member in ["title", "detail", "advice"] {
            let text = korean[member].as_str().expect("text");
            assert!(!text.is_empty() && korean[member] != kind[member], "{code} {member}");
            assert!(html.contains(text), "{code}: {member}");
        }
        assert!(html.contains("href=\"../assets/pages.css\"") && !html.contains("<style"));
    }
    let answer = system.client.get("/problems/nothing").await;
    assert_eq!((answer.status, answer.code()), (404, "not-found"));
}

#[tokio::test]
async fn every_code_is_documented_where_it_can_be_answered_with_its_own_status() {
    /// No operation documents it: it answers a method that the path does not have.
    const OF_NO_OPERATION: &str = "method-not-allowed";
    let system = System::start().await;
    let document = system.client.get("/openapi.json").await.body;
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("an item") {
            for (status, response) in operation["responses"].as_object().expect("responses") {
                if status.starts_with(['2', '3']) {
                    continue;
                }
                let description = response["description"].as_str().expect("a description");
                let words = description.split('`').skip(1).step_by(2);
                let codes: Vec<_> =
                    words.filter_map(|word| Code::ALL.iter().find(|code| code.as_str() == word)).collect();
                assert!(!codes.is_empty(), "{method} {path} {status} names no code: {description}");
                for code in codes {
                    assert_eq!(code.status().as_str(), status, "{method} {path}: {}", code.as_str());
                    documented.insert(code.as_str());
                }
                assert!(
                    response["content"]["application/problem+json"].is_object(),
                    "{method} {path} {status}"
                );
            }
        }
    }
    let all: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let missing: Vec<_> = all.difference(&documented).collect();
    assert_eq!(missing, [&OF_NO_OPERATION]);
}

#[tokio::test]
async fn a_path_that_is_no_text_is_no_path() {
    let system = System::start().await;
    for path in ["/coupons/%ff", "/user-coupons/%ff", "/issuances/%C0%80", "/problems/%ff"] {
        let answer = system.client.get(path).await;
        assert_eq!((answer.status, answer.code()), (404, "not-found"), "{path}");
    }
}

#[tokio::test]
async fn the_page_for_developers_shows_the_client_that_it_serves() {
    let system = System::start().await;
    let text = async |path: &str, language: &str| {
        let request = system.client.request("GET", path).header("accept-language", language);
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        let policy = response.headers()["content-security-policy"].to_str().expect("text");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        response.text().await.expect("a body")
    };
    let script = text("/assets/client.js", "en").await;
    assert!(script.lines().count() <= 66, "it is short enough to be read whole, and copied");
    for (language, heading) in [("en", "For client developers"), ("ko", "클라이언트 개발자를 위하여")]
    {
        let page = text("/developers", language).await;
        let shown = page.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        assert!(shown.contains(&script) && shown.contains(heading));
        assert!(!page.contains("{{") && !page.contains("<script") && !page.contains("style="));
    }
    assert!(text("/assets/pages.css", "en").await.contains("main {"));
}
