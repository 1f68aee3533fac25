//! A client of the API, whose errors say what to do next. It keeps the text of each answer, so that `--json` prints it
//! unchanged.

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use reqwest::header::{ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::lines::JsonLines;
use super::table;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A little longer than the API takes for an answer at most.
const ANSWER_MAX: Duration = Duration::from_secs(35);
/// An answer of lines may take as long as the largest export.
const LINES_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the API is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "API")]
pub(super) struct ApiTarget {
    /// URL of the API
    #[arg(
        long,
        global = true,
        env = "COUPON_API_URL",
        default_value = "http://127.0.0.1:3000",
        value_name = "URL"
    )]
    api_url: Confidential,

    /// API key, or a user's token, that the command sends
    #[arg(long, global = true, env = "COUPON_TOKEN")]
    token: Option<Confidential>,

    /// Language of problems and reasons
    #[arg(long, global = true, value_enum)]
    lang: Option<ProblemLanguage>,
}

/// Where the API is, and how its answers are shown.
#[derive(Debug, Clone, Args)]
pub(super) struct ApiArgs {
    #[command(flatten)]
    target: ApiTarget,

    /// Print the API's JSON unchanged instead of tables, problems too
    #[arg(long, global = true)]
    json: bool,
}

/// A noun of the command line with its verbs, each of which calls the API.
#[derive(Debug, Args)]
pub(super) struct Noun<V: Subcommand> {
    #[command(subcommand)]
    pub verb: V,
    #[command(flatten)]
    pub api: ApiArgs,
}

/// Which page of a list.
#[derive(Debug, Clone, Args)]
pub(super) struct PageArgs {
    /// Items on a page, 1 to 500 (default: 50)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: Option<u16>,
    /// Continue after the page that printed this cursor
    #[arg(long)]
    cursor: Option<String>,
}

/// The text of a flag or a variable that has a secret in it, or may have one by mistake. The command reads it where it
/// uses it: errors of the command line's parser repeat the value.
#[derive(Clone)]
pub(super) struct Confidential(String);

impl From<String> for Confidential {
    fn from(text: String) -> Self {
        Confidential(text)
    }
}

impl fmt::Debug for Confidential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Confidential(…)")
    }
}

impl Confidential {
    /// Parses the text.
    ///
    /// # Errors
    ///
    /// If it cannot be parsed. The error names the flag and repeats nothing of the text.
    pub(super) fn read<T: FromStr<Err = String>>(&self, flag: &str) -> Result<T, clap::Error> {
        let wrong =
            |why| clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{flag} {why}\n"));
        self.0.parse().map_err(wrong)
    }
}

/// What `--token` is called in errors.
pub(super) const TOKEN_FLAG: &str = "--token (COUPON_TOKEN)";
/// What `--api-url` is called in errors.
pub(super) const API_URL_FLAG: &str = "--api-url (COUPON_API_URL)";

/// What is sent as `Authorization: Bearer`, and never shown.
#[derive(Clone)]
pub(super) struct BearerToken(String);

impl FromStr for BearerToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("must be a key (cpn_…) or a token, without spaces".into());
        }
        Ok(BearerToken(text.into()))
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl BearerToken {
    /// What is sent.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProblemLanguage {
    En,
    Ko,
}

/// The base of the API: http or https, with a path where the service lives under one.
#[derive(Debug, Clone)]
pub(super) struct ApiUrl(reqwest::Url);

impl FromStr for ApiUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(text)
            .map_err(|why| format!("is no URL, such as http://127.0.0.1:3000: {why}"))?;
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err("must begin with http:// or https://, such as http://127.0.0.1:3000".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not have a user or a password in it".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must end with the path, without ? or #".into());
        }
        Ok(ApiUrl(url))
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl ApiUrl {
    /// Whether it is on this machine, where no proxy is wanted.
    fn is_loopback(&self) -> bool {
        match self.0.host_str().unwrap_or_default().trim_matches(['[', ']']) {
            "localhost" => true,
            host => host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback()),
        }
    }
}

/// Begins an HTTP client. Every client begins here, so that each uses the crypto provider and the compiled-in
/// authorities that the drivers of Redis and MongoDB use.
///
/// # Errors
///
/// If TLS cannot be set up.
pub fn builder() -> anyhow::Result<reqwest::ClientBuilder> {
    let tls = crate::http::tls::client().context("TLS cannot be set up")?;
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls))
}

impl ApiTarget {
    /// A client of this API.
    pub(super) fn open(&self) -> anyhow::Result<ApiClient> {
        let api_url: ApiUrl = self.api_url.read(API_URL_FLAG)?;
        let mut headers = HeaderMap::new();
        if let Some(lang) = self.lang {
            let tag = match lang {
                ProblemLanguage::En => "en",
                ProblemLanguage::Ko => "ko",
            };
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static(tag));
        }
        if let Some(token) = &self.token {
            let token: BearerToken = token.read(TOKEN_FLAG)?;
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.as_str()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let mut http = builder()?
            .default_headers(headers)
            .user_agent(concat!("couponctl/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_MAX)
            .timeout(ANSWER_MAX);
        if api_url.is_loopback() {
            http = http.no_proxy();
        }
        let http = http.build().context("the HTTP client cannot be set up")?;
        Ok(ApiClient { http, base: api_url.to_string() })
    }
}

impl ApiArgs {
    /// A client of this API that prints as it was asked to.
    pub(super) fn open(&self) -> anyhow::Result<PrintingClient> {
        Ok(PrintingClient { api: self.target.open()?, json: self.json })
    }
}

/// A client of one API.
#[derive(Debug, Clone)]
pub(super) struct ApiClient {
    http: reqwest::Client,
    base: String,
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub(super) struct ApiResponse {
    pub body: Value,
    /// The body as it came.
    pub raw: String,
}

/// One request, to be completed and sent.
#[derive(Debug, Clone)]
pub(super) struct ApiRequest {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    header: Option<(HeaderName, String)>,
    body: Option<Value>,
    repeat: RepeatAdvice,
}

/// Whether running a command twice is the same as once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum RepeatAdvice {
    #[default]
    Same,
    /// With this flag.
    With(String),
    /// Each run adds.
    Adds,
}

impl RepeatAdvice {
    /// What to do where it is unknown what became of a request; `when` it is to be repeated.
    fn advice(&self, when: &str) -> String {
        match self {
            RepeatAdvice::Same => format!("run the command again{when}"),
            RepeatAdvice::With(flag) => {
                format!("run the command again{when} with `{flag}`: what was done is not done once more")
            }
            RepeatAdvice::Adds => {
                "check whether it happened before you run the command again: each run adds".into()
            }
        }
    }
}

impl ApiRequest {
    fn new(method: Method, path: impl Into<String>) -> Self {
        ApiRequest {
            method,
            path: path.into(),
            query: Vec::new(),
            header: None,
            body: None,
            repeat: RepeatAdvice::Same,
        }
    }

    /// A GET of this path, which begins with a slash; the same holds for the methods below.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// A POST.
    pub fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    /// A PATCH.
    pub fn patch(path: impl Into<String>) -> Self {
        Self::new(Method::PATCH, path)
    }

    /// A DELETE.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// Sends this as JSON.
    pub fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// Adds why it is done to the body, if that is given.
    pub fn reason(mut self, reason: Option<String>) -> Self {
        if let Some(reason) = reason {
            self.body.get_or_insert_default()["reason"] = reason.into();
        }
        self
    }

    /// Says whether sending it twice is the same as once. If not, no error advises to repeat it.
    pub fn repeatable(mut self, repeatable: bool) -> Self {
        self.repeat = if repeatable { RepeatAdvice::Same } else { RepeatAdvice::Adds };
        self
    }

    /// Sends a key of this attempt, the one given or a new one, with which a repetition does nothing more.
    pub fn keyed(mut self, key: Option<String>) -> Self {
        let key = key.unwrap_or_else(crate::ids::random_id);
        self.repeat = RepeatAdvice::With(format!("--key {key}"));
        self.header("idempotency-key", Some(key))
    }

    /// Adds a query parameter, if it is given.
    pub fn query(mut self, name: &'static str, value: Option<impl fmt::Display>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// Asks for one page of a list.
    pub fn page(self, page: PageArgs) -> Self {
        self.query("limit", page.limit).query("cursor", page.cursor)
    }

    /// Adds a header, if it is given.
    pub fn header(mut self, name: &'static str, value: Option<String>) -> Self {
        self.header = value.map(|value| (HeaderName::from_static(name), value));
        self
    }
}

impl ApiClient {
    /// Sends a request and reads its answer to the end.
    pub async fn send(&self, request: ApiRequest) -> Result<ApiResponse, CallError> {
        let repeat = request.repeat.clone();
        let sent = self.prepare(request).send().await;
        let response = sent.map_err(|source| self.no_answer(source, repeat.clone()))?;
        self.read(response, repeat).await
    }

    /// Sends a request whose answer is lines of JSON, to be read as they arrive.
    pub async fn lines(&self, request: ApiRequest) -> Result<JsonLines, CallError> {
        let repeat = request.repeat.clone();
        let sent = self.prepare(request).timeout(LINES_MAX).send();
        let response = sent.await.map_err(|source| self.no_answer(source, repeat.clone()))?;
        if !response.status().is_success() {
            let not_the_api =
                CallError::NotTheApi { base: self.base.clone(), status: response.status().as_u16() };
            return Err(self.read(response, repeat).await.err().unwrap_or(not_the_api));
        }
        Ok(JsonLines::new(self.clone(), response))
    }

    pub(super) fn no_answer(&self, source: reqwest::Error, repeat: RepeatAdvice) -> CallError {
        CallError::NoAnswer { base: self.base.clone(), source, repeat }
    }

    fn prepare(&self, request: ApiRequest) -> reqwest::RequestBuilder {
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(request.query).finish();
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{}{}{mark}{query}", self.base, request.path);
        let mut sent = self.http.request(request.method, url);
        if let Some((name, value)) = request.header {
            sent = sent.header(name, value);
        }
        if let Some(body) = request.body {
            sent = sent.json(&body);
        }
        sent
    }

    async fn read(
        &self,
        response: reqwest::Response,
        repeat: RepeatAdvice,
    ) -> Result<ApiResponse, CallError> {
        let status = response.status();
        let kind = MediaType::of(response.headers());
        let raw = response.text().await.map_err(|source| self.no_answer(source, repeat.clone()))?;
        let body = serde_json::from_str::<Value>(&raw).ok();
        match (kind, body) {
            (MediaType::Json, Some(body)) if status.is_success() => Ok(ApiResponse { body, raw }),
            (MediaType::Problem, Some(body)) if is_problem(&body) => {
                Err(CallError::Problem { answer: ApiResponse { body, raw }, repeat })
            }
            _ => Err(CallError::NotTheApi { base: self.base.clone(), status: status.as_u16() }),
        }
    }
}

/// What an answer says it is. A gateway on the way may answer, too, and in JSON.
#[derive(PartialEq, Eq)]
enum MediaType {
    Json,
    Problem,
    Other,
}

impl MediaType {
    fn of(headers: &HeaderMap) -> Self {
        let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => MediaType::Json,
            "application/problem+json" => MediaType::Problem,
            _ => MediaType::Other,
        }
    }
}

/// Whether a problem is one of the API's own: its type leads to the page of its code.
fn is_problem(body: &Value) -> bool {
    let (kind, code) = (body["type"].as_str(), body["code"].as_str());
    kind.zip(code).is_some_and(|(kind, code)| kind.ends_with(&format!("/problems/{code}")))
}

/// A client that prints the answers.
#[derive(Debug, Clone)]
pub(super) struct PrintingClient {
    pub api: ApiClient,
    json: bool,
}

impl PrintingClient {
    /// Sends a request. With `--json`, it also prints a problem as JSON.
    pub async fn send(&self, request: ApiRequest) -> anyhow::Result<ApiResponse> {
        let answer = self.api.send(request).await;
        if let Err(CallError::Problem { answer: problem, .. }) = &answer
            && self.json
        {
            print(&problem.raw)?;
        }
        Ok(answer?)
    }

    /// Prints an answer: as JSON unchanged, or as `words` puts it for people.
    pub fn show(&self, answer: &ApiResponse, words: impl FnOnce(&Value) -> String) -> anyhow::Result<()> {
        if self.json { print(&answer.raw) } else { print(&words(&answer.body)) }
    }

    /// Sends a request and prints its answer.
    pub async fn send_and_show(
        &self,
        request: ApiRequest,
        words: impl FnOnce(&Value) -> String,
    ) -> anyhow::Result<()> {
        let answer = self.send(request).await?;
        self.show(&answer, words)
    }

    /// Whether the command prints JSON: one document, and nothing else.
    pub fn is_json(&self) -> bool {
        self.json
    }
}

/// Prints text, and ends the line if it does not.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// Why a call failed. Each says what to do next.
#[derive(Debug)]
pub(super) enum CallError {
    /// The API answered with a problem.
    Problem { answer: ApiResponse, repeat: RepeatAdvice },
    /// No answer came, or not to its end.
    NoAnswer { base: String, source: reqwest::Error, repeat: RepeatAdvice },
    /// Something that is not the API answered.
    NotTheApi { base: String, status: u16 },
}

impl CallError {
    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            CallError::Problem { answer, .. } => answer.body["retryable"] == true,
            CallError::NoAnswer { .. } => true,
            // A gateway that does not reach the API says so with one of these.
            CallError::NotTheApi { status, .. } => *status >= 500 || *status == 429,
        }
    }
}

/// Whether an error is that of a call that may succeed later.
pub(super) fn is_retryable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<CallError>().is_some_and(CallError::is_retryable)
}

impl std::error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Problem { answer, repeat } => write_problem(f, &answer.body, repeat),
            CallError::NoAnswer { base, source, repeat } => {
                let root = root_of(source);
                if source.is_connect() {
                    write!(f, "cannot connect to {base} ({root})\n  next: {START}")
                } else if source.is_timeout() {
                    write!(
                        f,
                        "{base} did not answer within {} s; what was asked for may have happened\n  next: {}",
                        ANSWER_MAX.as_secs(),
                        repeat.advice("")
                    )
                } else {
                    write!(
                        f,
                        "{base} broke off its answer; what was asked for may have happened ({root})\n  next: {}",
                        repeat.advice("")
                    )
                }
            }
            CallError::NotTheApi { base, status } if self.is_retryable() => write!(
                f,
                "{base} answered {status}, and not as the Coupon System's API does: a gateway before it may have, \
                 and what was asked for may have happened\n  \
                 next: check whether it happened, then run the command again"
            ),
            CallError::NotTheApi { base, status } => write!(
                f,
                "{base} answered {status}, and not as the Coupon System's API does\n  \
                 next: name the API with --api-url or COUPON_API_URL, with the path it lives under"
            ),
        }
    }
}

const START: &str = "start the system there (on this machine: `cargo run -- dev`), or name another API with \
                     --api-url or COUPON_API_URL";

/// The cause behind an error that only says that something failed.
fn root_of(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, root_of)
}

fn write_problem(f: &mut fmt::Formatter<'_>, problem: &Value, repeat: &RepeatAdvice) -> fmt::Result {
    let text = |name: &str| table::clean(problem[name].as_str().unwrap_or_default());
    let code = text("code");
    write!(f, "{} ({} {code})\n  {}", text("title"), problem["status"], text("detail"))?;
    for error in problem["errors"].as_array().into_iter().flatten() {
        let place = error["pointer"].as_str().or(error["parameter"].as_str()).unwrap_or("?");
        let why = error["detail"].as_str().unwrap_or_default();
        write!(f, "\n  {}: {}", table::clean(place), table::clean(why))?;
    }
    for name in ["startsAt", "userCoupons", "issuances"] {
        match &problem[name] {
            Value::Null => {}
            Value::Array(links) => {
                for link in links.iter().filter_map(Value::as_str) {
                    write!(f, "\n  {name}: {}", table::clean(link))?;
                }
            }
            value => write!(f, "\n  {name}: {}", table::clean(value.as_str().unwrap_or_default()))?,
        }
    }
    write!(f, "\n  request id: {}\n  next: {}", text("requestId"), next_step(&code, problem, repeat))
}

/// What a user who met this problem can do.
fn next_step(code: &str, problem: &Value, repeat: &RepeatAdvice) -> String {
    let advice = match code {
        "malformed" | "invalid" => "mend what is named above; --help says what each flag takes",
        "coupon-not-found" => "`couponctl coupon list` shows what there is",
        "user-not-found" => "`couponctl user create ID` registers a user; `couponctl user list` shows who is",
        "issuance-not-found" => {
            "use the id that `couponctl issue` printed; `couponctl dead-letter list` shows dead letters"
        }
        "coupon-exists" | "user-exists" if problem["sameAsRequested"] == true => {
            "go on: it is there exactly as it was asked for, of an earlier attempt perhaps"
        }
        "coupon-exists" => "choose another id, or read that one with `couponctl coupon show ID`",
        "user-exists" => "choose another id, or read that one with `couponctl user show ID`",
        "already-issued" => "`couponctl user show USER` shows what the user holds",
        "already-used" | "not-used" | "expired" | "revoked" => {
            "`couponctl user-coupon get USER ID` shows what became of it"
        }
        "sold-out" => "`couponctl coupon restock COUPON UNITS` adds units",
        "discarded" => "if the user still wants the coupon, request it with a new key: `couponctl issue`",
        "not-started" => "wait for it, or open it now with `couponctl coupon edit COUPON --starts-at TIME`",
        "ended" => "`couponctl coupon edit COUPON --ends-at TIME` makes it last longer",
        "paused" => "`couponctl coupon resume COUPON`, or `couponctl service resume` if all is paused",
        "archived" => "an archived coupon stays archived; make another with `couponctl coupon create`",
        "unauthenticated" => "give an API key with --token or COUPON_TOKEN; `couponctl key create` makes one",
        "forbidden" => "use a key whose role allows it: `couponctl key create --help` tells the roles",
        "not-found" | "method-not-allowed" => {
            "that API does not know this request: check --api-url (operators' routes may have an address of their \
             own), and that both are of one version"
        }
        "internal" => "find the request id in the API's log",
        "key-reused" => "repeat the command as it was first run, or leave --key out: a new one is made then",
        "unavailable" | "overloaded" | "warming-up" if problem["retryable"] == false => {
            return RepeatAdvice::Adds.advice("");
        }
        _ if problem["retryable"] == true => {
            return match problem["retryAfterMs"].as_u64() {
                Some(ms) => repeat.advice(&format!(" in {} s", ms.div_ceil(1_000))),
                None => repeat.advice(" after a while"),
            };
        }
        _ => return format!("the page /problems/{code} of the API says what to do"),
    };
    advice.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_url_that_is_none_of_an_api_is_refused() {
        for wrong in
            ["", "127.0.0.1:3000", "redis://127.0.0.1", "http://u:p@host", "http://host/?a=1", "http://"]
        {
            assert!(wrong.parse::<ApiUrl>().is_err(), "{wrong:?}");
        }
        let url: ApiUrl = "https://shop.example/coupons-api/".parse().unwrap();
        assert_eq!(url.to_string(), "https://shop.example/coupons-api");
        assert!(!url.is_loopback());
        for here in ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:3000"] {
            assert!(here.parse::<ApiUrl>().unwrap().is_loopback(), "{here}");
        }
    }

    #[test]
    fn a_client_can_be_built_where_nothing_else_is_set_up() {
        let api_url = Confidential::from("https://shop.example".to_owned());
        let target = ApiTarget { api_url, token: None, lang: Some(ProblemLanguage::Ko) };
        assert!(target.open().is_ok());
    }

    #[test]
    fn a_problem_is_told_with_everything_that_helps() {
        let body = json!({
            "title": "Invalid", "status": 422, "detail": "Mend it.", "code": "invalid", "requestId": "r-1",
            "retryable": false, "errors": [{"pointer": "#/endsAt", "detail": "must be \u{1b}[31mafter"}]
        });
        let told = |body: &Value, repeat| {
            let answer = ApiResponse { body: body.clone(), raw: String::new() };
            CallError::Problem { answer, repeat }.to_string()
        };
        let said = told(&body, RepeatAdvice::Same);
        for part in ["Invalid (422 invalid)", "Mend it.", "#/endsAt: must be", "r-1", "next: mend"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains('\u{1b}'), "nothing may steer the terminal");

        let away = json!({"code": "unavailable", "status": 503, "retryable": true, "retryAfterMs": 1200});
        assert!(told(&away, RepeatAdvice::Same).ends_with("next: run the command again in 2 s"));
        assert!(told(&away, RepeatAdvice::Adds).contains("next: check whether it happened"));
        let with_key = told(&away, RepeatAdvice::With("--key k".into()));
        assert!(with_key.contains("next: run the command again in 2 s with `--key k`"), "{with_key}");
        let once = json!({"code": "unavailable", "status": 503, "retryable": false, "retryAfterMs": 1200});
        assert!(told(&once, RepeatAdvice::Same).contains("next: check whether it happened"));
    }
}
