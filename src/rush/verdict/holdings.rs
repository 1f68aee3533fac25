//! What users hold, as the service lists it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Deserialize;

use super::is_indeterminate;
use crate::ids::IssuanceId;
use crate::rush::open_loop::Workload;
use crate::rush::run::{OneShotWorkload, RunSettings, ask};
use crate::rush::virtual_users::{LastKnown, VirtualUsers};
use crate::rush::{ExchangeError, RawResponse};

/// What could not be asked is asked again this often.
const ROUNDS_MAX: usize = 4;
const ROUND_AFTER: Duration = Duration::from_secs(1);

/// A unit as `GET /user-coupons/{user}` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListedUnit {
    pub(super) id: IssuanceId,
    pub(super) serial: u32,
}

/// What some users hold of the coupon, as the service lists it.
pub(super) struct HoldingsReader {
    people: Arc<VirtualUsers>,
    /// Who is asked.
    pub(super) wanted: Vec<u32>,
    pub(super) units: Arc<Mutex<HashMap<u32, Vec<ListedUnit>>>>,
}

/// Asks those with a request without an answer, and `users_max` others.
pub(super) async fn holdings(
    settings: &RunSettings,
    people: &Arc<VirtualUsers>,
    users_max: usize,
) -> HoldingsReader {
    let (mut wanted, mut others): (Vec<u32>, Vec<u32>) =
        (0..people.count() as u32).partition(|user| is_indeterminate(people, *user));
    others.shuffle(&mut StdRng::seed_from_u64(settings.seed));
    // Those first who were told that they hold one.
    others.sort_by_key(|user| !matches!(people.person(*user).last_known, LastKnown::Issued { .. }));
    others.retain(|user| people.person(*user).last_known != LastKnown::Nothing);
    wanted.extend(others.into_iter().take(users_max));
    let units = Arc::<Mutex<HashMap<u32, Vec<ListedUnit>>>>::default();
    for round in 0..ROUNDS_MAX {
        let unknown: Vec<u32> =
            wanted.iter().copied().filter(|user| !units.lock().contains_key(user)).collect();
        if unknown.is_empty() {
            break;
        }
        if round > 0 {
            tokio::time::sleep(ROUND_AFTER).await;
        }
        let asking =
            HoldingsReader { people: Arc::clone(people), wanted: unknown, units: Arc::clone(&units) };
        ask(settings, Arc::new(asking)).await;
    }
    HoldingsReader { people: Arc::clone(people), wanted, units }
}

impl OneShotWorkload for HoldingsReader {
    fn people(&self) -> &VirtualUsers {
        &self.people
    }

    fn count(&self) -> usize {
        self.wanted.len()
    }
}

/// A page of units.
#[derive(Deserialize)]
struct UserCouponsPage {
    items: Vec<UserCouponsItem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserCouponsItem {
    id: String,
    coupon_id: String,
    serial: u32,
}

impl Workload for HoldingsReader {
    fn write(&self, number: usize, request: &mut Vec<u8>) {
        let path = format!("/user-coupons/{}?limit=500", self.people.id(self.wanted[number]));
        self.people.target.write("GET", &path, "", b"", request);
    }

    fn answered(
        &self,
        number: usize,
        _: Instant,
        _: Instant,
        answer: Result<RawResponse<'_>, ExchangeError>,
    ) {
        let Ok(RawResponse { status: 200, body, .. }) = answer else { return };
        let Ok(page) = serde_json::from_slice::<UserCouponsPage>(body) else { return };
        let ours = page.items.into_iter().filter(|item| item.coupon_id == self.people.coupon);
        let units =
            ours.filter_map(|item| Some(ListedUnit { id: item.id.parse().ok()?, serial: item.serial }));
        self.units.lock().insert(self.wanted[number], units.collect());
    }

    fn dropped(&self, _: usize) {}
}
