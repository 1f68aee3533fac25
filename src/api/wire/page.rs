//! Lists: a page of items and the cursor of the next one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::query::Query;
use crate::http::Problem;

/// Items in a page without `limit`.
const LIMIT_DEFAULT: usize = 50;
/// A larger `limit` is brought down to this.
const LIMIT_MAX: usize = 500;

/// A page of a list, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    pub items: Vec<T>,
    /// For the next page: give it back as `cursor`. Null on the last page, and on no other: a page may have
    /// fewer items than asked for, or none, where records cannot be read.
    #[schema(required = true)]
    pub next_cursor: Option<String>,
}

/// The page that a request asks for: after which item, and how many items.
#[derive(Debug, Clone)]
pub struct PageParams<Id> {
    pub after: Option<(Timestamp, Id)>,
    pub limit: usize,
}

impl<Id: std::str::FromStr> PageParams<Id> {
    /// Reads `limit` and `cursor` from a query.
    ///
    /// # Errors
    /// 422 `invalid`.
    pub fn read(query: &mut Query) -> Result<Self, Problem> {
        let limit: Option<usize> = query.take("limit", |text| match text.parse::<usize>() {
            Ok(limit) if limit > 0 => Ok(limit.min(LIMIT_MAX)),
            _ => Err("must be a whole number from 1 to 500".into()),
        })?;
        let after = query.take("cursor", |text| {
            decode(text).ok_or_else(|| "must be the nextCursor of an earlier page".to_string())
        })?;
        Ok(PageParams { after, limit: limit.unwrap_or(LIMIT_DEFAULT) })
    }
}

/// The cursor of the page that follows an item.
pub(crate) fn cursor(time: Timestamp, id: impl std::fmt::Display) -> String {
    URL_SAFE_NO_PAD.encode(format!("{} {id}", time.as_millisecond()))
}

fn decode<Id: std::str::FromStr>(text: &str) -> Option<(Timestamp, Id)> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let (ms, id) = text.split_once(' ')?;
    Some((Timestamp::from_millisecond(ms.parse().ok()?).ok()?, id.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CouponId;

    #[test]
    fn a_cursor_leads_back_to_its_item_and_nonsense_nowhere() {
        let time = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        let id: CouponId = "summer".parse().unwrap();
        assert_eq!(decode(&cursor(time, &id)), Some((time, id)));
        for wrong in ["", "x", "!!", &URL_SAFE_NO_PAD.encode("1"), &URL_SAFE_NO_PAD.encode("x summer")] {
            assert_eq!(decode::<CouponId>(wrong), None, "{wrong}");
        }
    }
}
