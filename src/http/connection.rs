//! A client's connection, so guarded that a client who is slow or broken costs little:
//!
//! - The head of a request must be there within [`HEAD_READ_MAX`] of its first byte, however steadily it
//!   drips, and its first byte within [`IDLE_MAX`] of the answer before. Hyper's own bound is one for
//!   both, and sets a timer for each request; here one timer is left running, and looked at when it
//!   has run down.
//! - A write that gets nowhere for [`WRITE_STALL_MAX`] ends the connection: somebody asks and does not
//!   read. Only a write that cannot go on arms the timer, so whoever waits for an outcome or listens to
//!   events, where little is written, is left alone.
//! - What hyper refuses by itself, because no request can be made of it, gets the body of a problem.
//! - A connection that the server ends is read on for [`LINGER_MAX`]: closed with bytes unread, TCP
//!   would take the answer back before the client has seen it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{Code, Language, Problem};
use crate::metrics;

/// From the first byte of a request's head to its last; of the first request, from the connection on.
const HEAD_READ_MAX: Duration = Duration::from_secs(15);
/// From an answer to the first byte of the next request. Longer than the minute after which load balancers
/// are used to end what idles: whoever sends must be the one who ends it.
const IDLE_MAX: Duration = Duration::from_secs(75);
/// A client who reads nothing for so long is gone, or wants to do harm.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);
/// How long what a client still sends is thrown away before the connection is closed.
const LINGER_MAX: Duration = Duration::from_secs(1);
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Where in an answer its status begins: after "HTTP/1.1 ".
const STATUS_AT: usize = 9;
/// Up to so many it costs less to copy the bytes into one buffer than to have the system take them from several.
const TOGETHER_MAX_BYTES: usize = 1024;
const LINGER_READ_BYTES: usize = 4 * 1024;

/// See the module's documentation.
pub(super) struct Connection {
    stream: TcpStream,
    in_hand: InHand,
    /// When the head that is arriving began.
    head_since: Option<Instant>,
    /// When the last answer was written.
    idle_since: Instant,
    /// Runs down at or before the moment until which a request is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Runs while a write cannot go on.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs once the server has ended its side.
    lingering: Option<Pin<Box<Sleep>>>,
    refusal: Option<Refusal>,
}

/// Whether a request is whole and its answer has not begun: what arrives meanwhile is no head.
#[derive(Clone, Default)]
pub(super) struct InHand(Arc<AtomicBool>);

impl InHand {
    /// A request is there.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is written instead of a refusal without a body.
struct Refusal {
    answer: Vec<u8>,
    written: usize,
}

impl Connection {
    /// Guards a connection. Whoever is given its requests says so to `in_hand`.
    pub fn new(stream: TcpStream, in_hand: InHand) -> Self {
        let now = Instant::now();
        Connection {
            stream,
            in_hand,
            head_since: Some(now),
            idle_since: now,
            waiting: None,
            stalled: None,
            lingering: None,
            refusal: None,
        }
    }

    /// Bytes have come in.
    fn has_read(&mut self) {
        if self.in_hand.is() {
            self.head_since = None;
        } else {
            self.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// Nothing comes in: whether a request, or the rest of its head, has been waited for too long.
    fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // While a request is in hand nobody is too slow; but the timer must be left running, for hyper does
        // not ask again once it is answered.
        let in_hand = self.in_hand.is();
        let since = if in_hand { None } else { self.head_since };
        self.head_since = since;
        let idle_since = if in_hand { Instant::now() } else { self.idle_since };
        let until = since.map_or(idle_since + IDLE_MAX, |since| since + HEAD_READ_MAX);
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if until < waiting.deadline() {
            waiting.as_mut().reset(until);
        }
        while waiting.as_mut().poll(context).is_ready() {
            if until <= waiting.deadline() {
                return Poll::Ready(match since {
                    Some(_) => {
                        metrics::DROPPED.count("slow-head");
                        Err(io::ErrorKind::TimedOut.into())
                    }
                    // As if the client had ended it.
                    None => Ok(()),
                });
            }
            waiting.as_mut().reset(until);
        }
        Poll::Pending
    }

    /// An answer, or a part of it, is written.
    fn has_written(&mut self, bytes: &[u8]) {
        // "100 Continue" is no answer yet; hyper may write it together with one.
        if !bytes.strip_prefix(CONTINUE).unwrap_or(bytes).is_empty() {
            self.in_hand.end();
            (self.head_since, self.idle_since) = (None, Instant::now());
        }
    }

    /// Watches over a write: whether it has waited for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.stalled = None;
            return write;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        ready!(stalled.as_mut().poll(context));
        metrics::DROPPED.count("slow-reader");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes the refusal whole; then says that `bare` was written.
    fn poll_refuse(&mut self, context: &mut Context<'_>, bare: &[u8]) -> Poll<io::Result<usize>> {
        let Connection { stream, refusal, .. } = self;
        let Some(Refusal { answer, written }) = refusal else { return Poll::Ready(Ok(bare.len())) };
        while *written < answer.len() {
            match Pin::new(&mut *stream).poll_write(context, &answer[*written..]) {
                Poll::Ready(Ok(count)) => *written += count,
                other => return self.watch(context, other),
            }
        }
        self.refusal = None;
        self.watch(context, Poll::Ready(Ok(bare.len())))
    }
}

/// The slices in one, if they fit.
fn joined<'a>(slices: &[IoSlice<'_>], into: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    for slice in slices {
        into.get_mut(length..length + slice.len())?.copy_from_slice(slice);
        length += slice.len();
    }
    Some(&into[..length])
}

/// The problem for what hyper answers by itself. Every answer of ours with these statuses has a body.
fn refusal_of(head: &[u8]) -> Option<Refusal> {
    const BARE: [(&[u8], Code); 3] = [
        (b"HTTP/1.1 400 ", Code::Malformed),
        (b"HTTP/1.1 414 ", Code::UriTooLong),
        (b"HTTP/1.1 431 ", Code::HeadTooLarge),
    ];
    let (_, code) = BARE.into_iter().find(|(start, _)| head.starts_with(start))?;
    let text = std::str::from_utf8(head).ok()?;
    if !text.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let mut problem = Problem::new(code);
    if code == Code::Malformed {
        problem = problem.with_detail("This is not HTTP/1.1.");
    }
    // Which language, and whose id: nobody could read it.
    let id = crate::random_id();
    let body = problem.body(Language::English, &id);
    let status = code.status();
    let mut answer = format!(
        "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-type: application/problem+json\r\n\
         content-language: en\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n\
         x-request-id: {id}\r\ncontent-length: {}\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len(),
    )
    .into_bytes();
    answer.extend(body);
    Some(Refusal { answer, written: 0 })
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if read.is_pending() {
            return self.poll_wait(context);
        }
        if into.filled().len() > before {
            self.has_read();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_written(bytes);
        // A success, which nearly all answers are, is told from a refusal by one byte.
        if bytes.get(STATUS_AT) == Some(&b'4') && self.refusal.is_none() {
            self.refusal = refusal_of(bytes);
        }
        if self.refusal.is_some() {
            return self.poll_refuse(context, bytes);
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A refusal without a body is one slice.
        if let [head] = slices {
            return self.poll_write(context, head);
        }
        self.has_written(slices.first().map_or(&[], |first| first));
        let mut together = [0; TOGETHER_MAX_BYTES];
        if let Some(together) = joined(slices, &mut together) {
            let written = Pin::new(&mut self.stream).poll_write(context, together);
            return self.watch(context, written);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    /// Else hyper would copy each body whole into a buffer of the connection, were it a megabyte that nobody
    /// reads.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Connection { stream, lingering, .. } = &mut *self;
        if lingering.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(context))?;
        }
        let lingering = lingering.get_or_insert_with(|| Box::pin(sleep(LINGER_MAX)));
        let mut thrown_away = [0; LINGER_READ_BYTES];
        loop {
            let mut into = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut *stream).poll_read(context, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
                // The client has ended its side too, or is gone.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return lingering.as_mut().poll(context).map(Ok),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::Response;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.expect("it connects"), accepted.expect("it connects").0)
    }

    /// A request that is there at once, and whose answer takes so long; then silence.
    async fn idles_after(answering: Duration) {
        let (mut client, stream) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is taken");
        let in_hand = InHand::default();
        let connection = TokioIo::new(Connection::new(stream, in_hand.clone()));
        let service = service_fn(move |_: axum::http::Request<Incoming>| {
            in_hand.begin();
            async move {
                tokio::time::sleep(answering).await;
                Ok::<_, Infallible>(Response::new(String::from("done")))
            }
        });
        let began = Instant::now();
        tokio::spawn(http1::Builder::new().header_read_timeout(None).serve_connection(connection, service));
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(IDLE_MAX * 10, client.read_to_end(&mut answer)).await;
        ended.expect("it is ended").expect("it is ended well");
        assert!(answer.ends_with(b"done"), "{:?}", String::from_utf8_lossy(&answer));
        let idled = began.elapsed() - answering;
        assert!((IDLE_MAX..IDLE_MAX * 2).contains(&idled), "ended after {idled:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_idles_is_ended_however_its_last_request_came_and_was_answered() {
        for answering in [Duration::ZERO, HEAD_READ_MAX * 2, IDLE_MAX * 2] {
            idles_after(answering).await;
        }
    }

    #[tokio::test]
    async fn an_answer_right_behind_a_100_is_an_answer() {
        let (_client, stream) = pair().await;
        let in_hand = InHand::default();
        let mut connection = Connection::new(stream, in_hand.clone());
        in_hand.begin();
        connection.has_written(CONTINUE);
        assert!(in_hand.is());
        connection.has_written(&[CONTINUE, b"HTTP/1.1 400 Bad Request\r\n\r\n"].concat());
        assert!(!in_hand.is());
    }

    #[tokio::test(start_paused = true)]
    async fn who_idles_for_long_is_taken_for_gone_and_who_drips_for_slow() {
        let (client, stream) = pair().await;
        let in_hand = InHand::default();
        let mut connection = Connection::new(stream, in_hand.clone());

        client.try_write(b"GET / HTTP/1.1\r\n\r\n").expect("it is taken");
        connection.read_u8().await.expect("a head");
        in_hand.begin();
        let waits = tokio::time::timeout(IDLE_MAX * 2, connection.read_exact(&mut [0; 64])).await;
        assert!(waits.is_err(), "whose request is in hand may be silent");
        connection.has_written(b"HTTP/1.1 200 OK\r\n\r\n");

        let idle = Instant::now();
        assert_eq!(connection.read(&mut [0]).await.expect("no fault of the client's"), 0);
        assert!((IDLE_MAX..IDLE_MAX * 2).contains(&idle.elapsed()), "{:?}", idle.elapsed());

        connection.has_written(b"HTTP/1.1 200 OK\r\n\r\n");
        client.try_write(b"G").expect("it is taken");
        connection.read_u8().await.expect("the beginning of a head");
        let slow = Instant::now();
        let error = connection.read_u8().await.expect_err("the rest does not come");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((HEAD_READ_MAX..HEAD_READ_MAX * 2).contains(&slow.elapsed()), "{:?}", slow.elapsed());
    }

    #[test]
    fn only_a_refusal_without_a_body_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Mon\r\n\r\n";
        let answer = String::from_utf8(refusal_of(bare).expect("a problem").answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.contains("\"code\":\"head-too-large\""), "{body}");

        let ours = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n";
        let other = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        assert!(refusal_of(ours).is_none() && refusal_of(other).is_none());
    }
}
