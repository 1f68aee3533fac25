//! The buckets in Redis, asked in natural batches.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{LimitScope, Rate};
use crate::Failure;
use crate::redis::{Call, LuaScript, Partition, keys};
use crate::runtime::batch::{Batcher, Bounds};

static TAKE: LuaScript = LuaScript::new(include_str!("take.lua"));

const BOUNDS: Bounds = Bounds { batch: 256, calls: 2, waiting: 4_096, wait: Duration::from_secs(1) };

/// How much of the hash of a name is in its key.
const NAME_BYTES: usize = 16;

/// Takes one token, after those that were had unasked.
pub(super) struct TokenRequest {
    pub who: Box<str>,
    pub debt: u32,
}

/// What the bucket said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenReply {
    Admitted {
        /// Until the bucket is half full again; until then ask each time.
        ask_for: Duration,
        /// Tokens left in the bucket.
        left: u32,
    },
    Limited {
        /// Until there is a token.
        retry_after: Duration,
    },
}

/// The buckets in Redis that all processes share. Cheap to clone.
#[derive(Clone)]
pub(super) struct SharedBuckets {
    batcher: Batcher<TokenRequest, TokenReply>,
}

impl SharedBuckets {
    pub fn start(kind: LimitScope, rate: Rate, partition: Arc<Partition>) -> Self {
        let batcher = Batcher::start("take tokens", BOUNDS, move |questions: Vec<TokenRequest>| {
            let partition = Arc::clone(&partition);
            async move { Ok(take(&partition, kind, rate, &questions).await?.into_iter().map(Ok).collect()) }
        });
        SharedBuckets { batcher }
    }

    pub async fn ask(&self, question: TokenRequest) -> Result<TokenReply, Failure> {
        self.batcher.ask(question).await
    }
}

/// Asks about a batch: one call of `take.lua`.
async fn take(
    partition: &Partition,
    kind: LimitScope,
    rate: Rate,
    questions: &[TokenRequest],
) -> Result<Vec<TokenReply>, Failure> {
    let mut call = Call::default();
    call.arg(rate.per_second).arg(rate.burst);
    for question in questions {
        call.key(keys::limit(partition.id(), kind.as_str(), &name(&question.who))).arg(question.debt);
    }
    let mut reply = partition.invoke(&TAKE, "take tokens", &call).await?;
    questions
        .iter()
        .map(|_| {
            let (retry_ms, half_ms, left) = (reply.number()?, reply.number()?, reply.number()?);
            Ok(match retry_ms {
                0 => TokenReply::Admitted {
                    ask_for: Duration::from_millis(half_ms),
                    left: u32::try_from(left).unwrap_or(u32::MAX),
                },
                _ => TokenReply::Limited { retry_after: Duration::from_millis(retry_ms) },
            })
        })
        .collect()
}

/// A name of fixed length that says nothing of the person.
fn name(who: &str) -> String {
    use std::fmt::Write;

    Sha256::digest(who).iter().take(NAME_BYTES).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
