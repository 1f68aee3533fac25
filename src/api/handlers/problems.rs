//! The page of each problem, which its `type` links: HTML for people, JSON for programs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};

use crate::api::pages;
use crate::api::wire::accept::prefers;
use crate::api::wire::links::Links;
use crate::api::wire::problem::{Problem as ProblemBody, ProblemKind};
use crate::http::{Code, Language, Problem};

/// All problems that there are.
///
/// HTML for clients that prefer it to JSON.
#[utoipa::path(
    get, path = "/problems", operation_id = "listProblems", tag = "service",
    responses((status = 200, description = "All of them", content((Vec<ProblemKind> = "application/json"), (String = "text/html"))))
)]
pub(crate) async fn list(State(links): State<Arc<Links>>, headers: HeaderMap) -> Response {
    let language = Language::of(&headers);
    let kind = |code: &Code| ProblemKind::new(*code, language, links.prefix());
    let kinds: Vec<ProblemKind> = Code::ALL.iter().map(kind).collect();
    if !wants_html(&headers) {
        return negotiated(Json(kinds), language);
    }
    let (title, lead) = match language {
        Language::English => ("Problems", "Every 4xx and 5xx answer is one of these (RFC 9457)."),
        Language::Korean => ("문제 목록", "모든 4xx, 5xx 응답은 다음 중 하나입니다(RFC 9457)."),
    };
    let rows: String = kinds.iter().map(|kind| {
        let (code, title, status) = (kind.code, kind.title, kind.status);
        format!("<tr><td>{status}</td><td><a href=\"problems/{code}\"><code>{code}</code></a></td><td>{title}</td></tr>\n")
    }).collect();
    let body = format!("<h1>{title}</h1>\n<p>{lead}</p>\n<table>\n{rows}</table>\n");
    negotiated(pages::html(pages::document(language, title, "", &body)), language)
}

/// One problem: what it means, and what to do.
///
/// HTML for clients that prefer it to JSON.
#[utoipa::path(
    get, path = "/problems/{code}", operation_id = "getProblem", tag = "service",
    params(("code" = String, Path, example = "sold-out")),
    responses(
        (status = 200, description = "The problem", content((ProblemKind = "application/json"), (String = "text/html"))),
        (status = 404, description = "`not-found`: there is no such problem", body = ProblemBody,
            content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get(
    State(links): State<Arc<Links>>,
    headers: HeaderMap,
    Path(code): Path<String>,
) -> Result<Response, Problem> {
    let language = Language::of(&headers);
    let code = Code::ALL.iter().find(|known| known.as_str() == code);
    let code = *code.ok_or_else(|| Problem::new(Code::NotFound))?;
    let kind = ProblemKind::new(code, language, links.prefix());
    if !wants_html(&headers) {
        return Ok(negotiated(Json(kind), language));
    }
    let ProblemKind { code, title, status, detail, advice, retryable, .. } = kind;
    let (to_do, again, all) = match (language, retryable) {
        (Language::English, true) => (
            "What to do",
            "The same request may succeed later; retryable says whether it is safe to repeat.",
            "All problems",
        ),
        (Language::English, false) => {
            ("What to do", "The same request will not succeed later.", "All problems")
        }
        (Language::Korean, true) => (
            "해결 방법",
            "나중에 같은 요청이 성공할 수 있습니다. 다시 보내도 안전한지는 retryable에 있습니다.",
            "전체 목록",
        ),
        (Language::Korean, false) => ("해결 방법", "같은 요청을 다시 보내도 성공하지 않습니다.", "전체 목록"),
    };
    let body = format!(
        "<p><a href=\"../problems\">{all}</a></p>\n<h1>{title}</h1>\n<p><code>{code}</code> · {status}</p>\n\
         <p>{detail}</p>\n<h2>{to_do}</h2>\n<p>{advice}</p>\n<p>{again}</p>\n"
    );
    Ok(negotiated(pages::html(pages::document(language, title, "../", &body)), language))
}

fn wants_html(headers: &HeaderMap) -> bool {
    prefers(headers, "text/html", "application/json")
}

/// An answer whose format and language depend on what the client accepts.
fn negotiated(answer: impl IntoResponse, language: Language) -> Response {
    let headers = [(header::VARY, "accept, accept-language"), (header::CONTENT_LANGUAGE, language.tag())];
    (headers, answer).into_response()
}
