//! What the headers declare of a body: JSON in UTF-8, not compressed. A parameter is honoured or refused, never
//! ignored: JSON in another encoding would be read as something else than the client sent.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::http::{Code, Problem};

const JSON: &[u8] = b"application/json";

/// The problem of a body whose headers do not declare it plain JSON.
pub(crate) fn refuse(headers: &HeaderMap) -> Option<Problem> {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let problem = match (kinds.next(), kinds.next()) {
        (Some(kind), None) if kind.as_bytes() == JSON => None,
        (Some(kind), None) => refuse_kind(kind.to_str().unwrap_or_default()),
        (None, _) => Some(Problem::new(Code::UnsupportedMediaType)),
        _ => Some(refused("There is more than one Content-Type.")),
    };
    problem.or_else(|| {
        let codings = headers.get_all(header::CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
        let is_coded = codings.into_iter().any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
        is_coded.then(|| {
            refused("The body must not be compressed: leave Content-Encoding away.")
                .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
        })
    })
}

fn refuse_kind(kind: &str) -> Option<Problem> {
    let (essence, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    let essence = essence.trim().to_ascii_lowercase();
    if essence.as_bytes() != JSON && !(essence.contains('/') && essence.ends_with("+json")) {
        return Some(Problem::new(Code::UnsupportedMediaType));
    }
    let mut parameters = parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty());
    let are_honoured = parameters.next().is_none_or(is_utf8) && parameters.next().is_none();
    (!are_honoured).then(|| {
        refused("JSON is read as UTF-8: the one parameter that Content-Type may have is charset=utf-8.")
    })
}

/// Whether a parameter of a media type is `charset=utf-8`.
pub(crate) fn is_utf8(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else { return false };
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let value = quoted.unwrap_or(value);
    name.eq_ignore_ascii_case("charset")
        && ["utf-8", "utf8"].iter().any(|utf8| value.eq_ignore_ascii_case(utf8))
}

fn refused(detail: &str) -> Problem {
    Problem::new(Code::UnsupportedMediaType).with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(lines: &[(header::HeaderName, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        refuse(&headers).is_some()
    }

    #[test]
    fn a_parameter_is_honoured_or_refused() {
        for right in [
            "application/json",
            "Application/JSON",
            "application/merge-patch+json",
            "application/json;charset=utf-8",
            "application/json; Charset=\"UTF-8\"",
            "application/json ; charset=utf8;",
        ] {
            assert!(!is_refused(&[(header::CONTENT_TYPE, right)]), "{right}");
        }
        for wrong in [
            "",
            "text/plain",
            "json",
            "+json",
            "application/jsonp",
            "application/json;charset=euc-kr",
            "application/json;charset=utf-16",
            "application/json;charset=utf-8-x",
            "application/json;charset=\"utf-8",
            "application/json;charset",
            "application/json;charset=",
            "application/json;charset =utf-8",
            "application/json;charset=utf-8;charset=euc-kr",
            "application/json;charset=utf-8;charset=utf-8",
            "application/json;version=1",
            "application/json, text/plain",
        ] {
            assert!(is_refused(&[(header::CONTENT_TYPE, wrong)]), "{wrong}");
        }
        let json = (header::CONTENT_TYPE, "application/json");
        assert!(is_refused(&[json.clone(), json.clone()]) && is_refused(&[]));
        for (coding, expected) in [("identity", false), ("Identity", false), ("gzip", true), ("", true)] {
            assert_eq!(is_refused(&[json.clone(), (header::CONTENT_ENCODING, coding)]), expected, "{coding}");
        }
    }
}
