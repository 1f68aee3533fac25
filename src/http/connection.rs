//! A client's connection, guarded so that a slow or broken client costs little:
//!
//! - It notes in its [`Activity`] when bytes arrive, and when an answer cannot be written;
//!   [`super::keep_alive`] bounds how long a request may take to arrive.
//! - A write that makes no progress for [`WRITE_STALL_MAX`] ends the connection: the client sends requests and
//!   does not read. Only a write that cannot go on arms the timer, so it never ends a connection that waits for
//!   an outcome or listens to events.
//! - What hyper itself refuses, because it is not HTTP, gets the body of a problem, and the [`LoadShedder`] is
//!   told.
//! - The server reads on for [`LINGER_MAX`] from a connection that it ends: if TCP closes with bytes unread, the
//!   client loses the answer.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::activity::Activity;
use super::server::LoadShedder;
use super::{Code, Language, Problem};
use crate::metrics;

/// A client that reads nothing for this long is gone, or hostile.
const WRITE_STALL_MAX: Duration = Duration::from_secs(10);
/// How long the server discards what a client still sends before it closes the connection.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// Where in an answer its status begins: after "HTTP/1.1 ".
const STATUS_AT: usize = 9;
/// Up to this size one copy into one buffer costs less than a vectored write.
const TOGETHER_MAX_BYTES: usize = 1024;
const LINGER_READ_BYTES: usize = 4 * 1024;

/// A guarded connection.
pub(super) struct Connection {
    stream: TcpStream,
    activity: Arc<Activity>,
    peer: IpAddr,
    shedder: Option<Arc<dyn LoadShedder>>,
    /// Bytes that were put back, and are read first.
    ahead: Bytes,
    /// Runs while a write cannot go on.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs once the server has ended its side.
    lingering: Option<Pin<Box<Sleep>>>,
    refusal: Option<Refusal>,
}

/// What is written instead of a refusal without a body.
struct Refusal {
    answer: Vec<u8>,
    written: usize,
}

impl Connection {
    /// Guards a connection with `peer`.
    pub fn new(
        stream: TcpStream,
        activity: Arc<Activity>,
        peer: IpAddr,
        shedder: Option<Arc<dyn LoadShedder>>,
    ) -> Self {
        Connection {
            stream,
            activity,
            peer,
            shedder,
            ahead: Bytes::new(),
            stalled: None,
            lingering: None,
            refusal: None,
        }
    }

    /// Ready when there are bytes to read, or the end.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.ahead.is_empty() { self.stream.poll_read_ready(context).map(|_| ()) } else { Poll::Ready(()) }
    }

    /// Puts back bytes that were read and are no request yet. Returns whether any are left without the empty lines
    /// that may precede a request.
    pub fn put_back(&mut self, read: &[u8]) -> bool {
        // A copy, of its own size: the buffer that it lies in may be far larger.
        self.ahead = Bytes::copy_from_slice(read.trim_ascii_start());
        !self.ahead.is_empty()
    }

    /// Passes on the result of a write, and fails if writing has made no progress for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if write.is_ready() {
            if self.stalled.take().is_some() {
                self.activity.stall(false);
            }
            return write;
        }
        let Connection { stalled, activity, .. } = self;
        let stalled = stalled.get_or_insert_with(|| {
            activity.stall(true);
            Box::pin(sleep(WRITE_STALL_MAX))
        });
        ready!(stalled.as_mut().poll(context));
        metrics::DROPPED.count("slow-reader");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Prepares a problem in place of what hyper itself answers.
    fn refuse(&mut self, head: &[u8]) {
        let base = self.shedder.as_ref().map_or("", |shedder| shedder.base());
        let Some(refusal) = refusal_of(head, base) else { return };
        self.refusal = Some(refusal);
        // The client owes no head any more.
        self.activity.begin_request();
        if let Some(shedder) = &self.shedder {
            shedder.has_refused(self.peer);
        }
    }

    /// Writes the whole refusal, then reports the length of `bare` as written.
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

/// Copies the slices into one buffer; `None` if they do not fit.
fn joined<'a>(slices: &[IoSlice<'_>], into: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut length = 0;
    for slice in slices {
        into.get_mut(length..length + slice.len())?.copy_from_slice(slice);
        length += slice.len();
    }
    Some(&into[..length])
}

/// The problem in place of an answer of hyper itself. Only those have these statuses and no body.
fn refusal_of(head: &[u8], base: &str) -> Option<Refusal> {
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
    // The head was not read, so neither its language nor its id is known.
    let id = crate::ids::random_id();
    let body = problem.body(Language::English, &id, base);
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
        if !self.ahead.is_empty() {
            let count = into.remaining().min(self.ahead.len());
            into.put_slice(&self.ahead[..count]);
            self.ahead.advance(count);
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.activity.has_read();
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
        // One byte tells a refusal from a success, which nearly all answers are.
        if bytes.get(STATUS_AT) == Some(&b'4') && self.refusal.is_none() {
            self.refuse(bytes);
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
        let mut together = [0; TOGETHER_MAX_BYTES];
        if let Some(together) = joined(slices, &mut together) {
            let written = Pin::new(&mut self.stream).poll_write(context, together);
            return self.watch(context, written);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    /// If this were false, hyper would copy each body into a buffer of the connection, however large and even if
    /// the client never reads it.
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
    use super::*;

    #[test]
    fn only_a_refusal_without_a_body_is_replaced() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: Mon\r\n\r\n";
        let answer = String::from_utf8(refusal_of(bare, "/shop").expect("a problem").answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.contains("\"code\":\"head-too-large\""), "{body}");
        assert!(body.contains("\"type\":\"/shop/problems/head-too-large\""), "{body}");

        let ours = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n";
        let other = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        assert!(refusal_of(ours, "").is_none() && refusal_of(other, "").is_none());
    }
}
