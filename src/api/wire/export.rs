//! Exports on the wire: units as lines of JSON or as rows of CSV.

use axum::http::HeaderMap;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::accept::prefers;
use super::user_coupon::UserCoupon;
use crate::failure::Unreadable;
use crate::ids::{CouponId, Unit};

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase", as = ExportFormat)]
pub(crate) enum Format {
    /// A line of JSON each, and an [`ExportEnd`].
    Ndjson,
    /// A row each, under a row of titles.
    Csv,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ndjson" => Ok(Format::Ndjson),
            "csv" => Ok(Format::Csv),
            _ => Err("must be ndjson or csv".into()),
        }
    }
}

impl Format {
    /// The format that the client accepts: NDJSON unless it prefers CSV.
    pub fn accepted(headers: &HeaderMap) -> Self {
        if prefers(headers, "text/csv", "application/x-ndjson") { Format::Csv } else { Format::Ndjson }
    }

    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Ndjson => "application/x-ndjson",
            Format::Csv => "text/csv; charset=utf-8",
        }
    }

    /// The ending of a file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Ndjson => "ndjson",
            Format::Csv => "csv",
        }
    }
}

/// A line or a row of an export.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ExportedUnit {
    Readable(UserCoupon),
    Unreadable(UnreadableUnit),
}

/// A unit that is held, and whose record this version cannot read: what can be told of it. The service's log
/// says what is wrong with the record.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnreadableUnit {
    /// The issuance that it came of, as far as it can be told.
    id: String,
    #[schema(example = "summer")]
    coupon_id: String,
    #[schema(required = true, example = "u1")]
    user_id: Option<String>,
    #[schema(required = true, example = 17)]
    serial: Option<u32>,
    /// Always `unreadable`; no other unit has this status.
    #[schema(example = "unreadable")]
    status: &'static str,
}

impl UnreadableUnit {
    /// A unit of `coupon` as far as it can be told.
    pub fn new(coupon: &CouponId, unreadable: Unreadable) -> Self {
        UnreadableUnit {
            id: unreadable.record,
            coupon_id: coupon.to_string(),
            user_id: unreadable.user.map(|user| user.to_string()),
            serial: unreadable.unit.map(Unit::serial),
            status: UNREADABLE,
        }
    }
}

/// The status of an [`UnreadableUnit`].
pub(crate) const UNREADABLE: &str = "unreadable";

/// The last line of an NDJSON export that is whole.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ExportEnd {
    /// Always true; no other line has this member.
    #[schema(example = true)]
    end: bool,
    /// The lines before this one, [`UnreadableUnit`]s among them.
    #[schema(example = 3770)]
    count: u64,
    /// How many of them are [`UnreadableUnit`]s; missing if none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    unreadable: Option<u64>,
    /// The last serial, for `after`.
    #[schema(example = 5000)]
    after: u32,
}

impl ExportEnd {
    /// The end of an export of `count` lines, `unreadable` of which are [`UnreadableUnit`]s.
    pub fn new(count: u64, unreadable: u64, after: u32) -> Self {
        ExportEnd { end: true, count, unreadable: Some(unreadable).filter(|units| *units > 0), after }
    }
}

/// The columns of a CSV export: the members of a unit.
pub(crate) const COLUMNS: [&str; 10] =
    ["id", "couponId", "userId", "serial", "nth", "status", "issuedAt", "validUntil", "usedAt", "reference"];

/// Units as lines of JSON.
///
/// # Errors
/// A unit cannot be serialised.
pub(crate) fn lines(units: &[ExportedUnit]) -> serde_json::Result<Bytes> {
    let mut out = BytesMut::new().writer();
    for unit in units {
        serde_json::to_writer(&mut out, unit)?;
        out.get_mut().put_u8(b'\n');
    }
    Ok(out.into_inner().freeze())
}

/// The row of titles.
pub(crate) fn titles() -> Bytes {
    rows([COLUMNS.map(String::from)])
}

/// Units as rows of CSV.
///
/// # Errors
/// A unit cannot be serialised.
pub(crate) fn table(units: &[ExportedUnit]) -> serde_json::Result<Bytes> {
    let units: Vec<Value> = units.iter().map(serde_json::to_value).collect::<serde_json::Result<_>>()?;
    Ok(self::units(&units))
}

/// Units, as their JSON, as rows of CSV (RFC 4180).
pub(crate) fn units<'a>(units: impl IntoIterator<Item = &'a Value>) -> Bytes {
    rows(units.into_iter().map(|unit| COLUMNS.map(|column| cell(&unit[column]))))
}

fn rows(rows: impl IntoIterator<Item = [String; COLUMNS.len()]>) -> Bytes {
    let terminator = csv::Terminator::CRLF;
    let mut writer = csv::WriterBuilder::new().terminator(terminator).from_writer(Vec::new());
    for row in rows {
        // Writing into memory does not fail.
        let _ = writer.write_record(row);
    }
    writer.into_inner().unwrap_or_default().into()
}

/// A value as a cell. A spreadsheet runs text that it takes for a formula, and changes text that it takes for a
/// number, a date or the like: `007`, `1E5`, twenty digits, `3-4`. Such text gets an apostrophe before it, which
/// makes it text in all of them, and so does text with an apostrophe, so that taking one away gives the text
/// back. Numbers are never negative; times are as RFC 3339 writes them.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if is_run(text) || is_changed(text) => format!("'{text}"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether a spreadsheet takes a text for a formula; or it begins as one that was made text.
fn is_run(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '\''])
}

/// Digits that a spreadsheet's numbers keep.
const DIGITS_KEPT: usize = 15;
/// Words without a digit that are values: truth in the languages of its users, and errors (`#N/A`).
const VALUES: [&str; 10] =
    ["true", "false", "wahr", "falsch", "vrai", "faux", "verdadero", "falso", "vero", "verdadeiro"];
/// Words beside digits that make a number, a time or a date of them; of months at least three letters.
const UNITS: [&str; 5] = ["e", "a", "p", "am", "pm"];
const MONTHS: [&str; 43] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "januar",
    "februar",
    "maerz",
    "mai",
    "juni",
    "juli",
    "oktober",
    "dezember",
    "janvier",
    "fevrier",
    "mars",
    "avril",
    "juin",
    "juillet",
    "aout",
    "septembre",
    "octobre",
    "novembre",
    "decembre",
    "enero",
    "febrero",
    "marzo",
    "abril",
    "mayo",
    "junio",
    "julio",
    "agosto",
    "septiembre",
    "octubre",
    "noviembre",
    "diciembre",
];
/// Of dates and telephone numbers; a part of a date has at most four digits.
const PART_DIGITS_MAX: usize = 4;

/// Whether a spreadsheet reads a text as a value that it then writes otherwise.
fn is_changed(text: &str) -> bool {
    if text.starts_with('#') {
        return true;
    }
    let text = text.to_ascii_lowercase();
    if !text.contains(|c: char| c.is_ascii_digit()) {
        return VALUES.contains(&text.as_str());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.len() > DIGITS_KEPT || text.len() > 1 && text.starts_with('0');
    }
    let mut words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    let begins_with_word = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_of_a_value = |word: &str| {
        let is_month = word.len() >= 3 && MONTHS.iter().any(|month| month.starts_with(word));
        is_month || !begins_with_word && UNITS.contains(&word)
    };
    let is_between = |c: char| c.is_ascii_alphanumeric() || ".,:/+-%$() ".contains(c);
    if !words.all(is_of_a_value) || !text.chars().all(is_between) {
        return false;
    }
    // Order numbers such as 20261123-000017 are none of dates, and are no numbers.
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    !text.contains(['-', '/', ':']) || parts.all(|part| part.len() <= PART_DIGITS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cell_that_a_spreadsheet_would_run_is_text_and_can_be_had_back() {
        for text in ["=1+1", "+82", "-u", "@name", "'quoted", "\tx", "\rx"] {
            assert_eq!(cell(&json!(text)).strip_prefix('\''), Some(text));
        }
        assert_eq!(cell(&json!("u1@shop")), "u1@shop");
        assert_eq!((cell(&json!(17)).as_str(), cell(&Value::Null).as_str()), ("17", ""));
    }

    #[test]
    fn what_a_spreadsheet_would_change_is_kept_and_what_it_would_not_is_left_alone() {
        for text in [
            "007",
            "00",
            "1E5",
            "1e-5",
            "12345678901234567890",
            "1234567890123456",
            "1.50",
            "1,234",
            ".5",
            "50%",
            "$5",
            "(5)",
            "3-4",
            "3/4",
            "2026-11-23",
            "23.11.2026",
            "12:30",
            "3pm",
            "12:30PM",
            "1/2/26",
            "MAR1",
            "Sept-2",
            "2-dez",
            "march2026",
            "10.0.0.1",
            "010-1234-5678",
            "TRUE",
            "false",
            "#N/A",
            "#REF!",
        ] {
            assert_eq!(cell(&json!(text)), format!("'{text}"));
        }
        for text in [
            "u1",
            "a1",
            "E5",
            "P-17",
            "order-17",
            "20261123-000017",
            "12345",
            "0",
            "123456789012345",
            "A-1/2026#7",
            "truely",
            "x1e5",
            "01a206a0-caad-7000-95cf-bcf9c90eb941",
            "11111111-2222-7333-8444-555555555555",
            "hong@shop",
            "2026-11-23T11:00:00Z",
            "2026-11-23T11:00:00.123Z",
            "active",
        ] {
            assert_eq!(cell(&json!(text)), text);
        }
    }

    #[test]
    fn a_row_is_quoted_as_rfc_4180_says() {
        let unit = json!({"id": "i", "serial": 1, "reference": "a \"b\",\nc"});
        assert_eq!(units([&unit]), "i,,,1,,,,,,\"a \"\"b\"\",\nc\"\r\n");
        assert!(titles().starts_with(b"id,couponId,userId,serial,"));
    }
}
