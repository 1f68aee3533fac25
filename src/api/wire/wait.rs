//! The `wait` parameter: how long a client wants to wait for the outcome.

use std::time::Duration;

use super::query::Query;
use crate::http::Problem;

/// A longer wait is brought down to this.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// Reads `wait`, and ends the reading of the query; `None` if the client does not want to wait.
///
/// # Errors
/// 422 `invalid`, also if another parameter is left.
pub(crate) fn read(mut query: Query) -> Result<Option<Duration>, Problem> {
    let wait = query.take("wait", parse)?;
    query.finish()?;
    Ok(wait.filter(|wait| !wait.is_zero()))
}

fn parse(text: &str) -> Result<Duration, String> {
    if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("must be a whole number of seconds, from 0 to 30".into());
    }
    // Digits that do not parse are too many for the type, so the number is large.
    Ok(text.parse().map_or(WAIT_MAX, Duration::from_secs).min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_a_whole_number_of_seconds_brought_down_to_thirty() {
        for (text, seconds) in
            [("0", 0), ("1", 1), ("030", 30), ("31", 30), ("99999999999999999999999999", 30)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "x", "-1", "+1", "1.5", "1s", " 1"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
