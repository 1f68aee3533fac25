//! Serving one connection, request after request, so that what idles costs little.
//!
//! Hyper serves it while requests come. Once it has idled for [`PARK_AFTER`] hyper's part is taken down, with
//! all buffers, however large the last request was; when the next bytes come it is set up anew. What
//! then lies in hyper's buffer without being a request is the beginning of one: its time has run since
//! the answer before.
//!
//! The head of a request must be there within [`HEAD_READ_MAX`] of its first byte, however steadily it
//! drips, and its first byte within [`IDLE_MAX`] of the answer before. Hyper's own bound is one for both,
//! and sets a timer for each request; here one timer is left running, and looked at when it has run down.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep, sleep_until};

use super::activity::{Activity, ConnectionOrder, Phase};
use super::answer::AnswerBody;
use super::connection::Connection;
use crate::metrics;

/// From the first byte of a request's head to its last; of the first request, from the connection on.
pub(super) const HEAD_READ_MAX: Duration = Duration::from_secs(15);
/// From an answer to the first byte of the next request. Longer than the minute after which load balancers
/// are used to end what idles: whoever sends must be the one who ends it.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(75);
/// From an answer to the moment at which the connection's buffers are given back.
const PARK_AFTER: Duration = Duration::from_secs(2);

/// Serves a connection until it ends.
pub(super) async fn serve<S>(
    mut connection: Connection,
    builder: Arc<http1::Builder>,
    mut requests: S,
    activity: Arc<Activity>,
) where
    S: Service<Request<Incoming>, Response = Response<AnswerBody>, Error = Infallible>,
{
    let mut timer = pin!(sleep_until(Instant::now() + HEAD_READ_MAX));
    loop {
        let is_over = poll_fn(|context| poll_parked(&connection, &activity, timer.as_mut(), context)).await;
        if is_over {
            return;
        }
        let mut serving = builder.serve_connection(TokioIo::new(connection), requests);
        let mut is_finishing = false;
        let parked = poll_fn(|context| {
            loop {
                // A client that breaks off is no event.
                if Pin::new(&mut serving).poll(context).is_ready() {
                    return Poll::Ready(false);
                }
                match activity.told(context.waker()) {
                    ConnectionOrder::Finish if !is_finishing => {
                        is_finishing = true;
                        Pin::new(&mut serving).graceful_shutdown();
                    }
                    ConnectionOrder::Leave if activity.at_rest_since().is_some() => {
                        return Poll::Ready(false);
                    }
                    ConnectionOrder::Leave => activity.stays(),
                    _ => return poll_rest(&activity, timer.as_mut(), context),
                }
            }
        });
        if !parked.await {
            return;
        }
        let parts = serving.into_parts();
        (connection, requests) = (parts.io.into_inner(), parts.service);
        if connection.put_back(&parts.read_buf) {
            activity.idled_with_a_head();
        }
    }
}

/// Waits for bytes: whether there will be none, and the connection is over.
fn poll_parked(
    connection: &Connection,
    activity: &Activity,
    timer: Pin<&mut Sleep>,
    context: &mut Context<'_>,
) -> Poll<bool> {
    if connection.poll_readable(context).is_ready() {
        return Poll::Ready(false);
    }
    if activity.told(context.waker()) != ConnectionOrder::Nothing {
        return Poll::Ready(true);
    }
    let until = match activity.phase() {
        Phase::Idle { since } => activity.moment(since, IDLE_MAX),
        Phase::Head { since } => activity.moment(since, HEAD_READ_MAX),
        Phase::Request | Phase::Closed => return Poll::Pending,
    };
    if has_passed(until, timer, context) {
        if matches!(activity.phase(), Phase::Head { .. }) {
            metrics::DROPPED.count("slow-head");
        }
        return Poll::Ready(true);
    }
    Poll::Pending
}

/// Ends when the connection has idled for long enough to be parked (`true`), or the head that is coming is
/// late (`false`).
fn poll_rest(activity: &Activity, timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<bool> {
    // What the client owes, whether or not hyper reads right now.
    if activity.at_rest_since().is_none() {
        return Poll::Pending;
    }
    let (since, is_head) = match activity.phase() {
        Phase::Idle { since } => (since, false),
        Phase::Head { since } => (since, true),
        Phase::Request | Phase::Closed => return Poll::Pending,
    };
    let until = activity.moment(since, if is_head { HEAD_READ_MAX } else { PARK_AFTER });
    if !has_passed(until, timer, context) {
        return Poll::Pending;
    }
    if is_head {
        metrics::DROPPED.count("slow-head");
    }
    Poll::Ready(!is_head)
}

/// Whether it is later than `until`; else the timer wakes the task then, or before. To set a timer costs more
/// than to be woken in vain now and then.
fn has_passed(until: Instant, mut timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> bool {
    if until < timer.deadline() {
        timer.as_mut().reset(until);
    }
    while timer.as_mut().poll(context).is_ready() {
        if until <= timer.deadline() {
            return true;
        }
        timer.as_mut().reset(until);
    }
    false
}
