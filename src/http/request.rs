//! What every request passes through: it gets an id, it is refused if no handler needs to see it, its problem gets
//! its words, and it is logged and counted once.
//!
//! One layer instead of tower-http's for ids, panics and headers: those take more code (an id of a client is checked,
//! an answer of a `LoadShedder` passes no layer), and catching panics boxes every body.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::{CatchUnwind, Either, Ready, ready};
use tower::{Layer, Service};
use tracing::Instrument;
use tracing::instrument::Instrumented;

use super::cors::Origins;
use super::host::Hosts;
use super::parameters::Parameters;
use super::request_span::RequestSpan;
use super::{Code, Language, Problem, cors, headers, request_metrics};

/// The header of a request's id, which the logs name too.
pub(crate) const REQUEST_ID: &str = "x-request-id";

/// The characters of an id that a client may choose.
const REQUEST_ID_MAX: usize = 64;

/// Path and query of a request.
const URI_MAX_BYTES: usize = 8 * 1024;

/// The id of a request. In the request's extensions.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub Arc<str>);

/// Gives each request an id and completes its answer. The outermost layer, and one of its own rather than a
/// function of axum's: those box each request twice.
#[derive(Debug, Clone, Default)]
pub struct CompleteLayer {
    /// Whose scripts may read answers; `None` adds no CORS header.
    pub origins: Option<Origins>,
    /// The path under which clients reach the service, if there is one.
    pub base: Option<Arc<str>>,
}

impl<S> Layer<S> for CompleteLayer {
    type Service = Complete<S>;

    fn layer(&self, inner: S) -> Complete<S> {
        Complete { inner, layer: self.clone() }
    }
}

/// The service of [`CompleteLayer`].
#[derive(Debug, Clone)]
pub struct Complete<S> {
    inner: S,
    layer: CompleteLayer,
}

impl<S> Service<Request> for Complete<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Completing<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let meta = RequestMeta::of(&request, &self.layer);
        let route = request.extensions().get::<MatchedPath>().cloned();
        request.extensions_mut().insert(RequestId(Arc::clone(&meta.id)));
        // Every request pays for each field; the log line at the end has the others.
        let span = tracing::info_span!("request", request = &*meta.id, trace_id = tracing::field::Empty);
        let traced =
            RequestSpan::start(route.as_ref().map(MatchedPath::as_str), &meta.method, request.headers());
        if let Some(traced) = &traced {
            span.record("trace_id", tracing::field::display(traced.trace_id()));
            if let Some(parent) = traced.parent() {
                request.extensions_mut().insert(Arc::new(parent));
            }
        }
        let answer = self.inner.call(request);
        Completing {
            answering: AssertUnwindSafe(answer).catch_unwind().instrument(span),
            meta,
            route,
            traced,
        }
    }
}

pin_project_lite::pin_project! {
    /// The future of [`Complete`].
    pub struct Completing<F> {
        #[pin]
        answering: Instrumented<CatchUnwind<AssertUnwindSafe<F>>>,
        meta: RequestMeta,
        route: Option<MatchedPath>,
        traced: Option<Box<RequestSpan>>,
    }
}

/// Refuses requests that no handler needs to see: a wrong `Host`, a long URI, an unknown query parameter.
#[derive(Debug, Clone, Default)]
pub(crate) struct RefuseLayer {
    /// The query parameters of each route.
    pub parameters: Arc<Parameters>,
    /// Whose scripts may read answers; the layer answers their preflights.
    pub origins: Option<Origins>,
    /// Which hosts requests may name.
    pub hosts: Arc<Hosts>,
}

impl<S> Layer<S> for RefuseLayer {
    type Service = Refuse<S>;

    fn layer(&self, inner: S) -> Refuse<S> {
        Refuse { inner, layer: self.clone() }
    }
}

/// The service of [`RefuseLayer`].
#[derive(Debug, Clone)]
pub(crate) struct Refuse<S> {
    inner: S,
    layer: RefuseLayer,
}

impl<S> Service<Request> for Refuse<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.layer.answer(&request) {
            Some(response) => Either::Right(ready(Ok(response))),
            None => Either::Left(self.inner.call(request)),
        }
    }
}

impl RefuseLayer {
    /// The answer to a request that no handler sees; `None` passes the request on.
    fn answer(&self, request: &Request) -> Option<Response> {
        if let Some(problem) = self.hosts.refuse(request) {
            return Some(problem.into_response());
        }
        let origins = self.origins.as_ref();
        if let Some(preflight) = origins.and_then(|origins| cors::preflight(origins, request)) {
            return Some(preflight);
        }
        let route = request.extensions().get::<MatchedPath>();
        let problem = refused(request.uri(), route, request.method(), &self.parameters)?;
        Some(problem.into_response())
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Completing<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let answered = std::task::ready!(this.answering.as_mut().poll(context));
        let _entered = this.answering.span().enter();
        let response = match answered {
            Ok(answered) => answered?,
            Err(panic) => panicked(&*panic),
        };
        let route = this.route.as_ref().map(MatchedPath::as_str);
        let (response, problem) = this.meta.complete_as(response, route);
        if let Some(traced) = this.traced.take() {
            traced.end(response.status(), problem);
        }
        Poll::Ready(Ok(response))
    }
}

/// What is needed of a request when it is answered.
pub(crate) struct RequestMeta {
    started: Instant,
    id: Arc<str>,
    method: Method,
    uri: Uri,
    accept_language: Option<HeaderValue>,
    /// `None` adds no CORS header.
    cors: Option<cors::CorsRequest>,
    base: Option<Arc<str>>,
}

impl RequestMeta {
    /// Takes it from a request.
    pub fn of<B>(request: &Request<B>, layer: &CompleteLayer) -> Self {
        let headers = request.headers();
        let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| {
            (1..=REQUEST_ID_MAX).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        });
        RequestMeta {
            started: Instant::now(),
            id: given.map_or_else(|| crate::ids::random_id().into(), Into::into),
            method: request.method().clone(),
            uri: request.uri().clone(),
            accept_language: headers.get(header::ACCEPT_LANGUAGE).cloned(),
            cors: layer.origins.as_ref().map(|origins| cors::CorsRequest::of(origins, request)),
            base: layer.base.clone(),
        }
    }

    /// Completes the answer of this route, and counts and logs it.
    pub fn complete(&self, response: Response, route: Option<&str>) -> Response {
        self.complete_as(response, route).0
    }

    /// As [`RequestMeta::complete`]; returns the code of the answer's problem, too, or an empty text.
    fn complete_as(&self, mut response: Response, route: Option<&str>) -> (Response, &'static str) {
        let status = response.status();
        let mut code = "";
        if status.is_client_error() || status.is_server_error() {
            let language = Language::accepted(self.accept_language.as_ref());
            code = complete_problem(&mut response, language, &self.id, self.base.as_deref()).as_str();
        }
        let elapsed = self.started.elapsed();
        request_metrics::answered(route, &self.method, response.status(), code, elapsed);
        if let Ok(value) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        headers::complete(response.headers_mut());
        if let Some(cors) = &self.cors {
            cors.complete(response.headers_mut());
        }
        let (method, path, status) = (&self.method, self.uri.path(), response.status());
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        // The code that met it has logged what is unavailable or unreadable.
        let is_named = status == StatusCode::SERVICE_UNAVAILABLE || code == Code::OutcomeUnreadable.as_str();
        if status.is_server_error() && !is_named {
            tracing::error!(%method, path, status = status.as_u16(), elapsed_ms, "answered with an error of ours");
        } else {
            tracing::debug!(%method, path, status = status.as_u16(), elapsed_ms, "answered");
        }
        (response, code)
    }
}

/// What is wrong with a request, whatever its route does.
fn refused(
    uri: &Uri,
    route: Option<&MatchedPath>,
    method: &Method,
    parameters: &Parameters,
) -> Option<Problem> {
    if uri.path_and_query().is_some_and(|path| path.as_str().len() > URI_MAX_BYTES) {
        return Some(Problem::new(Code::UriTooLong));
    }
    let unknown = parameters.unknown(route, method, uri.query()?)?;
    Some(Problem::invalid_parameter(&unknown, "is not a parameter of this request"))
}

/// Writes the problem as the body of an answer; also where axum, not a handler, refused.
fn complete_problem(
    response: &mut Response,
    language: Language,
    request_id: &str,
    base: Option<&str>,
) -> Code {
    let problem = match response.extensions_mut().remove::<Arc<Problem>>() {
        Some(problem) => problem,
        None => match response.status() {
            StatusCode::NOT_FOUND => Problem::new(Code::NotFound).into(),
            StatusCode::METHOD_NOT_ALLOWED => Problem::new(Code::MethodNotAllowed).into(),
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(Code::TooLarge).into(),
            StatusCode::REQUEST_TIMEOUT => Problem::new(Code::Timeout).into(),
            // axum answers so to a path that is not UTF-8.
            StatusCode::BAD_REQUEST => Problem::new(Code::NotFound).into(),
            status if status.is_client_error() => Problem::new(Code::Malformed).into(),
            _ => Arc::new(Problem::new(Code::Internal)),
        },
    };
    *response.status_mut() = problem.code.status();
    *response.body_mut() = Body::from(problem.body(language, request_id, base.unwrap_or_default()));
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CONTENT_LANGUAGE, HeaderValue::from_static(language.tag()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The server does not wait for the rest of the request.
    if matches!(problem.code, Code::Timeout | Code::TooLarge) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    problem.code
}

/// The answer to a request whose handler panicked. The panic's message is logged, beside the request's id.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or_default(), "a handler panicked");
    Problem::new(Code::Internal).into_response()
}
