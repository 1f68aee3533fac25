//! An answer of lines of JSON, read as they come.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::Value;

use super::client::{ApiClient, CallError, RepeatAdvice};

/// A stream that is silent for so long is broken.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Reads a streamed answer line by line.
pub(super) struct JsonLines {
    api: ApiClient,
    response: reqwest::Response,
    arrived: BytesMut,
}

/// One line.
pub(super) struct JsonLine {
    pub body: Value,
    /// The line as it came, without its end.
    pub raw: String,
}

/// How a read ended.
pub(super) enum JsonLineRead {
    Line(JsonLine),
    /// The transfer is complete.
    End,
    /// It broke off, or something that is not the API answers.
    Cut(String),
}

impl JsonLines {
    pub(super) fn new(api: ApiClient, response: reqwest::Response) -> Self {
        JsonLines { api, response, arrived: BytesMut::new() }
    }

    pub(super) async fn next(&mut self) -> JsonLineRead {
        loop {
            if let Some(end) = self.arrived.iter().position(|byte| *byte == b'\n') {
                let line = self.arrived.split_to(end);
                self.arrived.advance(1);
                let raw = String::from_utf8_lossy(&line).into_owned();
                return match serde_json::from_str(&raw) {
                    Ok(body) => JsonLineRead::Line(JsonLine { body, raw }),
                    Err(error) => JsonLineRead::Cut(format!("a line is not JSON: {error}")),
                };
            }
            match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
                Ok(Ok(Some(chunk))) => self.arrived.extend_from_slice(&chunk),
                Ok(Ok(None)) if self.arrived.is_empty() => return JsonLineRead::End,
                Ok(Ok(None)) => return JsonLineRead::Cut("it ended amid a line".into()),
                Ok(Err(error)) => {
                    let error: CallError = self.api.no_answer(error, RepeatAdvice::Same);
                    return JsonLineRead::Cut(
                        error.to_string().lines().next().unwrap_or_default().to_owned(),
                    );
                }
                Err(_) => return JsonLineRead::Cut(format!("nothing came for {} s", SILENCE_MAX.as_secs())),
            }
        }
    }
}
