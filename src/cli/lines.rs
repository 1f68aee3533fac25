//! An answer of lines of JSON, read as they come.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::Value;

use super::client::{Api, CallError, Repeat};

/// A stream that is silent for so long is broken.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub(super) struct Lines {
    api: Api,
    response: reqwest::Response,
    arrived: BytesMut,
}

/// One line.
pub(super) struct Line {
    pub body: Value,
    /// The line as it came, without its end.
    pub raw: String,
}

/// How a read ended.
pub(super) enum Next {
    Line(Line),
    /// The transfer is complete.
    End,
    /// It broke off, or somebody else answers.
    Cut(String),
}

impl Lines {
    pub(super) fn new(api: Api, response: reqwest::Response) -> Self {
        Lines { api, response, arrived: BytesMut::new() }
    }

    pub(super) async fn next(&mut self) -> Next {
        loop {
            if let Some(end) = self.arrived.iter().position(|byte| *byte == b'\n') {
                let line = self.arrived.split_to(end);
                self.arrived.advance(1);
                let raw = String::from_utf8_lossy(&line).into_owned();
                return match serde_json::from_str(&raw) {
                    Ok(body) => Next::Line(Line { body, raw }),
                    Err(error) => Next::Cut(format!("a line is not JSON: {error}")),
                };
            }
            match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.arrived.extend_from_slice(&chunk),
                Ok(Ok(None)) if self.arrived.is_empty() => return Next::End,
                Ok(Ok(None)) => return Next::Cut("it ended amid a line".into()),
                Ok(Err(error)) => {
                    let error: CallError = self.api.no_answer(error, Repeat::Same);
                    return Next::Cut(error.to_string().lines().next().unwrap_or_default().to_owned());
                }
                Err(_) => return Next::Cut(format!("nothing came for {} s", SILENCE_MAX.as_secs())),
            }
        }
    }
}
