//! The guard before each group of routes: says who a request is from, and turns away whom the group is
//! not for.
//!
//! A layer by hand rather than a middleware function, since every request of the hot path goes through
//! it: where nothing must be waited for, it adds no allocation and no task.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use tower::{Layer, Service};

use crate::access::key::Shown;
use crate::access::{Access, Admission, Audience, Caller, Identified, Refusal};
use crate::http::cors::Origins;
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};
use crate::user::UserId;

/// Guards routes for an audience.
#[derive(Clone)]
pub struct Guard {
    pub access: Arc<Access>,
    pub audience: Audience,
    /// What is known of the pages that browsers send requests from.
    pub pages: Arc<Pages>,
}

/// Whose pages may act through a browser, where nobody is asked who they are.
pub struct Pages {
    /// Those of the service itself, where it is reached under another name than it hears.
    pub own: Option<Authority>,
    pub origins: Option<Origins>,
}

impl Pages {
    /// Whether a page of somebody else sent this. Browsers send what needs no reading from any page to
    /// any place, also to one that only this machine reaches; but they say from where.
    fn are_not_behind(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return false };
        let page = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, page)| page);
        let heard = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let is_own = page.is_some() && (page == heard || page == self.own.as_ref().map(Authority::as_str));
        !is_own && !self.origins.as_ref().is_some_and(|origins| origins.allow(origin))
    }
}

/// What may be done with a request.
enum Let {
    In(Caller),
    Away(Problem),
    /// It has a key that is not known, and may be new.
    Ask(Shown),
}

impl Guard {
    fn judge(&self, method: &Method, headers: &HeaderMap) -> Let {
        if self.access.is_open() && !method.is_safe() && self.pages.are_not_behind(headers) {
            return Let::Away(Problem::new(Code::Forbidden).with_detail(
                "A page of another site sent this, and nobody is asked for credentials here. --cors-origins names \
                 the sites that may.",
            ));
        }
        if self.audience == Audience::Anyone {
            return Let::In(if self.access.is_open() { Caller::Open } else { Caller::Anonymous });
        }
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let first = sent.next().map(HeaderValue::as_bytes);
        if sent.next().is_some() && !self.access.is_open() {
            return Let::Away(unauthenticated(Refusal::BadCredentials));
        }
        match self.access.identify(first) {
            Identified::As(caller) => self.admit(caller),
            Identified::Not(refusal) => Let::Away(unauthenticated(refusal)),
            Identified::Perhaps(shown) => Let::Ask(shown),
        }
    }

    fn admit(&self, caller: Caller) -> Let {
        match self.audience.admits(&caller) {
            Admission::Admitted => Let::In(caller),
            Admission::WhoIsIt => Let::Away(unauthenticated(Refusal::NoCredentials)),
            Admission::Forbidden => Let::Away(Problem::new(Code::Forbidden)),
        }
    }

    async fn ask(&self, shown: &Shown) -> Result<Caller, Problem> {
        let caller = self.access.ask(shown).await.map_err(unauthenticated)?;
        match self.admit(caller) {
            Let::In(caller) => Ok(caller),
            Let::Away(problem) => Err(problem),
            Let::Ask(_) => Err(unauthenticated(Refusal::BadCredentials)),
        }
    }
}

/// What RFC 6750 wants to be told.
fn unauthenticated(refusal: Refusal) -> Problem {
    let challenge = match refusal {
        Refusal::Unclear => return Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(1_000)),
        Refusal::NoCredentials => "Bearer",
        Refusal::BadCredentials => "Bearer error=\"invalid_token\"",
        Refusal::Expired => "Bearer error=\"invalid_token\", error_description=\"expired\"",
    };
    let challenge = HeaderValue::from_static(challenge);
    Problem::new(Code::Unauthenticated).with_header(header::WWW_AUTHENTICATE, challenge)
}

/// Refuses a user who asks in another's name.
pub(super) fn only_for(caller: &Caller, user: &UserId) -> Result<(), Problem> {
    if caller.may_speak_for(user) {
        return Ok(());
    }
    Err(Problem::new(Code::Forbidden).with_detail("userId is not the subject of the token."))
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// A guarded route.
#[derive(Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<Request> for Guarded<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        match self.guard.judge(request.method(), request.headers()) {
            Let::In(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Let::Away(problem) => Either::Right(std::future::ready(Ok(problem.into_response())).boxed()),
            Let::Ask(shown) => {
                let guard = self.guard.clone();
                // The one that is ready serves; its clone may not be.
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                let asking = async move {
                    match guard.ask(&shown).await {
                        Ok(caller) => {
                            request.extensions_mut().insert(caller);
                            inner.call(request).await
                        }
                        Err(problem) => Ok(problem.into_response()),
                    }
                };
                Either::Right(asking.boxed())
            }
        }
    }
}
