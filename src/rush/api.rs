//! The service's JSON, for setting a run up and judging it; and the few facts of an answer that the
//! run itself wants.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::connection::{ExchangeError, RawConnection};
use super::target::LoadTarget;

/// Setting up may take the service a while (a hundred thousand users, say).
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// While the service asks for it, a call is repeated this often.
const TRIES_MAX: usize = 20;
const RETRY_AFTER: Duration = Duration::from_millis(500);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// An issuance as answered, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IssuanceBody<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub state: Cow<'a, str>,
    pub poll_after_ms: Option<u64>,
    pub serial: Option<u32>,
    #[serde(borrow)]
    pub problem: Option<ProblemBody<'a>>,
}

/// A problem as answered, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProblemBody<'a> {
    #[serde(borrow)]
    pub code: Cow<'a, str>,
    pub retry_after_ms: Option<u64>,
}

/// Calls the service, one call at a time.
pub(crate) struct ServiceClient {
    target: Arc<LoadTarget>,
    connection: RawConnection,
}

impl ServiceClient {
    /// A client with a connection of its own.
    pub fn new(target: Arc<LoadTarget>) -> Self {
        ServiceClient { connection: RawConnection::new(Arc::clone(&target)), target }
    }

    /// One GET. Returns the status and the body, which is null unless it is JSON.
    pub async fn try_get(&mut self, path: &str, within: Duration) -> Result<(u16, Value), ExchangeError> {
        self.try_once("GET", path, None, within).await
    }

    /// Gets, and repeats while the service answers 503. The error is a sentence for people.
    pub async fn get(&mut self, path: &str) -> Result<Value, String> {
        self.call("GET", path, None).await
    }

    /// Posts, and repeats while the service answers 503: only for what is safe to repeat. The error is a sentence for
    /// people.
    pub async fn post(&mut self, path: &str, body: Option<&Value>) -> Result<Value, String> {
        self.call("POST", path, body).await
    }

    async fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (status, body) = self.try_once(method, path, body, ANSWER_MAX).await.map_err(|fault| {
                format!(
                    "{} does not answer {method} {path} ({fault}); start the system there (on this \
                         machine: `cargo run -- dev`), or name another with --url",
                    self.target.url()
                )
            })?;
            if (200..300).contains(&status) && !body.is_null() {
                return Ok(body);
            }
            if status == 503 && tries < TRIES_MAX {
                let after = body["retryAfterMs"].as_u64().map_or(RETRY_AFTER, Duration::from_millis);
                tokio::time::sleep(after.min(RETRY_AFTER_MAX)).await;
                continue;
            }
            let said = body["detail"].as_str().unwrap_or("not as the Coupon System's API does");
            let code = body["code"].as_str().unwrap_or_default();
            return Err(format!(
                "{} answered {method} {path} with {status} {code}: {said}",
                self.target.url()
            ));
        }
    }

    async fn try_once(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<(u16, Value), ExchangeError> {
        let mut request = Vec::new();
        let body = body.map(Value::to_string).unwrap_or_default();
        let headers = if method == "POST" && body.is_empty() { "content-length: 0\r\n" } else { "" };
        self.target.write(method, path, headers, body.as_bytes(), &mut request);
        let answer = self.connection.exchange(&request, within).await?;
        Ok((answer.status, serde_json::from_slice(answer.body).unwrap_or(Value::Null)))
    }
}
