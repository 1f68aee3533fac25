//! Exports on the wire: units as lines of JSON or as rows of CSV.

use axum::http::HeaderMap;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::user_coupon::UserCoupon;
use crate::http::accept::prefers;

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase", as = ExportFormat)]
pub enum Format {
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
    /// The one that the client accepts; NDJSON unless it likes CSV better.
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

/// The last line of an NDJSON export that is whole.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExportEnd {
    /// Always true; no other line has this member.
    #[schema(example = true)]
    end: bool,
    /// The lines before this one.
    #[schema(example = 3770)]
    count: u64,
    /// Units that are left out because this version cannot read their record; missing if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    unreadable: Option<u64>,
    /// The last serial, for `after`.
    #[schema(example = 5000)]
    after: u32,
}

impl ExportEnd {
    pub fn new(count: u64, unreadable: u64, after: u32) -> Self {
        ExportEnd { end: true, count, unreadable: Some(unreadable).filter(|units| *units > 0), after }
    }
}

/// The columns of a CSV export: the members of a unit.
pub const COLUMNS: [&str; 10] =
    ["id", "couponId", "userId", "serial", "nth", "status", "issuedAt", "validUntil", "usedAt", "reference"];

/// Units as lines of JSON.
pub fn lines(units: &[UserCoupon]) -> serde_json::Result<Bytes> {
    let mut out = BytesMut::new().writer();
    for unit in units {
        serde_json::to_writer(&mut out, unit)?;
        out.get_mut().put_u8(b'\n');
    }
    Ok(out.into_inner().freeze())
}

/// The row of titles.
pub fn titles() -> Bytes {
    rows([COLUMNS.map(String::from)])
}

/// Units as rows of CSV.
pub fn table(units: &[UserCoupon]) -> serde_json::Result<Bytes> {
    let units: Vec<Value> = units.iter().map(serde_json::to_value).collect::<serde_json::Result<_>>()?;
    Ok(self::units(&units))
}

/// Units, as their JSON, as rows of CSV (RFC 4180).
pub fn units<'a>(units: impl IntoIterator<Item = &'a Value>) -> Bytes {
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

/// A value as a cell. A spreadsheet takes text that begins like a formula for one, and runs it: such
/// text gets an apostrophe before it, and so does text with an apostrophe, so that taking one away gives
/// the text back. Numbers are never negative.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\'']) => format!("'{text}"),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
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
    fn a_row_is_quoted_as_rfc_4180_says() {
        let unit = json!({"id": "i", "serial": 1, "reference": "a \"b\",\nc"});
        assert_eq!(units([&unit]), "i,,,1,,,,,,\"a \"\"b\"\",\nc\"\r\n");
        assert!(titles().starts_with(b"id,couponId,userId,serial,"));
    }
}
