use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::check_id;

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
        CouponId(format!("c-{}", crate::ids::random_id()).into())
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
