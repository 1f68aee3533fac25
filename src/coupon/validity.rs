//! How long a held coupon may be used.

use std::str::FromStr;
use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Span, Timestamp};

/// The time zones that this program brings along, so that all its processes count alike, whatever their
/// machines have.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A longer text is no duration.
const DURATION_CHARS_MAX: usize = 40;
/// How long a unit is valid that is issued when its coupon's `validUntil` is over: it was accepted before, and
/// decided late.
const VALID_IF_LATE: SignedDuration = SignedDuration::from_hours(24);
/// A shorter validity is over before a unit can be used.
const SHORTEST: SignedDuration = SignedDuration::from_secs(1);

/// Until when a unit may be redeemed once it is issued.
#[derive(Debug, Clone, PartialEq)]
pub enum Validity {
    Unlimited,
    /// Until a moment, the same for everyone.
    Until(Timestamp),
    /// An ISO 8601 duration, counted from the issue by the calendar of the coupon's time zone.
    For(ValidityPeriod),
}

/// An ISO 8601 duration such as `P30D`: one second to ten years.
#[derive(Debug, Clone)]
pub struct ValidityPeriod {
    text: String,
    span: Span,
}

impl PartialEq for ValidityPeriod {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl ValidityPeriod {
    /// The duration as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for ValidityPeriod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be an ISO 8601 duration of one second to ten years, such as P30D".to_string();
        if !text.starts_with('P') || text.len() > DURATION_CHARS_MAX {
            return Err(wrong());
        }
        let span: Span = text.parse().map_err(|_| wrong())?;
        let start = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        let end = start.checked_add(span).map_err(|_| wrong())?;
        let longest = start.checked_add(Span::new().years(10)).map_err(|_| wrong())?;
        if end.duration_since(&start) < SHORTEST || end > longest {
            return Err(wrong());
        }
        Ok(ValidityPeriod { text: text.to_owned(), span })
    }
}

/// A time zone by its IANA name, such as `Asia/Seoul`.
#[derive(Debug, Clone, PartialEq)]
pub struct CouponTimeZone(TimeZone);

impl CouponTimeZone {
    /// The zone of a coupon that names none.
    pub const UTC: CouponTimeZone = CouponTimeZone(TimeZone::UTC);

    /// Its name.
    pub fn as_str(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }
}

impl FromStr for CouponTimeZone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let zone = ZONES.get(text).ok().filter(|zone| !zone.is_unknown());
        zone.map(CouponTimeZone)
            .ok_or_else(|| "must be the IANA name of a time zone, such as Asia/Seoul".into())
    }
}

/// What the end of each unit's validity is computed from.
#[derive(Debug, Clone, PartialEq)]
pub struct Expiry {
    pub validity: Validity,
    /// Where days, weeks, months and years are counted.
    pub zone: CouponTimeZone,
}

impl Expiry {
    /// The end of validity of a unit issued at `issued_at`; `None` where it never ends. It is always later than
    /// that: a user who was accepted in time and is issued a unit after `validUntil` can use it for 24 hours.
    ///
    /// A calendar period ends at the same time of day: of a month without that day, on its last one; where the
    /// clocks skip that time, as much later, and where they show it twice, the first time.
    pub fn of(&self, issued_at: Timestamp) -> Option<Timestamp> {
        match &self.validity {
            Validity::Unlimited => None,
            Validity::Until(moment) if issued_at < *moment => Some(*moment),
            Validity::Until(_) => issued_at.checked_add(VALID_IF_LATE).ok(),
            Validity::For(duration) => {
                let issued_at = issued_at.to_zoned(self.zone.0.clone());
                issued_at.checked_add(duration.span).ok().map(|end| end.timestamp())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calendar_period_is_counted_in_the_coupons_time_zone() {
        for (validity, zone, issued, end) in [
            ("P1M", "UTC", "2026-01-31T10:00:00Z", "2026-02-28T10:00:00Z"),
            ("P1M", "Asia/Seoul", "2027-03-01T05:00:00+09:00", "2027-04-01T05:00:00+09:00"),
            ("P1M", "Asia/Seoul", "2027-01-31T08:00:00+09:00", "2027-02-28T08:00:00+09:00"),
            ("P1Y", "Asia/Seoul", "2028-02-29T08:00:00+09:00", "2029-02-28T08:00:00+09:00"),
            ("P30D", "Asia/Seoul", "2027-03-01T05:00:00+09:00", "2027-03-31T05:00:00+09:00"),
            // Clocks go forward at 02:00 on 14 March 2027, and back at 02:00 on 7 November.
            ("P1D", "America/New_York", "2027-03-13T12:00:00-05:00", "2027-03-14T12:00:00-04:00"),
            ("PT24H", "America/New_York", "2027-03-13T12:00:00-05:00", "2027-03-14T13:00:00-04:00"),
            ("P1D", "America/New_York", "2027-03-13T02:30:00-05:00", "2027-03-14T03:30:00-04:00"),
            ("P1D", "America/New_York", "2027-11-06T01:30:00-04:00", "2027-11-07T01:30:00-04:00"),
            ("P1DT2H", "America/New_York", "2027-11-06T01:30:00-04:00", "2027-11-07T02:30:00-05:00"),
            ("P1W", "Pacific/Apia", "2011-12-25T00:00:00-10:00", "2012-01-01T00:00:00+14:00"),
        ] {
            let at = |text: &str| text.parse::<Timestamp>().unwrap();
            let expiry =
                Expiry { validity: Validity::For(validity.parse().unwrap()), zone: zone.parse().unwrap() };
            assert_eq!(expiry.of(at(issued)), Some(at(end)), "{validity} in {zone} from {issued}");
        }
    }

    #[test]
    fn a_unit_that_is_issued_after_its_coupon_is_valid_for_a_day_and_any_other_until_then() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let expiry =
            Expiry { validity: Validity::Until(at("2027-01-01T00:00:00Z")), zone: CouponTimeZone::UTC };
        for (issued, end) in [
            ("2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z"),
            ("2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z"),
            ("2027-01-01T03:00:00Z", "2027-01-02T03:00:00Z"),
        ] {
            assert_eq!(expiry.of(at(issued)), Some(at(end)), "issued {issued}");
        }
    }

    #[test]
    fn a_zone_is_one_of_those_that_are_brought_along() {
        for (name, canonical) in
            [("Asia/Seoul", "Asia/Seoul"), ("asia/seoul", "Asia/Seoul"), ("UTC", "UTC"), ("ROK", "ROK")]
        {
            assert_eq!(name.parse::<CouponTimeZone>().unwrap().as_str(), canonical);
        }
        for wrong in
            ["", "KST", "+09:00", "UTC+9", "Asia/Atlantis", "Etc/Unknown", "../etc/passwd", "EST5EDT,M3.2.0"]
        {
            assert!(wrong.parse::<CouponTimeZone>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn durations_that_mean_nothing_are_refused() {
        let long = format!("P{}D", "0".repeat(100));
        for wrong in [
            "",
            "30 days",
            "P",
            "P0D",
            "-P1D",
            "P11Y",
            "PT",
            "PT0.9S",
            "P-1D",
            "P1D-PT1H",
            "P99999999999D",
            &long,
        ] {
            assert!(wrong.parse::<ValidityPeriod>().is_err(), "{wrong:?}");
        }
    }
}
