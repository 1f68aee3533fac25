//! Parsed ids.

/// The conversions of an id that is a text: `$extra` are the characters that it may have besides ASCII letters and
/// digits.
macro_rules! text_id {
    ($id:ident, $extra:literal) => {
        impl $id {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $id {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                super::check_id(text, $extra)?;
                Ok($id(text.into()))
            }
        }

        impl std::fmt::Display for $id {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

mod coupon;
mod issuance;
mod partition;
mod share;
mod slot;
mod unit;
mod user;

pub use coupon::CouponId;
pub use issuance::IssuanceId;
pub use partition::PartitionId;
pub(crate) use share::{SHARE_UNITS_MIN, are_thin};
pub use share::{SHARES_MAX, Share, Shares};
pub(crate) use slot::tag_in_part;
pub use slot::{SLOTS, slot_of};
pub use unit::Unit;
pub use user::UserId;

/// Twelve letters and digits, 60 random bits: unguessable, and unique for every use here.
pub(crate) fn random_id() -> String {
    id_of(rand::random())
}

/// The lower 60 bits as twelve letters and digits.
pub(crate) fn id_of(bits: u64) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..12).map(|place| char::from(LETTERS[(bits >> (place * 5)) as usize % LETTERS.len()])).collect()
}

/// Checks an id: 1 to 64 characters, each an ASCII letter, a digit or one of `extra`. An `Err` says what it must be.
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
