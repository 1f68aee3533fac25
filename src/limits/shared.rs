//! The buckets in Redis, asked in natural batches.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::{LimitScope, Rate};
use crate::Failure;
use crate::ids::tag_in_part;
use crate::redis::{Call, LuaScript, RedisClient, RedisNodes, keys};
use crate::runtime::batch::{Batcher, Bounds};

static TAKE: LuaScript = LuaScript::new(include_str!("take.lua"));

const BOUNDS: Bounds = Bounds { batch: 256, calls: 2, waiting: 4_096, wait: Duration::from_secs(1) };

/// How long the Redis of some buckets may take.
const SHARD_MAX: Duration = Duration::from_millis(500);

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
    batcher: Batcher<TokenRequest, TokenReply>,
}

/// The buckets with one hash tag.
struct Shard {
    tag: String,
    client: Arc<RedisClient>,
}

impl SharedBuckets {
    pub fn start(kind: LimitScope, rate: Rate, nodes: &Arc<RedisNodes>) -> Self {
        let shard = |number| {
            let tag = tag_in_part(&format!("limit{number}"), number, SHARDS);
            Shard { client: nodes.client_of(&tag), tag }
        };
        let shards: Arc<[Shard]> = (0..SHARDS).map(shard).collect();
        let nodes = Arc::clone(nodes);
        let batcher = Batcher::start("take tokens", BOUNDS, move |questions: Vec<TokenRequest>| {
            let (shards, nodes) = (Arc::clone(&shards), Arc::clone(&nodes));
            async move { take(&shards, nodes.is_cluster(), kind, rate, &questions).await }
        });
        SharedBuckets { batcher }
    }

    pub async fn ask(&self, question: TokenRequest) -> Result<TokenReply, Failure> {
        self.batcher.ask(question).await
    }
}

/// Asks about a batch: one call of `take.lua`; in a cluster, where all keys of a call must have one slot, one for each
/// hash tag.
async fn take(
    shards: &[Shard],
    is_cluster: bool,
    kind: LimitScope,
    rate: Rate,
    questions: &[TokenRequest],
) -> Result<Vec<Result<TokenReply, Failure>>, Failure> {
    let (mut calls, mut places): (Vec<Call>, Vec<Vec<usize>>) = Default::default();
    let count = if is_cluster { shards.len() } else { 1 };
    for _ in 0..count {
        let mut call = Call::default();
        call.arg(rate.per_second).arg(rate.burst);
        calls.push(call);
        places.push(Vec::new());
    }
    for (place, question) in questions.iter().enumerate() {
        let digest = Sha256::digest(&*question.who);
        let shard = usize::from(digest[NAME_BYTES]) % shards.len();
        let key = keys::limit(&shards[shard].tag, kind.as_str(), &name(&digest));
        calls[shard % count].key(key).arg(question.debt);
        places[shard % count].push(place);
    }
    let asked = calls.iter().zip(&places).zip(shards).filter(|((_, places), _)| !places.is_empty()).map(
        async |((call, places), shard)| {
            let asked = take_some(&shard.client, call, places.len());
            // One node that hangs must not keep the answers of the others.
            let answered = timeout(SHARD_MAX, asked).await;
            let answered = answered.unwrap_or(Err(Failure::Overloaded { operation: "take tokens" }));
            (places, answered.map_err(Arc::new))
        },
    );
    let mut replies: Vec<Option<Result<TokenReply, Failure>>> = questions.iter().map(|_| None).collect();
    for (places, answered) in join_all(asked).await {
        for (number, place) in places.iter().enumerate() {
            let of_one = answered.as_ref().map(|answers| answers[number]).map_err(Failure::of_batch);
            replies[*place] = Some(of_one);
        }
    }
    Ok(replies.into_iter().flatten().collect())
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
