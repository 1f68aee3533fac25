//! A rush: many users request one coupon, and a poller of its own follows each accepted request to its
//! end, whatever breaks meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coupon_system::ids::CouponId;
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{Client, System, eventually};

/// Requests under way at once.
const AT_ONCE: usize = 256;
/// The pause between two polls; the service would allow a shorter one.
pub const POLL_EVERY: Duration = Duration::from_millis(200);

/// What became of a rush.
#[derive(Default)]
pub struct RequestTally {
    pub accepted: AtomicU64,
    pub sold_out: AtomicU64,
    /// Requests and polls that users repeated because the answer was 503.
    pub repeated: AtomicU64,
    /// Accepted requests whose polls were answered 404 later, so that users sent new ones.
    pub lost: AtomicU64,
    /// Repeated or new requests whose users held the coupon by then.
    pub already_issued: AtomicU64,
    /// Accepted requests that were rejected in the end.
    pub rejected: AtomicU64,
}

impl RequestTally {
    fn count(figure: &AtomicU64) {
        figure.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a 404 for an accepted request means in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFound {
    /// The system breaks its promise.
    IsAFault,
    /// Redis lost what it had acknowledged, and the user tries again.
    IsTheTruth,
}

/// What a request came to.
enum RequestOutcome {
    Accepted(String),
    /// The user holds the coupon: an earlier request was accepted, and its answer was lost.
    Holds(String),
    SoldOut,
}

/// How following an accepted request ended.
enum PollOutcome {
    Issued(u64),
    Refused,
    NotFound,
}

/// Lets every user request the coupon `c`, and a poller follow each accepted request to its end.
/// Returns the serials that were issued.
pub fn rush(
    system: &System,
    users: Vec<String>,
    tally: &Arc<RequestTally>,
    not_found: NotFound,
) -> JoinHandle<Vec<u64>> {
    rush_from(&system.client, users, tally, not_found)
}

/// The same, by a client of the system.
pub fn rush_from(
    client: &Client,
    users: Vec<String>,
    tally: &Arc<RequestTally>,
    not_found: NotFound,
) -> JoinHandle<Vec<u64>> {
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = users
        .into_iter()
        .map(|user| {
            let (client, gate, tally) = (client.clone(), Arc::clone(&gate), Arc::clone(tally));
            tokio::spawn(async move {
                loop {
                    let requested = {
                        let _turn = gate.acquire().await.expect("it is open");
                        request(&client, &user, &tally, not_found).await
                    };
                    let id = match requested {
                        RequestOutcome::Accepted(id) => id,
                        RequestOutcome::Holds(link) => {
                            return client.get(&link).await.body["serial"].as_u64();
                        }
                        RequestOutcome::SoldOut => return None,
                    };
                    match follow(&client, &id, &tally, not_found).await {
                        PollOutcome::Issued(serial) => return Some(serial),
                        PollOutcome::Refused => return None,
                        PollOutcome::NotFound => RequestTally::count(&tally.lost),
                    }
                }
            })
        })
        .collect();
    tokio::spawn(async move {
        let ended = join_all(tasks).await;
        ended.into_iter().filter_map(|ended| ended.expect("no panic")).collect()
    })
}

async fn request(client: &Client, user: &str, tally: &RequestTally, not_found: NotFound) -> RequestOutcome {
    let mut may_hold = not_found == NotFound::IsTheTruth;
    loop {
        let answer = client.issue(user, "c", None).await;
        match (answer.status, answer.code()) {
            (202, _) => {
                RequestTally::count(&tally.accepted);
                return RequestOutcome::Accepted(answer.id());
            }
            (409, "sold-out") => {
                RequestTally::count(&tally.sold_out);
                return RequestOutcome::SoldOut;
            }
            (409, "already-issued") if may_hold => {
                RequestTally::count(&tally.already_issued);
                return RequestOutcome::Holds(
                    answer.body["userCoupons"][0].as_str().expect("a link").to_owned(),
                );
            }
            (503, _) => {
                RequestTally::count(&tally.repeated);
                // The request may have been accepted all the same.
                may_hold = true;
                tokio::time::sleep(POLL_EVERY).await;
            }
            _ => panic!("{user}: {answer:?}"),
        }
    }
}

async fn follow(client: &Client, id: &str, tally: &RequestTally, not_found: NotFound) -> PollOutcome {
    loop {
        let answer = client.get(&format!("/issuances/{id}")).await;
        match (answer.status, answer.state()) {
            (200, "issued") => return PollOutcome::Issued(answer.body["serial"].as_u64().expect("a serial")),
            (200, "queued") => tokio::time::sleep(POLL_EVERY).await,
            (503, _) => {
                RequestTally::count(&tally.repeated);
                tokio::time::sleep(POLL_EVERY).await;
            }
            (200, "rejected") if not_found == NotFound::IsTheTruth => {
                RequestTally::count(&tally.rejected);
                return PollOutcome::Refused;
            }
            (404, _) if not_found == NotFound::IsTheTruth => return PollOutcome::NotFound,
            _ => panic!("{id}: {answer:?}"),
        }
    }
}

/// Waits until the ledger has `count` issued units of the coupon, whether Redis runs or not.
pub async fn issued(system: &System, coupon: &CouponId, count: u32) {
    eventually("so many are issued", async || {
        let issued = system.backends.ledger.issued_count(coupon).await;
        issued.is_ok_and(|issued| issued >= count.into()).then_some(())
    })
    .await;
}
