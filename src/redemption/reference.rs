//! The shop's name for what a coupon is used for.

use std::fmt;
use std::str::FromStr;

/// Characters of a reference at most.
pub const REFERENCE_MAX: usize = 128;

/// The number of an order, or the like: 1 to 128 visible ASCII characters, no space among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference(String);

impl Reference {
    /// The reference as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if (1..=REFERENCE_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Reference(text.to_owned()))
        } else {
            Err(format!(
                "must have 1 to {REFERENCE_MAX} visible ASCII characters, such as the number of an order"
            ))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_see_is_no_reference() {
        for right in ["1", "A-1/2026#7", "$where", &"x".repeat(128)] {
            assert!(right.parse::<Reference>().is_ok(), "{right:?}");
        }
        for wrong in ["", " ", "a b", "a\n", "a\0", "주문-17", "\u{200b}", "a\u{202e}b", &"x".repeat(129)] {
            assert!(wrong.parse::<Reference>().is_err(), "{wrong:?}");
        }
    }
}
