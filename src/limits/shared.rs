//! The buckets in Redis, asked in natural batches.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{LimitScope, Rate};
use crate::Failure;
use crate::ids::tag_in_part;
use crate::redis::{Call, LuaScript, RedisClient, RedisNodes, keys};
use crate::runtime::batch::{Batcher, Bounds};

static TAKE: LuaScript = LuaScript::new(include_str!("take.lua"));

const BOUNDS: Bounds = Bounds { batch: 256, calls: 2, waiting: 4_096, wait: Duration::from_secs(1) };

/// Hash tags of the buckets.
const SHARDS: u16 = 16;

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
///
/// They have hash tags of their own, so that they lie on all nodes of a cluster, and not where the stock of some coupon
/// does.
#[derive(Clone)]
pub(super) struct SharedBuckets {
    /// In a cluster, where all keys of a call must have one slot, one for each hash tag, so that none waits for another's
    /// node; else one for all.
    batchers: Arc<[Batcher<TokenRequest, TokenReply>]>,
}

impl SharedBuckets {
    pub fn start(kind: LimitScope, rate: Rate, nodes: &Arc<RedisNodes>) -> Self {
        let batcher = |shard| {
            let client = nodes.client_of(tag(shard));
            Batcher::start("take tokens", BOUNDS, move |questions: Vec<TokenRequest>| {
                let client = Arc::clone(&client);
                async move { take(&client, kind, rate, &questions).await }
            })
        };
        let count = if nodes.is_cluster() { SHARDS } else { 1 };
        SharedBuckets { batchers: (0..count).map(batcher).collect() }
    }

    pub async fn ask(&self, question: TokenRequest) -> Result<TokenReply, Failure> {
        let shard = usize::from(shard_of(&Sha256::digest(&*question.who)));
        self.batchers[shard % self.batchers.len()].ask(question).await
    }
}

/// The hash tag of some buckets.
fn tag(shard: u16) -> &'static str {
    static TAGS: [OnceLock<String>; SHARDS as usize] = [const { OnceLock::new() }; SHARDS as usize];
    TAGS[usize::from(shard)].get_or_init(|| tag_in_part(&format!("limit{shard}"), shard, SHARDS))
}

/// Which hash tag the bucket of a name has.
fn shard_of(digest: &[u8]) -> u16 {
    u16::from(digest[NAME_BYTES]) % SHARDS
}

/// Asks about a batch: one call of `take.lua`.
async fn take(
    client: &Arc<RedisClient>,
    kind: LimitScope,
    rate: Rate,
    questions: &[TokenRequest],
) -> Result<Vec<Result<TokenReply, Failure>>, Failure> {
    let mut call = Call::default();
    call.arg(rate.per_second).arg(rate.burst);
    for question in questions {
        let digest = Sha256::digest(&*question.who);
        let key = keys::limit(tag(shard_of(&digest)), kind.as_str(), &name(&digest));
        call.key(key).arg(question.debt);
    }
    Ok(take_some(client, &call, questions.len()).await?.into_iter().map(Ok).collect())
}

/// One call of `take.lua`, about so many buckets.
async fn take_some(client: &Arc<RedisClient>, call: &Call, count: usize) -> Result<Vec<TokenReply>, Failure> {
    let mut reply = client.invoke(&TAKE, "take tokens", call).await?;
    (0..count)
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
fn name(digest: &[u8]) -> String {
    use std::fmt::Write;

    digest.iter().take(NAME_BYTES).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
