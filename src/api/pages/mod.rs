//! The pages for people: the try-it page (choose a coupon, request it, watch it become issued), the operators' console,
//! and what the pages of text have in common. They work under any path, and have no inline script or style.

pub(crate) mod console;
pub(crate) mod swagger;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::http::Language;

/// Allows only scripts and styles of the service itself.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";

/// The try-it page.
pub(crate) async fn try_it() -> Response {
    page("text/html; charset=utf-8", CONTENT_POLICY, include_str!("try.html"))
}

/// The style of the try-it page.
pub(crate) async fn try_it_style() -> Response {
    page(
        "text/css; charset=utf-8",
        CONTENT_POLICY,
        concat!(include_str!("theme.css"), include_str!("try.css")),
    )
}

/// The script of the try-it page.
pub(crate) async fn try_it_script() -> Response {
    page("text/javascript; charset=utf-8", CONTENT_POLICY, include_str!("try.js"))
}

/// The page for client developers: the text of [`client_script`], explained.
pub(crate) async fn developers(headers: HeaderMap) -> Response {
    let language = Language::of(&headers);
    let (title, body) = match language {
        Language::English => ("For client developers", include_str!("developers.html")),
        Language::Korean => ("클라이언트 개발자를 위하여", include_str!("developers.ko.html")),
    };
    let body = body.replace("{{client.js}}", &escaped(include_str!("client.js")));
    let page = html(document(language, title, "", &body));
    let headers = [(header::VARY, "accept-language"), (header::CONTENT_LANGUAGE, language.tag())];
    (headers, page).into_response()
}

/// The client that [`developers`] shows.
pub(crate) async fn client_script() -> Response {
    page("text/javascript; charset=utf-8", CONTENT_POLICY, include_str!("client.js"))
}

/// The style of the pages of text.
pub(crate) async fn style() -> Response {
    page("text/css; charset=utf-8", CONTENT_POLICY, include_str!("pages.css"))
}

/// A page of text. `up` is the relative way from its path to the root of the service, which may be under a path.
pub(crate) fn document(language: Language, title: &str, up: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"{}\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · Coupon System</title>\n\
         <link rel=\"icon\" href=\"{up}favicon.ico\">\n\
         <link rel=\"stylesheet\" href=\"{up}assets/pages.css\">\n</head>\n<body>\n<main>\n{body}</main>\n\
         </body>\n</html>\n",
        language.tag(),
    )
}

/// A page of HTML.
pub(crate) fn html(text: String) -> Response {
    page("text/html; charset=utf-8", CONTENT_POLICY, text)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A page, or a part of one, with headers that say what it may do.
pub(crate) fn page(
    content_type: impl TryInto<HeaderValue>,
    content_policy: &'static str,
    text: impl IntoResponse,
) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    let content_type =
        content_type.try_into().unwrap_or(HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(content_policy));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use crate::coupon::Currency;

    #[test]
    fn the_try_page_counts_every_currency_as_iso_4217_does() {
        let script = include_str!("try.js");
        let table = script.split_once("const MINOR_DIGITS = {").and_then(|(_, rest)| rest.split_once("};"));
        let pairs = table.expect("the table").0.split(',').filter_map(|pair| pair.split_once(':'));
        let mut digits: std::collections::HashMap<&str, u32> =
            pairs.map(|(code, digits)| (code.trim(), digits.trim().parse().expect("digits"))).collect();
        let letters = || (b'A'..=b'Z').map(char::from);
        let codes = letters().flat_map(|a| letters().flat_map(move |b| letters().map(move |c| [a, b, c])));
        for code in codes.map(|code| code.iter().collect::<String>()) {
            let currency: Currency = code.parse().expect("three letters");
            if let Some(right) = currency.minor_digits() {
                assert_eq!(digits.remove(&*code).unwrap_or(2), right, "{code}");
            }
        }
        assert!(digits.is_empty(), "no currencies of ISO 4217: {digits:?}");
    }
}
