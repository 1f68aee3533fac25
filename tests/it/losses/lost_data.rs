//! Redis loses data, or all of it, during a rush: undecided requests may be answered 404, but no unit is issued twice,
//! and every user gets a final answer.

use std::fs;
use std::path::{Path, PathBuf};

use rand::RngExt;

use super::storm::{FIRST_WAVE, RequestStorm, TOTAL};
use crate::helpers::{System, chance, issued, recovered, rounds};

fn data_dir(system: &System) -> PathBuf {
    system.redis.spec().data_dir.clone()
}

fn append_only(system: &System) -> PathBuf {
    data_dir(system).join("appendonlydir")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        fs::copy(file.path(), to.join(file.file_name())).expect("it is copied");
    }
}

/// Stops Redis, copies its append-only files, and starts it again.
async fn copied(system: &mut System) -> PathBuf {
    let copied = data_dir(system).join("older");
    system.redis.stop().await.expect("it stops");
    copy(&append_only(system), &copied);
    system.redis.restart().await.expect("it is back");
    recovered(system).await;
    copied
}

/// Kills Redis, replaces its append-only files with a copy, and starts it again.
async fn put_back(system: &mut System, copied: &Path) {
    system.redis.kill().await.expect("it is killed");
    fs::remove_dir_all(append_only(system)).expect("they are gone");
    fs::rename(copied, append_only(system)).expect("it is in place");
    system.redis.restart().await.expect("it is back");
    recovered(system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_emptied_in_mid_rush_oversells_nothing_and_everybody_gets_a_last_word() {
    let (mut chance, flushes) = (chance(), u32::try_from(rounds(2)).expect("a number"));
    let mut storm = RequestStorm::start().await;
    storm.work().await;
    storm.second_wave();
    let step = TOTAL / (flushes + 1);
    for flush in 0..flushes {
        issued(&storm.system, &storm.coupon, flush * step + chance.random_range(1..=step)).await;
        let before = storm.system.keys().epoch();
        let _: () = storm.system.command(&["FLUSHALL"]).await;
        recovered(&storm.system).await;
        assert_ne!(storm.system.keys().epoch(), before);
    }
    storm.ends("emptied").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_data_since_which_units_were_decided_is_rebuilt() {
    let mut chance = chance();
    let mut storm = RequestStorm::start().await;
    storm.work().await;
    issued(&storm.system, &storm.coupon, chance.random_range(1..=FIRST_WAVE / 2)).await;
    let older = copied(&mut storm.system).await;
    let epoch = storm.system.keys().epoch();
    storm.second_wave();
    // Some of these were accepted after the copy was made.
    issued(&storm.system, &storm.coupon, FIRST_WAVE + chance.random_range(1..=TOTAL / 5)).await;
    put_back(&mut storm.system, &older).await;
    assert_ne!(storm.system.keys().epoch(), epoch, "it was rebuilt");
    storm.ends("older than what was decided").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_data_since_which_nothing_was_decided_is_rebuilt_from_what_it_holds() {
    let mut chance = chance();
    let mut storm = RequestStorm::start().await;
    storm.accepted(chance.random_range(1..=FIRST_WAVE)).await;
    let older = copied(&mut storm.system).await;
    let epoch = storm.system.keys().epoch();
    storm.second_wave();
    storm.accepted(FIRST_WAVE + chance.random_range(1..=TOTAL / 5)).await;
    put_back(&mut storm.system, &older).await;
    assert_ne!(storm.system.keys().epoch(), epoch, "it is from before the last opening");
    storm.work().await;
    let lost = storm.ends("older than what was accepted").await;
    assert!(lost > 0, "what was accepted since the copy is not in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_whose_folder_is_gone_comes_back_empty_and_is_rebuilt() {
    let mut chance = chance();
    let mut storm = RequestStorm::start().await;
    storm.work().await;
    storm.second_wave();
    issued(&storm.system, &storm.coupon, chance.random_range(1..=TOTAL / 2)).await;
    let epoch = storm.system.keys().epoch();
    let folder = data_dir(&storm.system);
    storm.system.redis.kill().await.expect("it is killed");
    fs::remove_dir_all(&folder).expect("it is gone");
    fs::create_dir(&folder).expect("an empty one");
    storm.system.redis.restart().await.expect("it is back");
    recovered(&storm.system).await;
    assert_ne!(storm.system.keys().epoch(), epoch);
    storm.ends("folder gone").await;
}
