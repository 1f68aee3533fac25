//! Work in the background: audits, searches, cleaning up. It keeps to a small share of the time, however much there
//! is to do, and makes way while callers are turned away.
//!
//! All such work is calls to Redis and MongoDB. Each of them goes through [`paced`], which charges it to the work that
//! it is part of, and lets that work rest before its next call. A call of anything else passes through unchanged.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Work in the background takes one part in this many of the time: 2 %.
const PARTS: u32 = 50;
/// The longest time that it works at one go, before it begins to rest.
const CREDIT_MAX: Duration = Duration::from_millis(200);
/// How often it checks whether callers are still turned away, and how long a piece of work waits for that in all.
const HELD_UP_CHECK: Duration = Duration::from_millis(200);
const HELD_UP_MAX: Duration = Duration::from_secs(60);

tokio::task_local! {
    /// `None` for what must not rest though it belongs to work in the background.
    static WORK: Option<Work>;
}

/// Says whether callers are turned away now.
pub type IsBusy = Arc<dyn Fn() -> bool + Send + Sync>;

/// For a process that turns nobody away.
pub fn never_busy() -> IsBusy {
    Arc::new(|| false)
}

struct Work {
    is_busy: IsBusy,
    account: Mutex<Account>,
}

/// The time that the work may still take.
struct Account {
    credit: Duration,
    /// What it took beyond its credit.
    debt: Duration,
    /// Up to when it was given credit.
    at: Instant,
    /// How long it may still wait for callers who are turned away.
    patience: Duration,
}

/// Does `work` in the background of a process that says whether it `is_busy`.
pub(crate) async fn in_background<T>(is_busy: IsBusy, work: impl Future<Output = T>) -> T {
    WORK.scope(Some(Work { is_busy, account: Mutex::new(Account::new(Instant::now())) }), work).await
}

/// Does `work` at once, whatever it belongs to: others wait for it.
pub(crate) async fn at_once<T>(work: impl Future<Output = T>) -> T {
    WORK.scope(None, work).await
}

/// Makes a call, after a rest if it belongs to work in the background. At most `charged_max` of its time is charged:
/// a call that is known to be short and took longer waited for the calls of others.
pub(crate) async fn paced<T>(charged_max: Duration, call: impl Future<Output = T>) -> T {
    if of_work(|_| ()).is_none() {
        return call.await;
    }
    rest().await;
    let began = Instant::now();
    let done = call.await;
    of_work(|work| work.account.lock().charge(began.elapsed().min(charged_max)));
    done
}

/// What `read` says of the work in the background that this call belongs to, if it does.
fn of_work<T>(read: impl FnOnce(&Work) -> T) -> Option<T> {
    WORK.try_with(|work| work.as_ref().map(read)).ok().flatten()
}

/// Rests until nothing is owed and nobody is turned away.
async fn rest() {
    let owed = of_work(|work| work.account.lock().owed(Instant::now())).unwrap_or_default();
    if !owed.is_zero() {
        tokio::time::sleep(owed).await;
    }
    while of_work(|work| (work.is_busy)() && work.account.lock().waits_on()).unwrap_or(false) {
        tokio::time::sleep(HELD_UP_CHECK).await;
    }
}

impl Account {
    fn new(at: Instant) -> Self {
        Account { credit: CREDIT_MAX, debt: Duration::ZERO, at, patience: HELD_UP_MAX }
    }

    /// Whether the work waits a little longer for callers who are turned away.
    fn waits_on(&mut self) -> bool {
        let waits = !self.patience.is_zero();
        self.patience = self.patience.saturating_sub(HELD_UP_CHECK);
        waits
    }

    fn charge(&mut self, worked: Duration) {
        self.debt += worked.saturating_sub(self.credit);
        self.credit = self.credit.saturating_sub(worked);
    }

    /// How long the work must rest from now on before it may go on.
    fn owed(&mut self, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.at) / PARTS;
        self.at = now;
        self.credit = (self.credit + earned.saturating_sub(self.debt)).min(CREDIT_MAX);
        self.debt = self.debt.saturating_sub(earned);
        self.debt * PARTS
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_worked_beyond_the_credit_is_rested_for_fifty_times_as_long() {
        let began = Instant::now();
        let mut account = Account::new(began);
        account.charge(CREDIT_MAX);
        assert_eq!(account.owed(began), Duration::ZERO, "that much may be worked at one go");
        account.charge(10 * MS);
        assert_eq!(account.owed(began), 500 * MS);
        assert_eq!(account.owed(began + 200 * MS), 300 * MS);
        assert_eq!(account.owed(began + 500 * MS), Duration::ZERO);
        account.charge(2 * MS);
        assert_eq!(account.owed(began + 550 * MS), 50 * MS, "1 ms of credit was earned since");
        account.owed(began + Duration::from_secs(3_600));
        account.charge(CREDIT_MAX + MS);
        assert_eq!(account.owed(began + Duration::from_secs(3_600)), 50 * MS, "credit has a bound");
    }

    #[tokio::test(start_paused = true)]
    async fn only_calls_in_the_background_rest_and_no_call_is_charged_more_than_it_may_be() {
        let began = tokio::time::Instant::now();
        let call = || async { std::thread::sleep(3 * MS) };
        for _ in 0..10 {
            paced(MS, call()).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        in_background(never_busy(), async {
            of_work(|work| work.account.lock().credit = Duration::ZERO);
            paced(MS, call()).await;
            at_once(paced(MS, call())).await;
            paced(MS, call()).await;
        })
        .await;
        // Real time earns a little while it passes.
        let rested = began.elapsed();
        assert!(rested > 40 * MS && rested <= 50 * MS, "{rested:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_while_callers_are_turned_away_but_not_for_ever() {
        let busy = Arc::new(AtomicBool::new(true));
        let is_busy: IsBusy = {
            let busy = Arc::clone(&busy);
            Arc::new(move || busy.load(Ordering::Relaxed))
        };
        let began = tokio::time::Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            busy.store(false, Ordering::Relaxed);
        });
        in_background(is_busy, paced(MS, async {})).await;
        assert!((4..=6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        let began = tokio::time::Instant::now();
        in_background(Arc::new(|| true), async {
            for _ in 0..10 {
                paced(MS, async {}).await;
            }
        })
        .await;
        assert_eq!(began.elapsed(), HELD_UP_MAX, "in all");
    }
}
