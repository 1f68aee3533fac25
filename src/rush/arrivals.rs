//! When requests are to be sent: decided before the first one is, so that a slow service cannot slow
//! its own load down.

use std::time::Duration;

use clap::ValueEnum;
use rand::RngExt;
use rand::rngs::StdRng;

/// How requests are spread over the duration of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ArrivalShape {
    /// At equal intervals
    Constant,
    /// At a rate that rises steadily from zero to twice the mean
    Ramp,
    /// Half of them in the first tenth of the time, the others at equal intervals
    Spike,
    /// At random, independently of each other (a Poisson process)
    Poisson,
}

/// The share of a spike's arrivals that come in its first [`SPIKE_TIME`].
const SPIKE_SHARE: f64 = 0.5;
const SPIKE_TIME: f64 = 0.1;

impl ArrivalShape {
    /// The moments of `count` arrivals, in order, all before `within`, or all at once if that is zero.
    ///
    /// Poisson arrivals are those of a Poisson process of which is known that it had `count` in that
    /// time: independent and equally likely at every moment.
    pub fn schedule(self, count: usize, within: Duration, rng: &mut StdRng) -> Vec<Duration> {
        let mut shares: Vec<f64> = match self {
            ArrivalShape::Poisson => (0..count).map(|_| rng.random::<f64>()).collect(),
            _ => (0..count).map(|number| self.at((number as f64 + 0.5) / count as f64)).collect(),
        };
        shares.sort_by(f64::total_cmp);
        shares.into_iter().map(|share| within.mul_f64(share)).collect()
    }

    /// The share of the time after which a share of the arrivals has come.
    fn at(self, arrived: f64) -> f64 {
        match self {
            ArrivalShape::Constant | ArrivalShape::Poisson => arrived,
            ArrivalShape::Ramp => arrived.sqrt(),
            ArrivalShape::Spike if arrived < SPIKE_SHARE => SPIKE_TIME * arrived / SPIKE_SHARE,
            ArrivalShape::Spike => {
                SPIKE_TIME + (1.0 - SPIKE_TIME) * (arrived - SPIKE_SHARE) / (1.0 - SPIKE_SHARE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    const SHAPES: [ArrivalShape; 4] =
        [ArrivalShape::Constant, ArrivalShape::Ramp, ArrivalShape::Spike, ArrivalShape::Poisson];

    fn schedule(shape: ArrivalShape, count: usize, within: Duration, seed: u64) -> Vec<Duration> {
        shape.schedule(count, within, &mut StdRng::seed_from_u64(seed))
    }

    /// The share of arrivals before a share of the time.
    fn before(schedule: &[Duration], moment: Duration) -> f64 {
        schedule.partition_point(|at| *at < moment) as f64 / schedule.len() as f64
    }

    proptest! {
        #[test]
        fn all_come_in_order_and_in_time(
            shape in prop::sample::select(&SHAPES[..]),
            count in 0_usize..3_000,
            within_ms in 1_u64..100_000,
            seed: u64,
        ) {
            let within = Duration::from_millis(within_ms);
            let moments = schedule(shape, count, within, seed);
            prop_assert_eq!(moments.len(), count);
            prop_assert!(moments.is_sorted());
            prop_assert!(moments.last().is_none_or(|last| *last < within));
            prop_assert_eq!(&moments, &schedule(shape, count, within, seed), "a seed repeats it");
        }

        #[test]
        fn they_are_spread_as_their_shape_says(
            count in 2_000_usize..5_000, within_ms in 1_000_u64..100_000, share in 0.05_f64..0.95, seed: u64,
        ) {
            let within = Duration::from_millis(within_ms);
            let wanted = |shape| match shape {
                ArrivalShape::Constant | ArrivalShape::Poisson => share,
                ArrivalShape::Ramp => share * share,
                ArrivalShape::Spike if share < 0.1 => share * 5.0,
                ArrivalShape::Spike => 0.5 + (share - 0.1) / 0.9 * 0.5,
            };
            for shape in SHAPES {
                let seen = before(&schedule(shape, count, within, seed), within.mul_f64(share));
                // Five standard deviations of what is random; two arrivals of what is not.
                let off = if shape == ArrivalShape::Poisson { 2.5 / (count as f64).sqrt() } else { 2.0 / count as f64 };
                prop_assert!((seen - wanted(shape)).abs() <= off, "{shape:?}: {seen} by {share}");
            }
        }
    }

    #[test]
    fn the_gaps_of_poisson_arrivals_vary_as_much_as_their_mean_and_constant_ones_not_at_all() {
        let deviation_over_mean = |shape| {
            let moments = schedule(shape, 20_000, Duration::from_secs(20), 7);
            let gaps: Vec<f64> = moments.windows(2).map(|two| (two[1] - two[0]).as_secs_f64()).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((mean - 0.001).abs() < 0.000_02, "{shape:?}: {mean}");
            variance.sqrt() / mean
        };
        assert!((deviation_over_mean(ArrivalShape::Poisson) - 1.0).abs() < 0.05);
        assert!(deviation_over_mean(ArrivalShape::Constant) < 0.001);
    }
}
