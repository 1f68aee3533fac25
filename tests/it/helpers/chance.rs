//! Random choices that can be repeated, and how long a test goes on.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Chance for one test. It prints its seed, and `COUPON_TEST_SEED` gives it.
pub fn chance() -> StdRng {
    let given = std::env::var("COUPON_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("COUPON_TEST_SEED={seed} repeats the choices of this test");
    StdRng::seed_from_u64(seed)
}

/// How many rounds a test goes: `usual`, or `COUPON_TEST_ROUNDS`.
pub fn rounds(usual: usize) -> usize {
    std::env::var("COUPON_TEST_ROUNDS").map_or(usual, |rounds| rounds.parse().expect("a number"))
}
