//! Failover: a replica takes the primary's place, perhaps without all that the primary acknowledged.

use coupon_system::coupon::stock;
use coupon_system::dev::servers::{RedisOptions, RedisServer};
use coupon_system::ids::PartitionId;
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reassign;
use coupon_system::issuance::reserve::{QueueEntries, reserve};
use coupon_system::issuance::settle::settle;
use coupon_system::queue::{dead, registry};
use coupon_system::recovery::Lease;
use coupon_system::{Failure, queue, recovery};
use rand::RngExt;
use redis::aio::MultiplexedConnection;

use super::storm::{FIRST_WAVE, RequestStorm, TOTAL};
use crate::helpers::{System, accounts_hold, chance, eventually, issued, native, recovered, request};

async fn connection(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a URL");
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&patient).await.expect("it answers")
}

async fn tell(connection: &mut MultiplexedConnection, words: &[&str]) -> String {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(connection).await.expect("it does it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_that_lacks_acknowledged_writes_is_rebuilt_from_the_ledger() {
    let mut chance = chance();
    let mut storm = RequestStorm::start().await;
    storm.work().await;
    let folder = tempfile::tempdir().expect("a folder");
    let port = storm.system.redis.port().to_string();
    let mut options = RedisOptions::new(folder.path().join("replica"));
    options.extra_args = vec!["--replicaof".into(), format!("127.0.0.1 {port}").into()];
    let server = RedisServer::start(options).await.expect("a replica");
    let mut replica = connection(&server).await;
    eventually("the replica follows", async || {
        tell(&mut replica, &["INFO", "replication"]).await.contains("master_link_status:up").then_some(())
    })
    .await;
    issued(&storm.system, &storm.coupon, chance.random_range(1..=FIRST_WAVE / 2)).await;
    // The replica follows a server that it never reaches, so that it receives nothing more.
    tell(&mut replica, &["REPLICAOF", "127.0.0.1", "1"]).await;
    storm.second_wave();
    // The replica has not received some of these.
    issued(&storm.system, &storm.coupon, FIRST_WAVE + chance.random_range(1..=TOTAL / 5)).await;
    let epoch = storm.system.keys().epoch();
    storm.system.redis.kill().await.expect("the primary dies");
    tell(&mut replica, &["REPLICAOF", "NO", "ONE"]).await;
    tell(&mut replica, &["CONFIG", "SET", "port", &port]).await;
    recovered(&storm.system).await;
    assert_ne!(storm.system.keys().epoch(), epoch, "it was rebuilt");
    storm.ends("failed over").await;
}

#[tokio::test]
async fn a_server_promoted_in_place_with_all_its_data_is_refused_by_every_script_until_it_is_verified() {
    let system = System::start().await;
    let coupon = system.coupon("c", 3, 1).await;
    let id = system.accepted("u0", &coupon).await;
    let (keys, entries) = (system.keys(), system.take_entries().await);
    let (partition, entry) = (system.partition(), entries[0].entry.clone());
    let decided = system.decider().decide(&keys, &entries).await.expect("decided").settlements;
    // No process may recover while the test calls the scripts.
    let database = &system.backends.database;
    let lease = Lease::take(database, PartitionId::ONE, "this test", 0).await.expect("a lease");

    let mut promoted = redis::pipe();
    promoted.atomic().cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).ignore();
    promoted.cmd("REPLICAOF").arg(&["NO", "ONE"]).ignore();
    let promoted: redis::RedisResult<()> = promoted.query_async(&mut partition.connection()).await;
    promoted.expect("the same process, the same data, another history");

    let request = request("u1", &coupon);
    let refused = [
        reserve(partition, &[request], 100, QueueEntries::OfOne).await.err(),
        settle(partition, &keys, &decided).await.err(),
        read_in_flight(partition, &[id]).await.err(),
        stock::read(partition, std::slice::from_ref(&coupon)).await.err(),
        reassign::reassign(partition, &keys, &coupon, id, &entry, Some(native(1))).await.err(),
        dead::set_aside(partition, &keys, &entry, id, 1, "no reason").await.err(),
        dead::redrive(partition, id).await.err(),
        registry::beat(partition, &keys, "w", "pid=1").await.err(),
        registry::leave(partition, "w").await.err(),
        queue::claim(partition, &keys, "w", 10).await.err(),
        queue::restore(partition, None, 10).await.err(),
        queue::figures(partition).await.err(),
        recovery::retire(partition, &system.backends.coupons, recovery::KEPT_AFTER_END).await.err(),
    ];
    for (number, refused) in refused.iter().enumerate() {
        assert!(matches!(refused, Some(Failure::Uncertified)), "number {number}: {refused:?}");
    }

    lease.expect("it was free").release().await.expect("it is given back");
    recovered(&system).await;
    assert_eq!(system.keys(), keys, "nothing was lost");
    settle(partition, &keys, &decided).await.expect("it is settled");
    accounts_hold(&system, &coupon).await;
}
