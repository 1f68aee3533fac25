//! An answer on its way to the client: its body notes when it is complete, or given up.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::activity::Activity;

/// The body of an answer.
pub(super) struct AnswerBody {
    body: Body,
    activity: Arc<Activity>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.activity.end_request();
    }
}

/// Ties an answer to the activity of its connection. If the process leaves, the answer is the last one of its connection,
/// so that clients open new ones before the process takes none any more, and a balancer gives those to other processes.
pub(super) fn of_connection(
    mut response: Response,
    activity: &Arc<Activity>,
    is_leaving: &AtomicBool,
) -> Response<AnswerBody> {
    if is_leaving.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| AnswerBody { body, activity: Arc::clone(activity) })
}

pin_project_lite::pin_project! {
    /// The future of an answer of the router.
    pub(super) struct Answering<F> {
        #[pin]
        pub router: F,
        pub activity: Arc<Activity>,
        pub is_leaving: Arc<AtomicBool>,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Answering<F> {
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.router.poll(context))?;
        Poll::Ready(Ok(of_connection(response, this.activity, this.is_leaving)))
    }
}
