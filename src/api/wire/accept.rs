//! Which of two media types a client prefers, by `Accept`.

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

use super::media_type::is_utf8;
use crate::http::language::quality_value;

/// Whether the client prefers `this` to `that`. A client that names neither does not.
pub(crate) fn prefers(headers: &HeaderMap, this: &str, that: &str) -> bool {
    quality(headers, this) > quality(headers, that)
}

/// The weight that a client gives a media type: that of its most specific range that covers the type.
fn quality(headers: &HeaderMap, wanted: &str) -> f32 {
    let any_of_type = wanted.split('/').next().map(|kind| format!("{kind}/*")).unwrap_or_default();
    let mut best = (0, 0.0);
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let specific = match kind.as_str() {
            kind if kind == wanted => 3,
            kind if kind == any_of_type => 2,
            "*/*" => 1,
            _ => continue,
        };
        let Some(quality) = weight(parts) else { continue };
        if specific > best.0 {
            best = (specific, quality);
        }
    }
    best.1
}

/// The weight of a range, by its parameters; `None` if it is no weight, or if the answer, whose only parameter is
/// UTF-8, does not meet one of them.
fn weight<'a>(parameters: impl Iterator<Item = &'a str>) -> Option<f32> {
    for parameter in parameters.filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some((name, value)) if name.eq_ignore_ascii_case("q") => return quality_value(value),
            _ if is_utf8(parameter) => {}
            _ => return None,
        }
    }
    Some(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_range_decides() {
        let csv = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            prefers(&headers, "text/csv", "application/x-ndjson")
        };
        for accept in ["text/csv", "Text/CSV;q=0.9, application/x-ndjson;q=0.1", "text/*, */*;q=0.1"] {
            assert!(csv(accept), "{accept}");
        }
        for accept in ["text/csv; charset=utf-8", "text/csv;Q=0.5, */*;q=0.1"] {
            assert!(csv(accept), "{accept}");
        }
        for accept in ["text/csv;charset=euc-kr", "text/csv;x=y", "text/csv;q=inf", "text/csv;q=-1, */*"] {
            assert!(!csv(accept), "{accept}");
        }
        for accept in ["*/*", "text/csv;q=0.5, */*", "text/csv;q=0", "text/html", "nonsense", ""] {
            assert!(!csv(accept), "{accept}");
        }
        assert!(!prefers(&HeaderMap::new(), "text/html", "application/json"));
        let mut browser = HeaderMap::new();
        let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        browser.insert(ACCEPT, accept.parse().unwrap());
        assert!(prefers(&browser, "text/html", "application/json"));
    }
}
