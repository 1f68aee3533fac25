//! What is promised when Redis loses something: killed, emptied, put back to an older state, failed over;
//! with recoverers, workers and API processes that die or sleep meanwhile.
//!
//! Each test prints the seed of its random choices; `COUPON_TEST_SEED` repeats them, and
//! `COUPON_TEST_ROUNDS` says how often the long ones go round (`COUPON_TEST_ROUNDS=100 cargo test --test it
//! -- losses::kills`).

mod kills;
