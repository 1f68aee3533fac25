//! One kept HTTP/1.1 connection: a request's bytes out, its answer's few facts in.
//!
//! A load generator shares the machine with what it measures, so it does as little as it can: one
//! write, mostly one read, no header map, no copy of the body. One request at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::target::{ByteStream, LoadTarget};

/// A connection that was idle for this long is made anew: the server may be about to close it.
const IDLE_MAX: Duration = Duration::from_secs(5);
const HEADERS_MAX: usize = 64;
/// The longest head and body that are taken in.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
const READ_BYTES: usize = 8 * 1024;

/// One connection to a [`LoadTarget`], made with its first request and made anew when it broke or idled.
pub struct RawConnection {
    target: Arc<LoadTarget>,
    stream: Option<Box<dyn ByteStream>>,
    used_at: Instant,
    /// The answer being read; the last one until then.
    buffer: Vec<u8>,
    /// A body that came in chunks, put together.
    whole: Vec<u8>,
}

/// The answer to one request; the body is borrowed from the connection.
#[derive(Debug, Clone, Copy)]
pub struct RawResponse<'a> {
    pub status: u16,
    /// Of `Retry-After`, where it is a number of seconds.
    pub retry_after: Option<Duration>,
    /// Of `Idempotent-Replayed`.
    pub is_replay: bool,
    pub body: &'a [u8],
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeError {
    /// No connection could be made: the request was not sent.
    NoConnection(std::io::ErrorKind),
    /// It was sent, and no answer came in time.
    TimedOut,
    /// It was sent, perhaps not whole, and the connection broke.
    BrokenOff,
    /// What came is not HTTP.
    NotHttp,
}

impl ExchangeError {
    /// A name for tables.
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeError::NoConnection(_) => "no connection",
            ExchangeError::TimedOut => "timed out",
            ExchangeError::BrokenOff => "broken off",
            ExchangeError::NotHttp => "not HTTP",
        }
    }

    /// Whether what was asked for may have happened all the same.
    pub fn may_have_happened(self) -> bool {
        !matches!(self, ExchangeError::NoConnection(_))
    }
}

impl std::fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExchangeError::NoConnection(kind) => write!(f, "no connection: {kind}"),
            other => f.write_str(other.as_str()),
        }
    }
}

/// What the head of an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ResponseHead {
    bytes: usize,
    status: u16,
    retry_after: Option<Duration>,
    is_replay: bool,
    length: BodyLength,
    closes: bool,
}

/// How far the body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLength {
    Bytes(usize),
    Chunks,
    ToTheEnd,
}

impl RawConnection {
    /// A connection to be made with the first request, or by [`RawConnection::open`].
    pub fn new(target: Arc<LoadTarget>) -> Self {
        let (buffer, whole) = (Vec::with_capacity(READ_BYTES), Vec::new());
        RawConnection { target, stream: None, used_at: Instant::now(), buffer, whole }
    }

    /// Connects now, unless it is connected.
    ///
    /// # Errors
    ///
    /// [`ExchangeError::NoConnection`].
    pub async fn open(&mut self) -> Result<(), ExchangeError> {
        if self.stream.is_none() || self.used_at.elapsed() > IDLE_MAX {
            self.stream = None;
            let connected = self.target.connect().await;
            self.stream = Some(connected.map_err(|error| ExchangeError::NoConnection(error.kind()))?);
            self.used_at = Instant::now();
        }
        Ok(())
    }

    /// Sends the bytes of a request and reads its answer, both within `within`.
    ///
    /// # Errors
    ///
    /// See [`ExchangeError`]; the next exchange connects anew.
    pub async fn exchange(
        &mut self,
        request: &[u8],
        within: Duration,
    ) -> Result<RawResponse<'_>, ExchangeError> {
        let read = match tokio::time::timeout(within, self.attempt(request)).await {
            Ok(read) => read,
            Err(_) if self.stream.is_some() => Err(ExchangeError::TimedOut),
            Err(_) => Err(ExchangeError::NoConnection(std::io::ErrorKind::TimedOut)),
        };
        self.used_at = Instant::now();
        match read {
            Ok(head) => {
                if head.closes {
                    self.stream = None;
                }
                let body = match head.length {
                    BodyLength::Chunks => &self.whole[..],
                    _ => &self.buffer[head.bytes..],
                };
                Ok(RawResponse {
                    status: head.status,
                    retry_after: head.retry_after,
                    is_replay: head.is_replay,
                    body,
                })
            }
            Err(fault) => {
                self.stream = None;
                Err(fault)
            }
        }
    }

    async fn attempt(&mut self, request: &[u8]) -> Result<ResponseHead, ExchangeError> {
        self.open().await?;
        let stream = self.stream.as_mut().ok_or(ExchangeError::BrokenOff)?;
        self.buffer.clear();
        stream.write_all(request).await.map_err(|_| ExchangeError::BrokenOff)?;
        let mut head = None;
        loop {
            if head.is_none() {
                head = read_head(&self.buffer)?;
                if let Some(found) = head
                    && found.status < 200
                {
                    // An interim answer; the real one follows.
                    self.buffer.drain(..found.bytes);
                    head = None;
                    continue;
                }
            }
            let is_whole = match head {
                None => false,
                Some(ResponseHead { bytes, length: BodyLength::Bytes(length), .. }) => {
                    self.buffer.len() >= bytes + length
                }
                Some(ResponseHead { bytes, length: BodyLength::Chunks, .. }) => {
                    unchunk(&self.buffer[bytes..], &mut self.whole)?
                }
                Some(ResponseHead { length: BodyLength::ToTheEnd, .. }) => false,
            };
            match head {
                Some(found) if is_whole => return Ok(found),
                _ if self.buffer.len() > ANSWER_BYTES_MAX => return Err(ExchangeError::NotHttp),
                _ => {}
            }
            self.buffer.reserve(READ_BYTES);
            let read = stream.read_buf(&mut self.buffer).await.map_err(|_| ExchangeError::BrokenOff)?;
            if read == 0 {
                return match head {
                    Some(found) if found.length == BodyLength::ToTheEnd => Ok(found),
                    _ => Err(ExchangeError::BrokenOff),
                };
            }
        }
    }
}

/// Reads a head, if it is all there.
fn read_head(bytes: &[u8]) -> Result<Option<ResponseHead>, ExchangeError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = match response.parse(bytes) {
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(ExchangeError::NotHttp),
    };
    let status = response.code.ok_or(ExchangeError::NotHttp)?;
    let mut head = ResponseHead {
        bytes: parsed,
        status,
        retry_after: None,
        is_replay: false,
        length: if status == 204 || status == 304 { BodyLength::Bytes(0) } else { BodyLength::ToTheEnd },
        closes: response.version == Some(0),
    };
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            head.length = BodyLength::Bytes(value.parse().map_err(|_| ExchangeError::NotHttp)?);
        } else if is("transfer-encoding") {
            head.length = BodyLength::Chunks;
        } else if is("retry-after") {
            head.retry_after = value.parse().ok().map(Duration::from_secs);
        } else if is("idempotent-replayed") {
            head.is_replay = value == "true";
        } else if is("connection") {
            head.closes |= value.eq_ignore_ascii_case("close");
        }
    }
    head.closes |= head.length == BodyLength::ToTheEnd;
    Ok(Some(head))
}

/// Puts chunks together. `false` while more are to come.
fn unchunk(mut chunks: &[u8], whole: &mut Vec<u8>) -> Result<bool, ExchangeError> {
    whole.clear();
    loop {
        match httparse::parse_chunk_size(chunks) {
            Ok(httparse::Status::Complete((begins, 0))) => {
                // Trailers, if any, end with an empty line.
                let trailers = &chunks[begins..];
                return Ok(
                    trailers.starts_with(b"\r\n") || trailers.windows(4).any(|four| four == b"\r\n\r\n")
                );
            }
            Ok(httparse::Status::Complete((begins, length))) => {
                let length = usize::try_from(length).map_err(|_| ExchangeError::NotHttp)?;
                let ends = begins.checked_add(length).ok_or(ExchangeError::NotHttp)?;
                let Some(rest) = chunks.get(ends..).filter(|rest| rest.len() >= 2) else { return Ok(false) };
                if !rest.starts_with(b"\r\n") {
                    return Err(ExchangeError::NotHttp);
                }
                whole.extend_from_slice(&chunks[begins..ends]);
                chunks = &rest[2..];
            }
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(_) => return Err(ExchangeError::NotHttp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Answers each request of one connection with the next of `answers`, a byte at a time.
    async fn serve(answers: &'static [&'static str]) -> RawConnection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = LoadTarget::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            for answer in answers {
                let mut request = [0; 1_000];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                for byte in answer.as_bytes() {
                    stream.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        });
        RawConnection::new(Arc::new(target))
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn answers_are_read_whole_however_they_are_cut_and_framed() {
        let mut connection = serve(&[
            "HTTP/1.1 202 Accepted\r\nRetry-After: 2\r\nidempotent-replayed: true\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nto the end",
        ])
        .await;
        let answer = connection.exchange(b"GET", LONG).await.unwrap();
        assert_eq!((answer.status, answer.body, answer.is_replay), (202, &b"hello"[..], true));
        assert_eq!(answer.retry_after, Some(Duration::from_secs(2)));
        let answer = connection.exchange(b"GET", LONG).await.unwrap();
        assert_eq!((answer.status, answer.body, answer.is_replay), (200, &b"abcde"[..], false));
        let answer = connection.exchange(b"GET", LONG).await.unwrap();
        assert_eq!((answer.status, answer.body), (204, &b""[..]));
        let answer = connection.exchange(b"GET", LONG).await.unwrap();
        assert_eq!((answer.status, answer.body), (200, &b"to the end"[..]));
        let fault = connection.exchange(b"GET", LONG).await.unwrap_err();
        assert_eq!(fault, ExchangeError::NoConnection(std::io::ErrorKind::ConnectionRefused));
    }

    #[tokio::test]
    async fn no_answer_is_told_apart_by_whether_the_request_may_have_arrived() {
        let mut cut = serve(&["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"]).await;
        assert_eq!(cut.exchange(b"GET", LONG).await.unwrap_err(), ExchangeError::BrokenOff);
        let mut odd = serve(&["SSH-2.0-OpenSSH_9.2\r\n"]).await;
        assert_eq!(odd.exchange(b"GET", LONG).await.unwrap_err(), ExchangeError::NotHttp);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = LoadTarget::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let mut silent = RawConnection::new(Arc::new(target));
        let fault = silent.exchange(b"GET", Duration::from_millis(20)).await.unwrap_err();
        assert_eq!((fault, fault.may_have_happened()), (ExchangeError::TimedOut, true));
    }
}
