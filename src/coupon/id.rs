//! The name of a coupon, chosen by its maker or generated.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What an id may look like: 1 to 64 characters, each a letter, a digit or one of `extra`.
pub(crate) fn check_id(text: &str, extra: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    if text.len() > MAX_LEN {
        return Err(format!("must have at most {MAX_LEN} characters"));
    }
    // In a URL they mean a folder, so the request would be about something else.
    if matches!(text, "." | "..") {
        return Err("must not be \".\" or \"..\"".into());
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !extra.contains(*c)) {
        None => Ok(()),
        Some(wrong) => Err(format!(
            "must be made of letters, digits and {}; {wrong:?} is none of them",
            extra.chars().map(|c| format!("'{c}'")).collect::<Vec<_>>().join(" ")
        )),
    }
}

const MAX_LEN: usize = 64;

/// The id of a coupon: `[A-Za-z0-9._-]{1,64}`. Ids are never used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CouponId(Arc<str>);

impl CouponId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Stands where nobody can tell which coupon it was.
    pub(crate) fn unknown() -> Self {
        CouponId("unknown".into())
    }

    /// A new id, for a coupon whose maker gave none.
    pub fn generate() -> Self {
        CouponId(format!("c-{}", crate::random_id()).into())
    }
}

impl FromStr for CouponId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        check_id(text, "._-")?;
        Ok(CouponId(text.into()))
    }
}

impl fmt::Display for CouponId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for CouponId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_break_a_key_or_an_entry_is_refused() {
        for wrong in ["", "a b", "a\n", "{0}", "a:b", "쿠폰", "a/b", ".", "..", &"x".repeat(65)] {
            assert!(wrong.parse::<CouponId>().is_err(), "{wrong:?}");
        }
        for right in ["summer", "A.b_c-9", &"x".repeat(64)] {
            assert!(right.parse::<CouponId>().is_ok(), "{right:?}");
        }
    }
}
