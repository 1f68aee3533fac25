//! Natural batching: what arrives while the previous call is in flight goes into the next one. No
//! delay is added: a lone request is sent at once.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::Failure;

/// The bounds of a [`Batcher`].
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests in one call.
    pub batch: usize,
    /// Calls in flight at once.
    pub calls: usize,
    /// Requests waiting for a call; one more is refused at once.
    pub waiting: usize,
}

/// Collects requests into calls. Cheap to clone; ends when all of its clones are dropped.
pub struct Batcher<Q, A> {
    operation: &'static str,
    sender: mpsc::Sender<Waiting<Q, A>>,
}

type Waiting<Q, A> = (Q, oneshot::Sender<Result<A, Failure>>);

impl<Q, A> Clone for Batcher<Q, A> {
    fn clone(&self) -> Self {
        Batcher { operation: self.operation, sender: self.sender.clone() }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Starts a batcher whose `call` answers each request of a batch, in order.
    pub fn start<C, F>(operation: &'static str, bounds: Bounds, call: C) -> Self
    where
        C: Fn(Vec<Q>) -> F + Send + Sync + 'static,
        F: Future<Output = Vec<Result<A, Failure>>> + Send + 'static,
    {
        let (sender, mut receiver) = mpsc::channel::<Waiting<Q, A>>(bounds.waiting);
        let permits = Arc::new(Semaphore::new(bounds.calls));
        let call = Arc::new(call);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(bounds.batch);
            // The permit comes first: the batch is whatever is waiting once a call may be made.
            while let Ok(permit) = permits.clone().acquire_owned().await {
                if receiver.recv_many(&mut batch, bounds.batch).await == 0 {
                    return;
                }
                // Who has gone meanwhile needs no answer.
                let (requests, answers): (Vec<_>, Vec<_>) =
                    batch.drain(..).filter(|(_, answer)| !answer.is_closed()).unzip();
                if requests.is_empty() {
                    continue;
                }
                let call = Arc::clone(&call);
                tokio::spawn(async move {
                    let results = call(requests).await;
                    drop(permit);
                    debug_assert_eq!(results.len(), answers.len(), "one answer a request");
                    for (answer, result) in answers.into_iter().zip(results) {
                        // Whoever asked may have gone; what happened is recorded elsewhere.
                        let _ = answer.send(result);
                    }
                });
            }
        });
        Batcher { operation, sender }
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&self, request: Q) -> Result<A, Failure> {
        let (sender, receiver) = oneshot::channel();
        self.sender
            .try_send((request, sender))
            .map_err(|_| Failure::Overloaded { operation: self.operation })?;
        receiver.await.map_err(|_| Failure::Overloaded { operation: self.operation })?
    }
}

/// Answers every request of a batch with the same failure.
pub(crate) fn all_failed<A>(count: usize, failure: Failure) -> Vec<Result<A, Failure>> {
    let shared = Arc::new(failure);
    (0..count).map(|_| Err(Failure::of_batch(&shared))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn what_arrives_during_a_call_goes_into_the_next_one() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let gate = Arc::new(Semaphore::new(0));
        let (seen, opened) = (sizes.clone(), gate.clone());
        let bounds = Bounds { batch: 8, calls: 1, waiting: 100 };
        let batcher = Batcher::start("count", bounds, move |requests: Vec<u32>| {
            let (seen, opened) = (seen.clone(), opened.clone());
            async move {
                opened.acquire().await.unwrap().forget();
                seen.lock().unwrap().push(requests.len());
                requests.into_iter().map(|n| Ok(n + 1)).collect()
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
        let sizes = sizes.lock().unwrap();
        assert_eq!(sizes.iter().sum::<usize>(), 20);
        assert!(sizes.len() < 20, "nothing was batched: {sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 8), "{sizes:?}");
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let bounds = Bounds { batch: 1, calls: 1, waiting: 1 };
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
}
