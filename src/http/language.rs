//! English or Korean, by `Accept-Language`.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::header::ACCEPT_LANGUAGE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};

/// A language that answers are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    #[default]
    English,
    Korean,
}

impl<S: Sync> FromRequestParts<S> for Language {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Language::of(&parts.headers))
    }
}

impl Language {
    /// The language that the client prefers; English if it names neither.
    pub fn of(headers: &HeaderMap) -> Self {
        Language::accepted(headers.get(ACCEPT_LANGUAGE))
    }

    /// The same, of the value of `Accept-Language`.
    pub fn accepted(value: Option<&HeaderValue>) -> Self {
        let Some(wanted) = value.and_then(|value| value.to_str().ok()) else {
            return Language::English;
        };
        let mut best = (0.0, Language::English);
        for range in wanted.split(',') {
            let mut parts = range.split(';');
            let tag = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
            let language = match tag.split('-').next() {
                Some("ko") => Language::Korean,
                Some("en") => Language::English,
                _ => continue,
            };
            let weight = parts.find_map(|part| {
                let (name, value) = part.trim().split_once('=')?;
                name.eq_ignore_ascii_case("q").then_some(value)
            });
            let Some(quality) = weight.map_or(Some(1.0), quality_value) else { continue };
            if quality > best.0 {
                best = (quality, language);
            }
        }
        best.1
    }

    /// The tag for `Content-Language`.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::Korean => "ko",
        }
    }
}

/// A weight in `Accept` or `Accept-Language`: a number from 0 to 1.
pub(crate) fn quality_value(text: &str) -> Option<f32> {
    text.parse().ok().filter(|quality| (0.0..=1.0).contains(quality))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_liked_language_wins_and_english_stands_in() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, value.parse().unwrap());
            Language::of(&headers)
        };
        assert_eq!(of("ko-KR,ko;q=0.9,en;q=0.8"), Language::Korean);
        assert_eq!(of("en;q=0.9, ko;q=0.8"), Language::English);
        assert_eq!(of("fr, ko;q=0.1"), Language::Korean);
        assert_eq!(of("fr"), Language::English);
        assert_eq!(of("en;Q=0.1, ko;q=0.5"), Language::Korean);
        assert_eq!(of("ko;q=inf, en;q=0.1"), Language::English);
        assert_eq!(Language::of(&HeaderMap::new()), Language::English);
    }
}
