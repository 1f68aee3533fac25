//! A connection whose bytes the test chooses.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// The server answers or closes a connection within this time.
const ANSWER_MAX: Duration = Duration::from_secs(40);
/// The smallest receive buffer that the operating system allows: a client that does not read fills it soon.
const RECEIVE_BYTES: u32 = 4 * 1024;

pub struct RawConnection(pub TcpStream);

/// An answer, read from the connection's bytes.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl RawConnection {
    pub async fn connect(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(RECEIVE_BYTES).expect("a small buffer");
        RawConnection(socket.connect(address).await.expect("a connection"))
    }

    /// Sends bytes, until the server takes no more.
    ///
    /// # Errors
    ///
    /// If the server closes the connection first.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.0.write_all(bytes.as_ref()).await
    }

    /// Sends one byte a second until the server closes the connection, or all `bytes` are sent.
    pub async fn drip(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let mut peeked = [0];
            let ended = tokio::time::timeout(Duration::from_secs(1), self.0.peek(&mut peeked));
            if ended.await.is_ok() || self.send([*byte]).await.is_err() {
                return;
            }
        }
    }

    /// Reads until the server closes the connection. Returns the answers.
    pub async fn answers(mut self) -> Vec<RawAnswer> {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(ANSWER_MAX, self.0.read_to_end(&mut bytes)).await;
        // A reset also ends the connection.
        let _ = read.expect("the server ends the connection");
        split(&String::from_utf8(bytes).expect("text"))
    }

    /// Reads one answer with a content length.
    pub async fn answer(&mut self) -> RawAnswer {
        let mut bytes = Vec::new();
        let read = async {
            loop {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Some(answer) = split(&text).into_iter().next() {
                    return answer;
                }
                assert_ne!(self.0.read_buf(&mut bytes).await.expect("bytes"), 0, "it ended: {text:?}");
            }
        };
        tokio::time::timeout(ANSWER_MAX, read).await.expect("an answer")
    }
}

/// The whole answers at the start of a text.
fn split(mut text: &str) -> Vec<RawAnswer> {
    let mut answers = Vec::new();
    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let Some((body, after)) = rest.split_at_checked(length.unwrap_or(0)) else { break };
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        answers.push(RawAnswer { status, head, body: body.to_owned() });
        text = after;
    }
    answers
}

impl RawAnswer {
    /// The problem's code. Asserts that a problem has every member of one.
    pub fn code(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let body: Value = serde_json::from_str(&self.body).expect("JSON");
        assert_eq!(body["status"], self.status);
        assert!(self.head.contains(&format!("x-request-id: {}", body["requestId"].as_str().expect("an id"))));
        body["code"].as_str().expect("a code").to_owned()
    }
}
