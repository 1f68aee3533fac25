//! Random choices that a seed repeats, and the number of rounds of a test.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A random generator for one test. It prints its seed; `COUPON_TEST_SEED` sets it.
pub fn chance() -> StdRng {
    let given = std::env::var("COUPON_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("COUPON_TEST_SEED={seed} repeats the choices of this test");
    StdRng::seed_from_u64(seed)
}

/// The number of rounds of a test: `usual`, or `COUPON_TEST_ROUNDS`.
pub fn rounds(usual: usize) -> usize {
    std::env::var("COUPON_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("a number"))
}
