//! How long a held coupon may be used.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Until when a unit may be redeemed once it is issued.
#[derive(Debug, Clone, PartialEq)]
pub enum Validity {
    Unlimited,
    /// Until a moment, the same for everyone.
    Until(Timestamp),
    /// An ISO 8601 duration, counted from the issue in UTC.
    For(Duration),
}

/// A positive ISO 8601 duration such as `P30D`, at most ten years.
#[derive(Debug, Clone)]
pub struct Duration {
    text: String,
    span: Span,
}

impl PartialEq for Duration {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Duration {
    /// The duration as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl std::str::FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be a positive ISO 8601 duration of at most ten years, such as P30D".to_string();
        if !text.starts_with('P') {
            return Err(wrong());
        }
        let span: Span = text.parse().map_err(|_| wrong())?;
        let start = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        let end = start.checked_add(span).map_err(|_| wrong())?;
        let longest = start.checked_add(Span::new().years(10)).map_err(|_| wrong())?;
        if end <= start || end > longest {
            return Err(wrong());
        }
        Ok(Duration { text: text.to_owned(), span })
    }
}

impl Validity {
    /// The end of validity of a unit issued at `issued_at`; `None` where it never ends.
    pub fn end(&self, issued_at: Timestamp) -> Option<Timestamp> {
        match self {
            Validity::Unlimited => None,
            Validity::Until(moment) => Some(*moment),
            Validity::For(duration) => {
                issued_at.to_zoned(TimeZone::UTC).checked_add(duration.span).ok().map(|end| end.timestamp())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_months_validity_ends_a_calendar_month_after_the_issue() {
        let issued: Timestamp = "2026-01-31T10:00:00Z".parse().unwrap();
        let validity = Validity::For("P1M".parse().unwrap());
        assert_eq!(validity.end(issued), Some("2026-02-28T10:00:00Z".parse().unwrap()));
    }

    #[test]
    fn durations_that_mean_nothing_are_refused() {
        for wrong in ["", "30 days", "P", "P0D", "-P1D", "P11Y", "PT"] {
            assert!(wrong.parse::<Duration>().is_err(), "{wrong:?}");
        }
    }
}
