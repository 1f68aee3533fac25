//! What users hold, as the service lists it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Deserialize;

use super::is_indeterminate;
use crate::ids::IssuanceId;
use crate::rush::live::lock;
use crate::rush::open_loop::Crowd;
use crate::rush::people::{People, Told};
use crate::rush::run::{Asks, Settings, ask};
use crate::rush::{Answer, Fault};

/// What could not be asked is asked again this often.
const ROUNDS_MAX: usize = 4;
const ROUND_AFTER: Duration = Duration::from_secs(1);

/// A unit as `GET /user-coupons/{user}` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) id: IssuanceId,
    pub(super) serial: u32,
}

/// What some users hold of the coupon, as the service lists it.
pub(super) struct Holdings {
    people: Arc<People>,
    /// Who is asked.
    pub(super) wanted: Vec<u32>,
    pub(super) units: Arc<Mutex<HashMap<u32, Vec<Unit>>>>,
}

/// Asks those with a request without an answer, and `users_max` others.
pub(super) async fn holdings(settings: &Settings, people: &Arc<People>, users_max: usize) -> Holdings {
    let (mut wanted, mut others): (Vec<u32>, Vec<u32>) =
        (0..people.count() as u32).partition(|user| is_indeterminate(people, *user));
    others.shuffle(&mut StdRng::seed_from_u64(settings.seed));
    // Those first who were told that they hold one.
    others.sort_by_key(|user| !matches!(people.person(*user).told, Told::Issued { .. }));
    others.retain(|user| people.person(*user).told != Told::Nothing);
    wanted.extend(others.into_iter().take(users_max));
    let units = Arc::<Mutex<HashMap<u32, Vec<Unit>>>>::default();
    for round in 0..ROUNDS_MAX {
        let unknown: Vec<u32> =
            wanted.iter().copied().filter(|user| !lock(&units).contains_key(user)).collect();
        if unknown.is_empty() {
            break;
        }
        if round > 0 {
            tokio::time::sleep(ROUND_AFTER).await;
        }
        let asking = Holdings { people: Arc::clone(people), wanted: unknown, units: Arc::clone(&units) };
        ask(settings, Arc::new(asking)).await;
    }
    Holdings { people: Arc::clone(people), wanted, units }
}

impl Asks for Holdings {
    fn people(&self) -> &People {
        &self.people
    }

    fn count(&self) -> usize {
        self.wanted.len()
    }
}

/// A page of units.
#[derive(Deserialize)]
struct Page {
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: String,
    coupon_id: String,
    serial: u32,
}

impl Crowd for Holdings {
    fn write(&self, number: usize, request: &mut Vec<u8>) {
        let path = format!("/user-coupons/{}?limit=500", self.people.id(self.wanted[number]));
        self.people.target.write("GET", &path, "", b"", request);
    }

    fn answered(&self, number: usize, _: Instant, _: Instant, answer: Result<Answer<'_>, Fault>) {
        let Ok(Answer { status: 200, body, .. }) = answer else { return };
        let Ok(page) = serde_json::from_slice::<Page>(body) else { return };
        let ours = page.items.into_iter().filter(|item| item.coupon_id == self.people.coupon);
        let units = ours.filter_map(|item| Some(Unit { id: item.id.parse().ok()?, serial: item.serial }));
        lock(&self.units).insert(self.wanted[number], units.collect());
    }

    fn dropped(&self, _: usize) {}
}
