//! Counts every request by the user who sends it, and advertises in its answer what is left of the limit.
//!
//! A hand-written layer for the reason that the guard is one: polls pass it. It adds no allocation unless Redis must be
//! asked, or the user is over the limit.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use pin_project_lite::pin_project;
use tower::{Layer, Service, ServiceExt};

use crate::access::Caller;
use crate::api::state::limits::{CountOutcome, RateLimitFields, UserLimit};

/// Counts requests that name no user. It stands behind the guard, which finds out who sends them.
#[derive(Clone)]
pub(crate) struct CountCaller(pub UserLimit);

impl<S> Layer<S> for CountCaller {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> CountedService<S> {
        CountedService { limit: self.0.clone(), inner }
    }
}

/// A route whose requests are counted.
#[derive(Clone)]
pub(crate) struct CountedService<S> {
    limit: UserLimit,
    inner: S,
}

pin_project! {
    /// The future of a counted request.
    #[project = CountedFutureProjected]
    pub(crate) enum CountedFuture<F> {
        Inner { #[pin] inner: F, fields: RateLimitFields },
        Boxed { inner: BoxFuture<'static, Result<Response, Infallible>> },
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for CountedFuture<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            CountedFutureProjected::Inner { inner, fields } => {
                let Ok(mut response) = ready!(inner.poll(context));
                std::mem::take(fields).add_to(&mut response);
                Poll::Ready(Ok(response))
            }
            CountedFutureProjected::Boxed { inner } => inner.as_mut().poll(context),
        }
    }
}

impl<S> Service<Request> for CountedService<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = CountedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let caller = request.extensions().get::<Caller>().unwrap_or(&Caller::Anonymous);
        let inner = match self.limit.count_caller(caller) {
            CountOutcome::Now(Ok(fields)) => {
                return CountedFuture::Inner { inner: self.inner.call(request), fields };
            }
            CountOutcome::Now(Err(problem)) => std::future::ready(Ok(problem.into_response())).boxed(),
            CountOutcome::Asked(answer) => {
                let inner = self.inner.clone();
                let asking = async move {
                    match answer.await {
                        Ok(fields) => {
                            let Ok(mut response) = inner.oneshot(request).await;
                            fields.add_to(&mut response);
                            Ok(response)
                        }
                        Err(problem) => Ok(problem.into_response()),
                    }
                };
                asking.boxed()
            }
        };
        CountedFuture::Boxed { inner }
    }
}
