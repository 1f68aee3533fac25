//! What things are called: parsed ids, which name no driver and need nothing else.

mod coupon;
mod issuance;
mod partition;
mod user;

pub use coupon::CouponId;
pub use issuance::IssuanceId;
pub use partition::PartitionId;
pub use user::UserId;

/// Twelve letters and digits that nobody can guess and nothing else has: 60 random bits.
pub(crate) fn random_id() -> String {
    id_of(rand::random())
}

/// Twelve letters and digits: the lower 60 of these bits.
pub(crate) fn id_of(bits: u64) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    (0..12).map(|place| char::from(LETTERS[(bits >> (place * 5)) as usize % LETTERS.len()])).collect()
}

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
