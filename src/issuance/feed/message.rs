//! The announcement of an outcome on the partition's channel: text, fields with a space between, none
//! of which can hold one. A message has as many announcements as were settled at once, a line each.
//! (The other message there is `epoch` and the epoch that was opened.)
//!
//! `id I unit nth acceptedAtMs decidedAtMs coupon user`, or, with `-` for no unit and `1` for a
//! lost one, `id R reason unit lost acceptedAtMs decidedAtMs coupon user`.
//!
//! It carries all of a [`Decision`], so it says what the ledger holds, to the millisecond that the ledger keeps too.
//! Workers do not settle by it all the same: they read the ledger, and only an API has a
//! [`Lookup`](crate::issuance::Lookup).

use std::str::FromStr;

use jiff::Timestamp;

use crate::issuance::{Decision, Outcome};
use crate::redis::Epoch;

/// The announcement of a decision; empty for a unit that was moved, for which nobody asked.
pub(in crate::issuance) fn write(decision: &Decision) -> String {
    if decision.user.share().is_some() {
        return String::new();
    }
    let outcome = match decision.outcome {
        Outcome::Issued { unit, nth } => format!("I {unit} {nth}"),
        Outcome::Moved { .. } => return String::new(),
        Outcome::Rejected { reason, unit, lost } => {
            let unit = unit.map_or_else(|| "-".to_owned(), |unit| unit.to_string());
            format!("R {} {unit} {}", reason.as_str(), u8::from(lost))
        }
    };
    format!(
        "{} {outcome} {} {} {} {}",
        decision.id,
        decision.accepted_at.as_millisecond(),
        decision.decided_at.as_millisecond(),
        decision.coupon,
        decision.user
    )
}

/// A message on the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Announcement {
    Outcome(Decision),
    /// This epoch was opened.
    Epoch(Epoch),
}

/// Reads an announcement, in the only spelling that is written.
pub(super) fn hear(text: &str) -> Result<Announcement, String> {
    match text.strip_prefix("epoch ") {
        Some(epoch) => epoch.parse().map(Announcement::Epoch).map_err(|_| format!("{epoch:?} is no epoch")),
        None => read(text).map(Announcement::Outcome),
    }
}

/// Reads the announcement of an outcome.
pub(super) fn read(text: &str) -> Result<Decision, String> {
    let mut fields = text.split(' ');
    let mut next = |name: &str| fields.next().ok_or_else(|| format!("no {name}"));
    let id = next("id")?.parse()?;
    let outcome = match next("outcome")? {
        "I" => Outcome::Issued { unit: next("unit")?.parse()?, nth: number(next("nth")?)? },
        "R" => Outcome::Rejected {
            reason: next("reason")?.parse()?,
            unit: match next("unit")? {
                "-" => None,
                unit => Some(unit.parse()?),
            },
            lost: next("lost")? == "1",
        },
        other => return Err(format!("{other:?} is no outcome")),
    };
    if let Outcome::Issued { nth: 0, .. } = outcome {
        return Err("units are counted from 1".into());
    }
    let decision = Decision {
        id,
        outcome,
        accepted_at: time(next("time of acceptance")?)?,
        decided_at: time(next("time of decision")?)?,
        coupon: next("coupon")?.parse()?,
        user: next("user")?.parse()?,
    };
    // Also refuses fields too many, signs, leading zeros and other spellings of an id.
    if write(&decision) == text { Ok(decision) } else { Err("it is spelled in another way".into()) }
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::from_millisecond(number(text)?).map_err(|error| error.to_string())
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number that fits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IssuanceId, PartitionId, Unit};
    use crate::issuance::Reason;

    fn decision(outcome: Outcome) -> Decision {
        Decision {
            id: IssuanceId::generate(PartitionId::ONE),
            coupon: "summer".parse().unwrap(),
            user: "u:1@x".parse().unwrap(),
            outcome,
            accepted_at: Timestamp::from_millisecond(1_700_000_000_001).unwrap(),
            decided_at: Timestamp::from_millisecond(1_700_000_000_042).unwrap(),
        }
    }

    #[test]
    fn every_decision_survives_its_announcement_whole() {
        let rejected = |reason, serial, lost| Outcome::Rejected { reason, unit: serial, lost };
        let seventeen = Unit::native(17);
        for outcome in [
            Outcome::Issued { unit: Unit::new((3 << 24) + 17).unwrap(), nth: 2 },
            rejected(Reason::AlreadyIssued, seventeen, false),
            rejected(Reason::SoldOut, seventeen, true),
            rejected(Reason::SoldOut, None, true),
            rejected(Reason::Discarded, None, false),
        ] {
            let decision = decision(outcome);
            assert_eq!(read(&write(&decision)), Ok(decision));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let whole = write(&decision(Outcome::Issued { unit: Unit::native(17).unwrap(), nth: 1 }));
        read(&whole).unwrap();
        for (from, to) in [
            (" I ", " X "),
            (" I ", " R "),
            (" 17 ", " 0 "),
            (" 17 ", " +17 "),
            (" 17 ", " 017 "),
            (" 17 ", " "),
            (" 1 ", " 256 "),
            (" summer ", "  "),
            ("u:1@x", "u:1@x more"),
            ("u:1@x", "u/1"),
            ("u:1@x", "u:1@x\n"),
        ] {
            let damaged = whole.replacen(from, to, 1);
            assert_ne!(damaged, whole);
            assert!(read(&damaged).is_err(), "{damaged:?}");
        }
        for damaged in ["", " ", "end", &whole.to_uppercase(), &whole[..whole.len() - 6], &whole[1..]] {
            assert!(read(damaged).is_err(), "{damaged:?}");
        }
    }
}
