//! The guard before each group of routes: it identifies the caller, and refuses callers that the group is not for.
//! An answer that takes long (a held poll, a stream) ends when the request's credentials expire or are revoked.
//!
//! A hand-written layer rather than a middleware function, since every request of the hot path passes it: unless it
//! must wait for something, it adds no allocation and no task.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::access::key::PresentedKey;
use crate::access::{Access, Audience, AuthRefusal, Caller, Identification, RouteAccess};
use crate::http::cors::Origins;
use crate::http::problem::jittered_ms;
use crate::http::{Code, Problem};
use crate::ids::UserId;

/// Guards routes for an audience.
#[derive(Clone)]
pub(crate) struct Guard {
    pub access: Arc<Access>,
    pub audience: Audience,
    /// The pages whose requests count where the service asks for no credentials.
    pub pages: Arc<TrustedOrigins>,
}

/// The origins of pages that may change something through a browser where the service asks for no credentials.
pub(crate) struct TrustedOrigins {
    /// The host of the public URL: proxies may pass requests on under another name.
    pub own: Option<Authority>,
    pub origins: Option<Origins>,
}

impl TrustedOrigins {
    /// Whether a page of another site sent the request. A browser lets any page send simple requests to any host,
    /// also to one that only this machine reaches; but it names the page's origin.
    fn exclude_sender_of(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return false };
        let page = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, page)| page);
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let is_own = page.is_some() && (page == host || page == self.own.as_ref().map(Authority::as_str));
        !is_own && !self.origins.as_ref().is_some_and(|origins| origins.allow(origin))
    }
}

/// What becomes of a request.
enum AuthDecision {
    In(Caller),
    Away(Problem),
    /// It has a key that this process does not know, which may be new.
    Ask(PresentedKey),
}

impl Guard {
    fn judge(&self, method: &Method, headers: &HeaderMap) -> AuthDecision {
        if self.access.is_open() && !method.is_safe() && self.pages.exclude_sender_of(headers) {
            return AuthDecision::Away(Problem::new(Code::Forbidden).with_detail(
                "A page of another site sent this, and nobody is asked for credentials here. --cors-origins names \
                 the sites that may.",
            ));
        }
        if self.audience.is_open() {
            return AuthDecision::In(if self.access.is_open() { Caller::Open } else { Caller::Anonymous });
        }
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let first = sent.next().map(HeaderValue::as_bytes);
        if sent.next().is_some() && !self.access.is_open() {
            return AuthDecision::Away(unauthenticated(self.access.refuse_doubled()));
        }
        match self.access.identify(first) {
            Identification::As(caller) => self.admit(caller),
            Identification::Not(refusal) => AuthDecision::Away(unauthenticated(refusal)),
            Identification::Perhaps(shown) => AuthDecision::Ask(shown),
        }
    }

    fn admit(&self, caller: Caller) -> AuthDecision {
        match self.audience.admits(&caller) {
            RouteAccess::Admitted => AuthDecision::In(caller),
            RouteAccess::Unauthenticated => AuthDecision::Away(unauthenticated(AuthRefusal::NoCredentials)),
            RouteAccess::Forbidden => AuthDecision::Away(Problem::new(Code::Forbidden)),
        }
    }

    async fn ask(&self, shown: &PresentedKey) -> Result<Caller, Problem> {
        let caller = self.access.ask(shown).await.map_err(unauthenticated)?;
        match self.admit(caller) {
            AuthDecision::In(caller) => Ok(caller),
            AuthDecision::Away(problem) => Err(problem),
            AuthDecision::Ask(_) => Err(unauthenticated(AuthRefusal::BadCredentials)),
        }
    }
}

/// The problem of RFC 6750. The log has the details, which would help an attacker.
fn unauthenticated(refusal: AuthRefusal) -> Problem {
    let problem = Problem::new(Code::Unauthenticated);
    let (challenge, problem) = match refusal {
        AuthRefusal::Unclear => return Problem::new(Code::Unavailable).retry_after_ms(jittered_ms(1_000)),
        AuthRefusal::NoCredentials => ("Bearer", problem),
        AuthRefusal::BadCredentials => (
            "Bearer error=\"invalid_token\"",
            problem.with_words(&[
                "The credentials that were sent are none that this service takes; its log says why.",
                "보낸 인증 정보를 이 서비스가 받아들일 수 없습니다. 이유는 서비스 로그에 있습니다.",
            ]),
        ),
        AuthRefusal::Expired => (
            "Bearer error=\"invalid_token\", error_description=\"expired\"",
            problem.with_words(&[
                "The token has expired: get a new one.",
                "토큰이 만료되었습니다. 새로 발급받으세요.",
            ]),
        ),
        AuthRefusal::KeyExpired => (
            "Bearer error=\"invalid_token\", error_description=\"expired\"",
            problem.with_words(&[
                "The API key has expired: an operator makes a new one.",
                "API 키가 만료되었습니다. 운영자에게 새 키를 받으세요.",
            ]),
        ),
        AuthRefusal::Early => (
            "Bearer error=\"invalid_token\", error_description=\"not valid yet\"",
            problem.with_words(&[
                "The token is not valid yet (nbf).",
                "토큰의 유효 기간이 아직 시작되지 않았습니다(nbf).",
            ]),
        ),
    };
    problem.with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

/// Checks that the caller may act for the user.
///
/// # Errors
/// 403 `forbidden`.
pub(crate) fn only_for(caller: &Caller, user: &UserId) -> Result<(), Problem> {
    match caller {
        _ if caller.may_speak_for(user) => Ok(()),
        Caller::User(subject) => Err(Problem::new(Code::Forbidden).with_detail(format!(
            "userId is not the user of the token, who is {subject:?}.",
            subject = subject.as_str()
        ))),
        _ => Err(Problem::new(Code::Forbidden)),
    }
}

/// Whether a request or its answer takes so long that its credentials may end meanwhile.
enum RequestDuration {
    /// The answer comes at once.
    No,
    /// The answer may be a stream.
    Answer(CredentialLease),
    /// The request may be held before it is answered.
    Request(CredentialLease),
}

/// The credentials of a request while its answer lasts.
struct CredentialLease {
    access: Arc<Access>,
    sent: Option<HeaderValue>,
}

impl CredentialLease {
    /// Waits until the credentials have expired or are revoked.
    async fn ends(self) {
        self.access.revoked(self.sent.as_ref().map(HeaderValue::as_bytes)).await;
    }
}

impl Guard {
    fn lasts(&self, request: &Request) -> RequestDuration {
        let is_held = request.uri().query().is_some_and(|query| query.contains("wait"));
        let is_read = request.method().is_safe();
        if self.audience.is_open() || !(is_held || is_read) {
            return RequestDuration::No;
        }
        let sent = request.headers().get(header::AUTHORIZATION).cloned();
        let standing = CredentialLease { access: Arc::clone(&self.access), sent };
        if is_held { RequestDuration::Request(standing) } else { RequestDuration::Answer(standing) }
    }
}

/// Cuts a stream off when the credentials end. It fails rather than ends, because the end of some streams says that
/// they are complete.
fn bounded(response: Response, standing: CredentialLease) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let state = (body.into_data_stream(), standing.ends().boxed());
    let parts_of_body = stream::try_unfold(state, async |(mut body, mut ends)| {
        tokio::select! {
            biased;
            () = &mut ends => Err(axum::Error::new(std::io::Error::other("the credentials are good no more"))),
            part = body.next() => match part {
                Some(part) => Ok(Some((part?, (body, ends)))),
                None => Ok(None),
            },
        }
    });
    Response::from_parts(parts, Body::from_stream(parts_of_body))
}

/// Passes a request on, and refuses it when its credentials end before it is answered.
async fn held<S>(mut inner: S, request: Request, standing: CredentialLease) -> Result<Response, Infallible>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    tokio::select! {
        biased;
        answer = inner.call(request) => answer,
        () = standing.ends() => Ok(unauthenticated(AuthRefusal::BadCredentials).into_response()),
    }
}

impl<S> Layer<S> for Guard {
    type Service = GuardedService<S>;

    fn layer(&self, inner: S) -> GuardedService<S> {
        GuardedService { guard: self.clone(), inner }
    }
}

/// A guarded route.
#[derive(Clone)]
pub(crate) struct GuardedService<S> {
    guard: Guard,
    inner: S,
}

impl<S: Clone> GuardedService<S> {
    /// The inner service that is ready; its clone may not be.
    fn ready(&mut self) -> S {
        let clone = self.inner.clone();
        std::mem::replace(&mut self.inner, clone)
    }
}

pin_project! {
    /// The future of a guarded request.
    #[project = GuardedFutureProjected]
    pub(crate) enum GuardedFuture<F> {
        Inner { #[pin] inner: F, standing: Option<CredentialLease> },
        Boxed { inner: BoxFuture<'static, Result<Response, Infallible>> },
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for GuardedFuture<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            GuardedFutureProjected::Inner { inner, standing } => {
                let response = match ready!(inner.poll(context)) {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                Poll::Ready(Ok(match standing.take() {
                    Some(standing) => bounded(response, standing),
                    None => response,
                }))
            }
            GuardedFutureProjected::Boxed { inner } => inner.as_mut().poll(context),
        }
    }
}

impl<S> Service<Request> for GuardedService<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = GuardedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let lasts = self.guard.lasts(&request);
        match self.guard.judge(request.method(), request.headers()) {
            AuthDecision::In(caller) => {
                request.extensions_mut().insert(caller);
                match lasts {
                    RequestDuration::No => {
                        GuardedFuture::Inner { inner: self.inner.call(request), standing: None }
                    }
                    RequestDuration::Answer(standing) => {
                        GuardedFuture::Inner { inner: self.inner.call(request), standing: Some(standing) }
                    }
                    RequestDuration::Request(standing) => {
                        GuardedFuture::Boxed { inner: held(self.ready(), request, standing).boxed() }
                    }
                }
            }
            AuthDecision::Away(problem) => {
                GuardedFuture::Boxed { inner: std::future::ready(Ok(problem.into_response())).boxed() }
            }
            AuthDecision::Ask(shown) => {
                let guard = self.guard.clone();
                let mut inner = self.ready();
                let asking = async move {
                    let caller = match guard.ask(&shown).await {
                        Ok(caller) => caller,
                        Err(problem) => return Ok(problem.into_response()),
                    };
                    request.extensions_mut().insert(caller);
                    match lasts {
                        RequestDuration::No => inner.call(request).await,
                        RequestDuration::Answer(standing) => {
                            inner.call(request).await.map(|response| bounded(response, standing))
                        }
                        RequestDuration::Request(standing) => held(inner, request, standing).await,
                    }
                };
                GuardedFuture::Boxed { inner: asking.boxed() }
            }
        }
    }
}
