//! Reads a JSON body strictly: each field is parsed once, into a type; the answer names all errors at once; an unknown
//! field is an error.
//!
//! Own code, because serde ends at the first field of a wrong type: a validator such as `garde` sees only a body that has
//! been read whole, so a client would be told of its errors one after another.

use serde_json::{Map, Value};

use crate::http::problem::{FieldError, Problem};

/// The fields of a JSON object that are not read yet, and the errors of the others.
#[derive(Debug)]
pub(crate) struct Fields {
    prefix: String,
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// The fields of a body.
    ///
    /// # Errors
    /// 422 `invalid` if the body is no object.
    pub fn of(body: Value) -> Result<Self, Problem> {
        match body {
            Value::Object(object) => Ok(Fields { prefix: String::new(), object, errors: Vec::new() }),
            _ => Err(Problem::invalid(vec![error("#", "must be an object")])),
        }
    }

    /// Reads a field that must not be missing.
    pub fn required<T>(&mut self, name: &str, parse: impl FnOnce(Value) -> Result<T, String>) -> Option<T> {
        let value = self.optional(name, parse);
        if value.is_none() && !self.errors.iter().any(|error| error.pointer == Some(self.pointer(name))) {
            self.wrong(name, "is missing");
        }
        value
    }

    /// Reads a field that may be missing or null.
    pub fn optional<T>(&mut self, name: &str, parse: impl FnOnce(Value) -> Result<T, String>) -> Option<T> {
        match self.object.remove(name) {
            None | Some(Value::Null) => None,
            Some(value) => parse(value).map_err(|why| self.wrong(name, why)).ok(),
        }
    }

    /// Whether a field is present and not read yet.
    pub fn has(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(|value| !value.is_null())
    }

    /// Reads an optional field that is an object itself.
    pub fn object<T>(&mut self, name: &str, read: impl FnOnce(&mut Fields) -> Option<T>) -> Option<T> {
        let object = self.optional(name, |value| match value {
            Value::Object(object) => Ok(object),
            _ => Err("must be an object".into()),
        })?;
        let mut inner = Fields { prefix: format!("{}/{name}", self.prefix), object, errors: Vec::new() };
        let value = read(&mut inner);
        inner.refuse_unknown();
        let complete = inner.errors.is_empty();
        self.errors.append(&mut inner.errors);
        value.filter(|_| complete)
    }

    /// Notes an error of a field.
    pub fn wrong(&mut self, name: &str, why: impl Into<String>) {
        self.errors.push(error(&self.pointer(name), why));
    }

    /// Ends the reading with `value`.
    ///
    /// # Errors
    /// 422 `invalid` with every error, those of unknown fields among them.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Problem> {
        self.refuse_unknown();
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(Problem::invalid(self.errors)),
        }
    }

    fn refuse_unknown(&mut self) {
        let unknown: Vec<String> = self.object.keys().take(UNKNOWN_TOLD_MAX).cloned().collect();
        for name in unknown {
            self.wrong(&name, "is not a field of this request");
        }
    }

    fn pointer(&self, name: &str) -> String {
        format!("#{}/{}", self.prefix, name.replace('~', "~0").replace('/', "~1"))
    }
}

/// Unknown fields that an answer names at most.
const UNKNOWN_TOLD_MAX: usize = 20;

fn error(pointer: &str, detail: impl Into<String>) -> FieldError {
    FieldError { pointer: Some(pointer.to_owned()), parameter: None, detail: detail.into() }
}

/// A string that a domain type parses.
///
/// # Errors
/// What the value must be.
pub(crate) fn parsed<T: std::str::FromStr<Err = String>>(value: Value) -> Result<T, String> {
    string(value)?.parse()
}

/// Any string.
///
/// # Errors
/// What the value must be.
pub(crate) fn string(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("must be a string".into()),
    }
}

/// A string for people: 1 to `max` characters as they count them (`crate::text`).
pub(crate) fn words(max: usize) -> impl Fn(Value) -> Result<String, String> {
    move |value| crate::text::words(&string(value)?, max)
}

/// A whole number within bounds.
pub(crate) fn whole<T: TryFrom<u64>>(least: u64, most: u64) -> impl Fn(Value) -> Result<T, String> {
    move |value| {
        let wrong = || format!("must be a whole number from {least} to {most}");
        let number = unsigned(&value).filter(|number| (least..=most).contains(number)).ok_or_else(wrong)?;
        T::try_from(number).map_err(|_| wrong())
    }
}

/// A whole number. Some languages write every number with a fraction, which JSON does not tell apart.
fn unsigned(value: &Value) -> Option<u64> {
    /// Beyond this a fraction would be lost without a trace.
    const EXACT_MAX: f64 = 9_007_199_254_740_991.0;
    let with_fraction = || value.as_f64().filter(|number| (0.0..=EXACT_MAX).contains(number));
    value
        .as_u64()
        .or_else(|| with_fraction().filter(|number| number.fract() == 0.0).map(|number| number as u64))
}

/// A moment in RFC 3339 with any offset, in the years that the database can order, cut to milliseconds.
///
/// # Errors
/// What the value must be.
pub(crate) fn moment(value: Value) -> Result<jiff::Timestamp, String> {
    let wrong = || "must be a time such as 2026-11-23T20:00:00+09:00".to_string();
    let parsed: jiff::Timestamp = string(value)?.parse().map_err(|_| wrong())?;
    let within = (0..=MOMENT_MAX_MS).contains(&parsed.as_millisecond());
    if !within {
        return Err("must be between the years 1970 and 9999".into());
    }
    jiff::Timestamp::from_millisecond(parsed.as_millisecond()).map_err(|_| wrong())
}

/// 9999-12-30T22:00:00Z, the last full hour that every offset can write.
const MOMENT_MAX_MS: i64 = 253_402_207_200_000;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_that_is_wrong_is_told_at_once_with_its_place() {
        let mut fields =
            Fields::of(json!({"total": 0, "nested": {"amount": "x", "more": 1}, "extra": 1})).unwrap();
        let total: Option<u32> = fields.required("total", whole(1, 10));
        let name = fields.required("name", words(10));
        let nested = fields.object("nested", |inner| inner.required("amount", whole::<u64>(1, 9)));
        let problem = fields.finish(total.zip(name).zip(nested)).unwrap_err();
        let body = problem.to_value(crate::http::Language::English, "r", "");
        let pointers: Vec<_> =
            body["errors"].as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap()).collect();
        assert_eq!(pointers, ["#/total", "#/name", "#/nested/amount", "#/nested/more", "#/extra"]);
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_fraction_of_nothing() {
        let of = |text: &str| whole::<u32>(1, 10_000_000)(serde_json::from_str(text).unwrap()).ok();
        assert_eq!((of("17"), of("17.0"), of("1e7")), (Some(17), Some(17), Some(10_000_000)));
        for wrong in ["17.5", "0.0", "-1", "-1.0", "1e300", "10000001.0", "\"17\"", "true"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_moment_takes_any_offset_and_keeps_milliseconds() {
        let at = |text: &str| moment(json!(text));
        assert_eq!(at("2026-11-23T20:00:00.1234567+09:00").unwrap().to_string(), "2026-11-23T11:00:00.123Z");
        for wrong in ["", "2026-11-23", "2026-11-23T20:00:00", "1969-01-01T00:00:00Z", "soon"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }
}
