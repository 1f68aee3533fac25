//! Serves one connection, request after request, so that an idle connection costs little.
//!
//! Hyper serves the connection while requests arrive. Once it has idled for [`PARK_AFTER`], hyper's part is dropped
//! with all its buffers, however large the last request was; when the next bytes arrive, it is set up anew. Bytes
//! in hyper's buffer that are no request yet are the beginning of one, whose time runs since the answer before.
//!
//! The head of a request must arrive within [`HEAD_READ_MAX`] of its first byte, however steadily it drips, and the
//! first byte within [`IDLE_MAX`] of the answer before. Hyper has one bound for both, and sets a timer for each
//! request; here one timer keeps running, and the task compares the clock when it ends.

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
/// From an answer to the first byte of the next request. Longer than the minute after which load balancers usually
/// close an idle connection: the side that sends requests must be the one that closes.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(75);
/// From an answer to the moment at which the connection's buffers are freed.
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

/// Waits for bytes; `true` when none will arrive, and the connection is over.
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

/// Ends when the connection has idled for long enough to be parked (`true`), or when the head that is arriving is
/// late (`false`).
fn poll_rest(activity: &Activity, timer: Pin<&mut Sleep>, context: &mut Context<'_>) -> Poll<bool> {
    // The client owes a request, whether or not hyper reads right now.
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

/// Whether `until` has passed; if not, the timer wakes the task then or before. To set a timer costs more than a
/// wake-up in vain now and then.
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
