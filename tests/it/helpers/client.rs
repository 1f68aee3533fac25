//! An HTTP client that keeps the parts of an answer that tests assert.

use std::net::SocketAddr;

use serde_json::Value;

use super::contract::assert_documented;

/// Talks to one API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    bearer: Option<String>,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// A header as text; empty if missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The problem's code; empty if it is none.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// The issuance's id.
    pub fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id in {self:?}")).to_owned()
    }

    /// The issuance's state; empty if it is none.
    pub fn state(&self) -> &str {
        self.body["state"].as_str().unwrap_or_default()
    }

    /// Whether the answer is marked as a replay.
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == "true"
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let builder = coupon_system::cli::client::builder().expect("TLS");
        let http = builder.pool_max_idle_per_host(600).no_proxy().build().expect("a client");
        Client { http, base: format!("http://{address}"), bearer: None }
    }

    /// The same client, which sends credentials.
    pub fn with(&self, bearer: &str) -> Self {
        Client { bearer: Some(bearer.to_owned()), ..self.clone() }
    }

    /// The API's base URL.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The API's address.
    pub fn address(&self) -> SocketAddr {
        self.base.trim_start_matches("http://").parse().expect("an address")
    }

    /// A request to be completed by the test.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method.parse().expect("a method"), format!("{}{path}", self.base));
        match &self.bearer {
            Some(bearer) => request.bearer_auth(bearer),
            None => request,
        }
    }

    /// Sends a request, and asserts that the OpenAPI document allows its answer.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let request = request.build().expect("a request");
        let (method, path) = (request.method().to_string(), request.url().path().to_owned());
        let response = self.http.execute(request).await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.expect("a body");
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        assert_documented(&method, &path, status, &body);
        Answer { status, headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request("POST", path).json(&body)).await
    }

    /// Requests a coupon for a user, perhaps with an `Idempotency-Key`.
    pub async fn issue(&self, user: &str, coupon: &str, key: Option<&str>) -> Answer {
        let mut request = self
            .request("POST", "/user-coupons")
            .json(&serde_json::json!({"userId": user, "couponId": coupon}));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.send(request).await
    }

    /// Polls until the issuance is decided.
    pub async fn decided(&self, id: &str) -> Answer {
        super::eventually(&format!("issuance {id} is decided"), async || {
            let answer = self.get(&format!("/issuances/{id}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            (answer.state() != "queued").then_some(answer)
        })
        .await
    }
}
