//! Who sends what when: every request that is planned before the run, in order.

use std::time::Duration;

use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::arrivals::ArrivalShape;

/// A second click follows the first within these.
const DOUBLE_CLICK_MS: std::ops::Range<f64> = 1.0..50.0;
/// Early birds come in this time before the opening, and not in the last of it, so that clocks need
/// not agree to the millisecond.
pub(super) const EARLY: Duration = Duration::from_secs(2);
const EARLY_UNTIL: Duration = Duration::from_millis(1_800);
/// The first regular arrival comes this much after the opening, for the same reason.
pub(super) const OPENING_MARGIN: Duration = Duration::from_millis(50);

/// How many requests arrive, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadProfile {
    pub shape: ArrivalShape,
    /// Regular arrivals.
    pub arrivals: usize,
    /// From the first arrival to the last.
    pub duration: Duration,
    /// The number of users. With more arrivals than users, each arrives again in turn.
    pub users: usize,
    /// The share of arrivals, 0 to 1, that send the same request again within milliseconds.
    pub double_clicks: f64,
    /// The share of users, 0 to 1, that also come before the opening.
    pub early_birds: f64,
    pub seed: u64,
}

/// Why a user sends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Before the opening.
    Early,
    Regular,
    /// A second click: the same request again.
    Double,
}

/// One planned request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Which user, from 0.
    pub user: u32,
    pub click: RequestKind,
}

/// All planned requests.
#[derive(Debug, Clone)]
pub struct RequestPlan {
    /// When each is due, after the start; in order.
    pub moments: Vec<Duration>,
    pub visits: Vec<PlannedRequest>,
    /// When the coupon opens, after the start.
    pub opening: Duration,
}

impl RequestPlan {
    /// Plans a run. The same numbers give the same plan.
    pub fn new(crowding: &LoadProfile) -> Self {
        let mut rng = StdRng::seed_from_u64(crowding.seed);
        let has_early = crowding.early_birds > 0.0;
        let (opening, first) =
            if has_early { (EARLY, EARLY + OPENING_MARGIN) } else { (Duration::ZERO, Duration::ZERO) };
        let mut planned: Vec<(Duration, PlannedRequest)> = Vec::with_capacity(crowding.arrivals);
        for (number, moment) in
            crowding.shape.schedule(crowding.arrivals, crowding.duration, &mut rng).into_iter().enumerate()
        {
            let user = (number % crowding.users.max(1)) as u32;
            planned.push((first + moment, PlannedRequest { user, click: RequestKind::Regular }));
            if crowding.double_clicks > 0.0 && rng.random::<f64>() < crowding.double_clicks {
                let after = Duration::from_secs_f64(rng.random_range(DOUBLE_CLICK_MS) / 1_000.0);
                planned.push((first + moment + after, PlannedRequest { user, click: RequestKind::Double }));
            }
        }
        if has_early {
            for user in 0..crowding.users.min(crowding.arrivals) as u32 {
                if rng.random::<f64>() < crowding.early_birds {
                    let moment = EARLY_UNTIL.mul_f64(rng.random());
                    planned.push((moment, PlannedRequest { user, click: RequestKind::Early }));
                }
            }
        }
        planned.sort_by_key(|(moment, _)| *moment);
        let (moments, visits) = planned.into_iter().unzip();
        RequestPlan { moments, visits, opening }
    }

    /// The number of requests that are due at `elapsed` after the start.
    pub fn due(&self, elapsed: Duration) -> usize {
        self.moments.partition_point(|moment| *moment <= elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn second_clicks_follow_first_ones_and_early_birds_come_before_the_opening(
            arrivals in 1_usize..500, users in 1_usize..500, double_clicks in 0.0_f64..=1.0,
            early_birds in 0.0_f64..=1.0, seed: u64,
        ) {
            let crowding = LoadProfile {
                shape: ArrivalShape::Poisson, arrivals, users, double_clicks, early_birds, seed,
                duration: Duration::from_secs(3),
            };
            let plan = RequestPlan::new(&crowding);
            prop_assert!(plan.moments.is_sorted());
            prop_assert_eq!(plan.moments.len(), plan.visits.len());
            let mut regular = vec![0_usize; users];
            let mut double = vec![0_usize; users];
            for (moment, visit) in plan.moments.iter().zip(&plan.visits) {
                let user = visit.user as usize;
                match visit.click {
                    RequestKind::Early => prop_assert!(*moment < plan.opening),
                    RequestKind::Regular => { prop_assert!(*moment >= plan.opening); regular[user] += 1; }
                    RequestKind::Double => { double[user] += 1; prop_assert!(double[user] <= regular[user]); }
                }
            }
            prop_assert_eq!(regular.iter().sum::<usize>(), arrivals);
            let (least, most) = (regular.iter().min(), regular.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "in turn");
            if double_clicks == 1.0 { prop_assert_eq!(regular, double); }
        }
    }
}
