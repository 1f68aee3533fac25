//! `--redis-acknowledged-by`: nothing is promised that replicas do not have.

use super::{replica_of, tell};
use crate::helpers::{System, accounts_hold, eventually};

#[tokio::test]
async fn a_request_is_accepted_only_once_replicas_have_it_and_so_is_its_replay() {
    let system = System::builder().flags(&["--redis-acknowledged-by", "1"]).start().await;
    let coupon = system.coupon("c", 5, 1).await;
    let users = system.users("u", 2).await;
    let folder = tempfile::tempdir().expect("a folder");
    let refused = system.client.issue(&users[0], "c", None).await;
    assert_eq!((refused.status, refused.header("retry-after").is_empty()), (503, false), "{refused:?}");

    let mut replica = replica_of(&system.redis, &folder).await;
    let replayed = system.client.issue(&users[0], "c", None).await;
    assert_eq!((replayed.status, replayed.is_replay()), (202, true), "{replayed:?}");

    replica.pause().await.expect("it freezes");
    let refused = system.client.issue(&users[1], "c", None).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    // A connection that has written nothing yet, as that of another process.
    let _: u64 = tell(&system.redis, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    for _ in 0..3 {
        let refused = system.client.issue(&users[1], "c", None).await;
        assert_eq!(refused.status, 503, "its replay is no more certain: {refused:?}");
    }
    replica.resume().expect("it wakes");
    eventually("the replica acknowledges", async || {
        let replayed = system.client.issue(&users[1], "c", None).await;
        (replayed.status == 202 && replayed.is_replay()).then_some(())
    })
    .await;
    system.drain().await;
    assert_eq!(accounts_hold(&system, &coupon).await.issued, 2);
}
