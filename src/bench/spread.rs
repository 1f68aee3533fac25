//! A figure of several rounds: a machine is never twice the same, so the median counts.

use serde::Serialize;

/// One figure of several rounds: the median, and the extremes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// In the order in which they were measured.
    pub rounds: Vec<f64>,
}

impl Spread {
    /// Of at least one round.
    pub(super) fn of(rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => f64::NAN,
            even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        let first = sorted.first().copied().unwrap_or(f64::NAN);
        Spread { median, min: first, max: sorted.last().copied().unwrap_or(f64::NAN), rounds }
    }

    /// Round by round, this over that: what was slow in both does not count.
    pub(super) fn over(&self, other: &Spread) -> Spread {
        Spread::of(self.rounds.iter().zip(&other.rounds).map(|(one, other)| one / other).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_counts_and_ratios_are_of_one_round() {
        let (odd, even) = (Spread::of(vec![3.0, 1.0, 2.0]), Spread::of(vec![4.0, 1.0, 2.0, 3.0]));
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(even.median, 2.5);
        let ratio = Spread::of(vec![10.0, 100.0, 4.0]).over(&Spread::of(vec![20.0, 200.0, 2.0]));
        assert_eq!((ratio.median, ratio.rounds), (0.5, vec![0.5, 0.5, 2.0]));
    }
}
