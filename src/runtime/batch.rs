//! Natural batching: requests that arrive while a call is in flight share the next call. The batcher adds no
//! delay: it sends a lone request at once. It refuses a request at once if the request would wait too long for
//! its call, so that under overload the accepted requests do not wait for long.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::Failure;

/// The bounds of a [`Batcher`].
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most requests in one call.
    pub batch: usize,
    /// The most calls in flight at once.
    pub calls: usize,
    /// The most requests that wait for a call; one more is refused at once.
    pub waiting: usize,
    /// The longest that a request may wait for its call, as estimated from the duration of earlier calls; one
    /// that would wait longer is refused at once.
    pub wait: Duration,
}

/// Collects requests into calls. Cheap to clone; ends when all of its clones are dropped.
pub(crate) struct Batcher<Q, A> {
    operation: &'static str,
    bounds: Bounds,
    sender: mpsc::Sender<Waiting<Q, A>>,
    pace: Arc<CallTime>,
}

/// The duration of a call in microseconds: a moving average in which each new call counts for an eighth.
#[derive(Default)]
struct CallTime(AtomicU64);

impl CallTime {
    fn took(&self, time: Duration) {
        let (new, known) = (u64::try_from(time.as_micros()).unwrap_or(u64::MAX), self.get());
        // Calls that end together may overwrite each other's value; the result is still an estimate.
        self.0.store(known - known / 8 + new / 8, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a call says of its batch: an answer to each request, in order, or the failure that all of them get.
pub type Answers<A> = Result<Vec<Result<A, Failure>>, Failure>;

type Waiting<Q, A> = (Q, oneshot::Sender<Result<A, Failure>>);

impl<Q, A> Clone for Batcher<Q, A> {
    fn clone(&self) -> Self {
        let Batcher { operation, bounds, sender, pace } = self;
        Batcher { operation, bounds: *bounds, sender: sender.clone(), pace: Arc::clone(pace) }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Starts a batcher whose `call` answers the requests of a batch.
    pub fn start<C, F>(operation: &'static str, bounds: Bounds, call: C) -> Self
    where
        C: Fn(Vec<Q>) -> F + Send + Sync + 'static,
        F: Future<Output = Answers<A>> + Send + 'static,
    {
        let (sender, mut receiver) = mpsc::channel::<Waiting<Q, A>>(bounds.waiting);
        let permits = Arc::new(Semaphore::new(bounds.calls));
        let call = Arc::new(call);
        let pace = Arc::<CallTime>::default();
        let told = Arc::clone(&pace);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(bounds.batch);
            // It takes the permit first, so that the batch holds every request that waits when the call starts.
            while let Ok(permit) = permits.clone().acquire_owned().await {
                let Some(first) = receiver.recv().await else { return };
                batch.push(first);
                // Tasks that are about to ask run first: on a busy machine this makes calls larger and fewer.
                tokio::task::yield_now().await;
                while batch.len() < bounds.batch
                    && let Ok(next) = receiver.try_recv()
                {
                    batch.push(next);
                }
                // A caller that has gone meanwhile needs no answer.
                let (requests, answers): (Vec<_>, Vec<_>) =
                    batch.drain(..).filter(|(_, answer)| !answer.is_closed()).unzip();
                if requests.is_empty() {
                    continue;
                }
                let (call, pace) = (Arc::clone(&call), Arc::clone(&told));
                tokio::spawn(async move {
                    let began = Instant::now();
                    let results = call(requests).await.unwrap_or_else(|failure| {
                        let shared = Arc::new(failure);
                        answers.iter().map(|_| Err(Failure::of_batch(&shared))).collect()
                    });
                    pace.took(began.elapsed());
                    drop(permit);
                    debug_assert_eq!(results.len(), answers.len(), "one answer a request");
                    for (answer, result) in answers.into_iter().zip(results) {
                        // The caller may have gone; what happened is recorded elsewhere.
                        let _ = answer.send(result);
                    }
                });
            }
        });
        Batcher { operation, bounds, sender, pace }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`Failure::Overloaded`] if the batcher refuses it; else what the call answers for it.
    pub async fn ask(&self, request: Q) -> Result<A, Failure> {
        let overloaded = || Failure::Overloaded { operation: self.operation };
        if self.refuses() {
            return Err(overloaded());
        }
        let (sender, receiver) = oneshot::channel();
        self.sender.try_send((request, sender)).map_err(|_| overloaded())?;
        receiver.await.map_err(|_| overloaded())?
    }

    /// Whether a request would be refused now.
    pub fn refuses(&self) -> bool {
        self.wait_expected() > self.bounds.wait || self.sender.capacity() == 0
    }

    /// The estimated duration of the calls that would start before that of a new request.
    fn wait_expected(&self) -> Duration {
        let waiting = self.sender.max_capacity() - self.sender.capacity();
        let calls_before = waiting / self.bounds.batch / self.bounds.calls;
        Duration::from_micros(self.pace.get().saturating_mul(calls_before as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_arrives_during_a_call_goes_into_the_next_one() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (seen, opened) = (sizes.clone(), gate.clone());
        let bounds = Bounds { batch: 8, calls: 1, waiting: 100, wait: LONG };
        let batcher = Batcher::start("count", bounds, move |requests: Vec<u32>| {
            let (seen, opened) = (seen.clone(), opened.clone());
            async move {
                opened.acquire().await.unwrap().forget();
                seen.lock().push(requests.len());
                Ok(requests.into_iter().map(|n| Ok(n + 1)).collect())
            }
        });
        let asked: Vec<_> = (0..20)
            .map(|n| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.ask(n).await.unwrap() })
            })
            .collect();
        gate.add_permits(20);
        for (n, answer) in asked.into_iter().enumerate() {
            assert_eq!(answer.await.unwrap(), n as u32 + 1);
        }
        let sizes = sizes.lock();
        assert_eq!(sizes.iter().sum::<usize>(), 20);
        assert!(sizes.len() < 20, "nothing was batched: {sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 8), "{sizes:?}");
    }

    #[tokio::test]
    async fn the_failure_of_a_call_is_that_of_each_of_its_requests() {
        let bounds = Bounds { batch: 8, calls: 1, waiting: 100, wait: LONG };
        let batcher: Batcher<(), ()> =
            Batcher::start("fail", bounds, |_| std::future::ready(Err(Failure::Uncertified)));
        for answer in futures::future::join_all((0..20).map(|_| batcher.ask(()))).await {
            let failure = answer.expect_err("its call failed");
            assert!(matches!(failure.root(), Failure::Uncertified), "{failure:?}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let bounds = Bounds { batch: 1, calls: 1, waiting: 1, wait: LONG };
        let batcher: Batcher<(), ()> =
            Batcher::start("wait", bounds, |_| async { std::future::pending().await });
        let asking: Vec<_> = (0..10)
            .map(|_| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.ask(()).await })
            })
            .collect();
        let (refused, _, _) = futures::future::select_all(asking).await;
        assert!(matches!(refused.unwrap(), Err(Failure::Overloaded { .. })));
    }

    #[tokio::test]
    async fn a_request_that_would_wait_too_long_is_refused_at_once() {
        let took = Duration::from_millis(50);
        let bounds = Bounds { batch: 2, calls: 1, waiting: 100, wait: Duration::from_millis(20) };
        let batcher: Batcher<(), ()> = Batcher::start("wait", bounds, move |requests: Vec<()>| async move {
            tokio::time::sleep(took).await;
            Ok(requests.into_iter().map(Ok).collect())
        });
        // Nothing is known yet: the queue takes them all.
        let all = |count: usize| futures::future::join_all((0..count).map(|_| batcher.ask(())));
        assert!(all(4).await.iter().all(Result::is_ok));
        // By now a call is known to take long, if not by how much.
        let answers = all(20).await;
        let let_in = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!((2..=6).contains(&let_in), "{let_in} of 20 were let in");
        assert!(
            answers
                .iter()
                .flat_map(|answer| answer.as_ref().err())
                .all(|why| { matches!(why, Failure::Overloaded { .. }) })
        );
    }

    #[tokio::test]
    async fn after_a_long_stall_it_soon_lets_in_as_many_as_before() {
        let bounds = Bounds { batch: 2, calls: 1, waiting: 1_000, wait: Duration::from_millis(20) };
        let batcher: Batcher<(), ()> = Batcher::start("wait", bounds, |requests: Vec<()>| async move {
            Ok(requests.into_iter().map(Ok).collect())
        });
        for _ in 0..20 {
            batcher.pace.took(Duration::from_secs(10));
        }
        let all = async |count: usize| {
            let answers = futures::future::join_all((0..count).map(|_| batcher.ask(()))).await;
            answers.iter().filter(|answer| answer.is_ok()).count()
        };
        assert!(all(20).await < 20, "it is not known yet that it is over");
        // One at a time is always let in, and each call that is short again says so.
        for _ in 0..200 {
            assert_eq!(all(1).await, 1);
        }
        assert_eq!(all(20).await, 20);
    }
}
