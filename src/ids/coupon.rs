use std::sync::Arc;

/// The id of a coupon: `[A-Za-z0-9._-]{1,64}`. Ids are never used again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CouponId(Arc<str>);

impl CouponId {
    /// Stands in for the id of a coupon that a damaged record does not name.
    pub(crate) fn unknown() -> Self {
        CouponId("unknown".into())
    }

    /// A new id, for a coupon that is created without one.
    pub fn generate() -> Self {
        CouponId(format!("c-{}", crate::ids::random_id()).into())
    }
}

text_id!(CouponId, "._-");

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
