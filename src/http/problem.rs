//! Problems (RFC 9457): every 4xx and 5xx answer. The one table of codes, with status and words in both languages;
//! [`super::request`] fills in the language and the request's id when the answer leaves.

use std::borrow::Cow;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::Language;
use crate::Failure;
use crate::runtime::damage::damaged;

/// Declares the codes: name, `code`, status, title and general detail in English and Korean.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident $code:literal $status:ident $en:literal $en_detail:literal $ko:literal $ko_detail:literal)*) => {
        /// What is wrong, for programs. The documentation of each is its general detail.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $(#[doc = $en_detail] $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)* }
            }

            /// The status it is answered with.
            pub fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status,)* }
            }

            /// A short summary, the same for every occurrence.
            pub fn title(self, language: Language) -> &'static str {
                match (self, language) {
                    $((Code::$name, Language::English) => $en, (Code::$name, Language::Korean) => $ko,)*
                }
            }

            /// The general detail, for clients that reach the service under the path `base`.
            pub fn detail(self, language: Language, base: &str) -> Cow<'static, str> {
                under(base, match (self, language) {
                    $((Code::$name, Language::English) => $en_detail, (Code::$name, Language::Korean) => $ko_detail,)*
                })
            }
        }
    };
}

codes! {
    AlreadyIssued "already-issued" CONFLICT
        "Already issued" "This user holds, or has on the way, as many of this coupon as the limit allows."
        "이미 발급된 쿠폰" "이 사용자는 이 쿠폰을 한도만큼 이미 가지고 있거나 발급을 기다리고 있습니다."
    SoldOut "sold-out" CONFLICT
        "Sold out" "No unit of this coupon is left."
        "쿠폰 소진" "이 쿠폰은 남은 수량이 없습니다."
    Discarded "discarded" CONFLICT
        "Discarded" "An operator discarded this request. A new request needs a new Idempotency-Key."
        "폐기된 요청" "운영자가 이 요청을 폐기했습니다. 다시 요청하려면 새 Idempotency-Key를 사용하세요."
    NotStarted "not-started" CONFLICT
        "Not started" "This coupon cannot be requested yet; see startsAt."
        "발급 시작 전" "아직 발급이 시작되지 않았습니다. startsAt을 확인하세요."
    Ended "ended" CONFLICT
        "Ended" "The time to request this coupon is over."
        "발급 종료" "이 쿠폰의 발급 기간이 끝났습니다."
    Paused "paused" CONFLICT
        "Paused" "This coupon is paused; requests accepted before are honoured."
        "발급 일시 중지" "이 쿠폰의 발급이 일시 중지되었습니다. 이미 접수된 요청은 처리됩니다."
    Archived "archived" CONFLICT
        "Archived" "This coupon is archived and cannot be requested."
        "보관된 쿠폰" "보관 처리된 쿠폰이라 발급받을 수 없습니다."
    CouponNotFound "coupon-not-found" NOT_FOUND
        "Coupon not found" "There is no coupon with this id."
        "쿠폰을 찾을 수 없음" "이 아이디의 쿠폰이 없습니다."
    UserNotFound "user-not-found" NOT_FOUND
        "User not found" "There is no user with this id. Register the user first: POST {base}/users."
        "사용자를 찾을 수 없음" "이 아이디의 사용자가 없습니다. 먼저 POST {base}/users로 등록하세요."
    IssuanceNotFound "issuance-not-found" NOT_FOUND
        "Issuance not found" "No accepted request has this id. If one was answered with it, Redis has lost data that was not yet decided; request again."
        "발급 요청을 찾을 수 없음" "이 아이디로 접수된 요청이 없습니다. 접수 응답을 받은 적이 있다면 확정 전에 Redis 데이터가 유실된 것이니 다시 요청하세요."
    UserCouponNotFound "user-coupon-not-found" NOT_FOUND
        "User coupon not found" "This user holds no coupon with this id."
        "보유 쿠폰을 찾을 수 없음" "이 사용자는 이 아이디의 쿠폰을 가지고 있지 않습니다."
    ActionNotFound "action-not-found" NOT_FOUND
        "Action not found" "The record of operators' actions has none with this id."
        "작업 기록을 찾을 수 없음" "이 아이디의 운영자 작업 기록이 없습니다."
    ActionRunning "action-running" CONFLICT
        "Action running" "Another action on many dead letters is running; nothing was done. One runs at a time."
        "실행 중인 작업 있음" "여러 데드 레터를 처리하는 다른 작업이 실행 중이라 아무것도 하지 않았습니다. 한 번에 하나만 실행됩니다."
    AlreadyUsed "already-used" CONFLICT
        "Already used" "This coupon was used for something else; see usedAt."
        "이미 사용한 쿠폰" "다른 용도로 이미 사용한 쿠폰입니다. usedAt을 확인하세요."
    NotUsed "not-used" CONFLICT
        "Not used" "This coupon is not used: there is no use to undo."
        "사용하지 않은 쿠폰" "사용하지 않은 쿠폰이라 되돌릴 사용 내역이 없습니다."
    Expired "expired" CONFLICT
        "Expired" "This coupon is not valid any more; see validUntil."
        "유효기간이 지난 쿠폰" "쿠폰의 유효기간이 지났습니다. validUntil을 확인하세요."
    Revoked "revoked" CONFLICT
        "Revoked" "This coupon was taken away for good."
        "회수된 쿠폰" "회수되어 더는 사용할 수 없는 쿠폰입니다."
    CouponExists "coupon-exists" CONFLICT
        "Coupon exists" "A coupon with this id exists already; nothing was changed."
        "이미 있는 쿠폰" "이 아이디의 쿠폰이 이미 있습니다. 변경된 것은 없습니다."
    UserExists "user-exists" CONFLICT
        "User exists" "A user with this id exists already; nothing was changed."
        "이미 있는 사용자" "이 아이디의 사용자가 이미 있습니다. 변경된 것은 없습니다."
    Unauthenticated "unauthenticated" UNAUTHORIZED
        "Unauthenticated" "This needs credentials that this service takes: send a user's token or an API key, as Authorization: Bearer."
        "인증되지 않음" "이 서비스가 받아들이는 인증 정보가 필요합니다. 사용자의 토큰 또는 API 키를 Authorization: Bearer 헤더로 보내세요."
    Forbidden "forbidden" FORBIDDEN
        "Forbidden" "These credentials are good, and do not allow this."
        "권한 없음" "인증 정보는 유효하지만 이 요청을 할 권한이 없습니다."
    CursorExpired "cursor-expired" GONE
        "Cursor expired" "What came after this place is no longer remembered. Take a new place, export, then follow from the new place."
        "만료된 커서" "이 위치 이후의 기록이 더는 남아 있지 않습니다. 새 위치를 받은 뒤 내보내기를 하고, 그 위치부터 이어서 읽으세요."
    Malformed "malformed" BAD_REQUEST
        "Malformed" "The body is not JSON."
        "잘못된 형식" "본문이 JSON이 아닙니다."
    Invalid "invalid" UNPROCESSABLE_ENTITY
        "Invalid" "Something in the request has a wrong shape or value; see errors."
        "유효하지 않은 요청" "요청에 형식이나 값이 잘못된 항목이 있습니다. errors를 확인하세요."
    KeyReused "key-reused" UNPROCESSABLE_ENTITY
        "Key reused" "This Idempotency-Key was used before, for another request; nothing was changed."
        "이미 사용한 키" "이 Idempotency-Key는 다른 요청에 이미 사용되었습니다. 변경된 것은 없습니다."
    TooLarge "too-large" PAYLOAD_TOO_LARGE
        "Too large" "The body is larger than 64 KiB."
        "본문이 너무 큼" "본문이 64 KiB보다 큽니다."
    UriTooLong "uri-too-long" URI_TOO_LONG
        "URI too long" "Path and query are longer than 8 KiB."
        "URI가 너무 김" "경로와 쿼리가 8 KiB보다 깁니다."
    HeadTooLarge "head-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE
        "Headers too large" "The head of the request is larger than 32 KiB, or has more than 100 headers."
        "헤더가 너무 큼" "요청 헤더가 32 KiB보다 크거나 100개가 넘습니다."
    RateLimited "rate-limited" TOO_MANY_REQUESTS
        "Too many requests" "This client asks too often. It is safe to repeat this request after Retry-After."
        "요청이 너무 잦음" "요청이 너무 잦습니다. Retry-After만큼 기다린 뒤 같은 요청을 다시 보내도 안전합니다."
    UnsupportedMediaType "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE
        "Unsupported media type" "The body must be JSON: send Content-Type: application/json."
        "지원하지 않는 미디어 타입" "본문은 JSON이어야 합니다. Content-Type: application/json으로 보내세요."
    NotFound "not-found" NOT_FOUND
        "Not found" "There is nothing at this path; see {base}/docs."
        "찾을 수 없음" "이 경로에는 아무것도 없습니다. {base}/docs를 확인하세요."
    MethodNotAllowed "method-not-allowed" METHOD_NOT_ALLOWED
        "Method not allowed" "This path does not take this method; see Allow."
        "허용되지 않은 메서드" "이 경로에서 쓸 수 없는 메서드입니다. Allow 헤더를 확인하세요."
    Timeout "timeout" REQUEST_TIMEOUT
        "Timeout" "The request took too long to arrive."
        "시간 초과" "요청이 제시간에 도착하지 않았습니다."
    Overloaded "overloaded" SERVICE_UNAVAILABLE
        "Overloaded" "Too many requests are waiting."
        "과부하" "대기 중인 요청이 너무 많습니다."
    Unavailable "unavailable" SERVICE_UNAVAILABLE
        "Unavailable" "A part of the service does not answer."
        "일시적으로 이용 불가" "서비스 일부가 응답하지 않습니다."
    ShareUnreachable "share-unreachable" SERVICE_UNAVAILABLE
        "Share unreachable" "No unit of this coupon is left in the parts of the service that answer, and one that may have some does not."
        "일부 수량 확인 불가" "응답하는 곳에는 이 쿠폰의 남은 수량이 없고, 남아 있을 수 있는 곳이 응답하지 않습니다."
    WarmingUp "warming-up" SERVICE_UNAVAILABLE
        "Warming up" "The service is recovering its data."
        "준비 중" "서비스가 데이터를 복구하고 있습니다."
    OutcomeUnreadable "outcome-unreadable" INTERNAL_SERVER_ERROR
        "Outcome unreadable" "This is decided, and this version of the service cannot read the record of it. Repeating the request does not help; an operator must look at the record."
        "결과를 읽을 수 없음" "이미 확정되었지만 현재 버전의 서비스가 그 기록을 읽을 수 없습니다. 같은 요청을 다시 보내도 소용없으며 운영자가 기록을 확인해야 합니다."
    Internal "internal" INTERNAL_SERVER_ERROR
        "Internal error" "Something went wrong here; the operators can find it by the requestId."
        "내부 오류" "서버에 문제가 생겼습니다. requestId로 운영자에게 문의하세요."
}

/// A text whose paths, which begin with `{base}`, are put under the path `base`.
pub(crate) fn under<'a>(base: &str, text: &'a str) -> Cow<'a, str> {
    if text.contains("{base}") { text.replace("{base}", base).into() } else { text.into() }
}

impl Code {
    /// The address of its page, for clients that reach the service under the path `base`.
    pub fn page(self, base: &str) -> String {
        format!("{base}/problems/{}", self.as_str())
    }

    /// Whether the same request may succeed later, where its operation is safe to repeat.
    pub(crate) fn is_retryable(self) -> bool {
        use Code::*;
        matches!(
            self,
            ActionRunning
                | NotStarted
                | Paused
                | Timeout
                | RateLimited
                | Overloaded
                | Unavailable
                | ShareUnreachable
                | WarmingUp
        )
    }

    /// What to say of repeating an operation, where the code leaves open what became of it.
    fn repetition(self, is_repeatable: bool, language: Language) -> Option<&'static str> {
        use Code::*;
        if !matches!(self, Overloaded | Unavailable | ShareUnreachable | WarmingUp) {
            return None;
        }
        Some(match (is_repeatable, language) {
            (true, Language::English) => "It is safe to repeat this request after a while.",
            (true, Language::Korean) => "잠시 뒤 같은 요청을 다시 보내도 안전합니다.",
            (false, Language::English) => {
                "What was asked for may have been done, and a repetition would do it once more: look first."
            }
            (false, Language::Korean) => {
                "요청한 일이 이미 처리되었을 수 있으며, 다시 보내면 한 번 더 처리됩니다. 먼저 처리 여부를 확인하세요."
            }
        })
    }
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Where in the body, as a JSON pointer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = String, example = "#/startsAt")]
    pub pointer: Option<String>,
    /// Which parameter of the query, the path or the headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = String, example = "limit")]
    pub parameter: Option<String>,
    /// What it must be.
    pub detail: String,
}

/// An answer that something is wrong. Turned into a response, it is completed on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    pub code: Code,
    /// Instead of the code's general detail.
    detail: Option<Detail>,
    errors: Vec<FieldError>,
    more: Map<String, Value>,
    retry_after_ms: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
    is_repeatable: bool,
}

/// What a problem says beyond its code.
#[derive(Debug, Clone, PartialEq)]
enum Detail {
    /// The same in all languages.
    Same(String),
    /// In English and in Korean.
    Words(&'static [&'static str; 2]),
}

impl Problem {
    /// A problem that says nothing beyond its code.
    pub fn new(code: Code) -> Self {
        Problem {
            code,
            detail: None,
            errors: Vec::new(),
            more: Map::new(),
            retry_after_ms: None,
            headers: Vec::new(),
            is_repeatable: true,
        }
    }

    /// Says whether the operation, done twice, is the same as done once. If it is not, and may have been done, the
    /// answer never says that it can be repeated.
    pub fn repeatable(mut self, is_repeatable: bool) -> Self {
        self.is_repeatable = is_repeatable;
        self
    }

    /// Replaces the code's detail by a text that is the same in all languages, so for technical matters. A path of
    /// the service begins with `{base}`.
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(Detail::Same(detail.into()));
        self
    }

    /// Replaces the code's detail by a text in English and in Korean.
    pub(crate) fn with_words(mut self, words: &'static [&'static str; 2]) -> Self {
        self.detail = Some(Detail::Words(words));
        self
    }

    /// Adds a member to the body.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to try again: in the body in milliseconds, in `Retry-After` in whole seconds.
    pub(crate) fn retry_after_ms(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// Adds a header.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// 422 `invalid`, with every error.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let mut problem = Problem::new(Code::Invalid);
        problem.errors = errors;
        problem
    }

    /// 422 `invalid`, for one parameter of the query, the path or the headers.
    pub(crate) fn invalid_parameter(name: &str, detail: impl Into<String>) -> Self {
        let error = FieldError { pointer: None, parameter: Some(name.to_owned()), detail: detail.into() };
        Problem::invalid(vec![error])
    }

    /// The body in a language, for clients that reach the service under the path `base`.
    pub(super) fn body(&self, language: Language, request_id: &str, base: &str) -> Vec<u8> {
        serde_json::to_vec(&self.members(language, request_id, base)).unwrap_or_default()
    }

    fn members<'a>(&'a self, language: Language, request_id: &'a str, base: &str) -> Members<'a> {
        let code = self.code;
        Members {
            kind: code.page(base),
            title: code.title(language),
            status: code.status().as_u16(),
            detail: self.detail(language, base),
            code: code.as_str(),
            request_id,
            retryable: self.is_repeatable && code.is_retryable(),
            retry_after_ms: self.retry_after_ms,
            errors: &self.errors,
            more: &self.more,
        }
    }

    fn detail(&self, language: Language, base: &str) -> Cow<'_, str> {
        let text = match (&self.detail, language) {
            (None, _) => {
                let detail = self.code.detail(language, base);
                return match self.code.repetition(self.is_repeatable, language) {
                    Some(repetition) => format!("{detail} {repetition}").into(),
                    None => detail,
                };
            }
            (Some(Detail::Same(text)), _) => text,
            (Some(Detail::Words([english, _])), Language::English) => *english,
            (Some(Detail::Words([_, korean])), Language::Korean) => *korean,
        };
        under(base, text)
    }

    /// The body as a value, for embedding into another answer.
    pub fn to_value(&self, language: Language, request_id: &str, base: &str) -> Value {
        serde_json::to_value(self.members(language, request_id, base)).unwrap_or_default()
    }
}

/// A problem's members, in the order that a person reads them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Members<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: Cow<'a, str>,
    code: &'a str,
    request_id: &'a str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(flatten)]
    more: &'a Map<String, Value>,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let code = match failure.root() {
            Failure::Uncertified => Code::WarmingUp,
            Failure::Overloaded { .. } => Code::Overloaded,
            Failure::Unreadable(unreadable) => {
                damaged!(unreadable.record; error = %unreadable, "repair the record in MongoDB, or run the version that wrote it");
                return Problem::new(Code::OutcomeUnreadable);
            }
            Failure::Refused { .. } => {
                damaged!(failure.chain(); error = failure.chain(), "repeating does not help");
                return Problem::new(Code::Internal);
            }
            Failure::Damaged { .. } => {
                damaged!(failure.chain(); error = failure.chain(), "answered that a part of the service is unavailable");
                Code::Unavailable
            }
            _ => {
                tracing::warn!(error = failure.chain(), "answered that a part of the service is unavailable");
                Code::Unavailable
            }
        };
        let problem = Problem::new(code).retry_after_ms(jittered_ms(1_000));
        match failure.root() {
            Failure::Damaged { what, .. } => problem.with_detail(format!(
                "{what} cannot be read, and others are served. The service's log says what an operator must repair."
            )),
            _ => problem,
        }
    }
}

/// One to two times `ms`, at random: clients that were refused together must not return together.
pub(crate) fn jittered_ms(ms: u64) -> u64 {
    rand::random_range(ms..=2 * ms)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        if let Some(ms) = self.retry_after_ms {
            response.headers_mut().insert(header::RETRY_AFTER, ms.div_ceil(1_000).into());
        }
        response.headers_mut().extend(self.headers.iter().cloned());
        response.extensions_mut().insert(std::sync::Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_words_in_both_languages_and_a_name_of_its_own() {
        let mut names = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(names.insert(code.as_str()), "{code:?}");
            assert!(code.status().is_client_error() || code.status().is_server_error());
            for language in [Language::English, Language::Korean] {
                assert!(!code.title(language).is_empty() && !code.detail(language, "").is_empty());
            }
        }
    }

    #[test]
    fn what_must_not_be_repeated_is_never_called_safe_to_repeat() {
        for code in Code::ALL {
            for language in [Language::English, Language::Korean] {
                let once = Problem::new(*code).repeatable(false).to_value(language, "r", "");
                let detail = once["detail"].as_str().unwrap();
                assert_eq!(once["retryable"], false, "{code:?}");
                if code.status().is_server_error() {
                    assert!(
                        !detail.contains("safe to repeat") && !detail.contains("보내도 안전"),
                        "{detail}"
                    );
                }
                let any_number = Problem::new(*code).to_value(language, "r", "");
                assert_eq!(any_number["retryable"], code.is_retryable(), "{code:?}");
            }
        }
    }

    #[test]
    fn a_problem_names_the_field_and_the_language_is_the_clients() {
        let problem = Problem::invalid_parameter("limit", "must be a number");
        let korean = problem.to_value(Language::Korean, "r-1", "");
        assert_eq!(korean["errors"][0]["parameter"], "limit");
        assert_eq!(korean["title"], "유효하지 않은 요청");
        assert_eq!(korean["requestId"], "r-1");
        assert_eq!(korean["status"], 422);
    }
}
