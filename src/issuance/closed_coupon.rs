//! Answers a request for a coupon that is over and was retired from Redis. Nothing of such a coupon is in flight, so
//! the ledger knows all of it.

use super::reserve::{Request, Reserved, TOLD_MAX};
use super::{Ledger, Outcome};
use crate::Failure;
use crate::coupon::Coupon;

/// The answer that `reserve.lua` would give: replays by key and limits come before "it is over".
///
/// # Errors
///
/// If MongoDB fails, or the decision of a replay cannot be read.
pub async fn answer(ledger: &Ledger, coupon: &Coupon, request: &Request) -> Result<Reserved, Failure> {
    if request.id.is_keyed()
        && let Some(decision) = ledger.decisions(&[request.id]).await?.remove(&request.id)
    {
        return Ok(match decision?.outcome {
            Outcome::Issued { .. } => Reserved::ReplayIssued(request.id),
            Outcome::Rejected { .. } | Outcome::Moved { .. } => Reserved::ReplayRejected(request.id),
        });
    }
    let mut held = ledger.held_by(&coupon.id, &request.user).await?;
    if held.len() >= usize::from(coupon.per_user) {
        held.sort_unstable_by_key(|held| held.as_ref().map_or(0, |held| held.nth));
        let issued = held
            .iter()
            .skip(held.len().saturating_sub(TOLD_MAX))
            .filter_map(|held| held.as_ref().map_or_else(|unreadable| unreadable.id, |held| Some(held.id)))
            .collect();
        return Ok(Reserved::AtLimit { issued, in_flight: Vec::new() });
    }
    Ok(if coupon.archived { Reserved::Archived } else { Reserved::Ended })
}
