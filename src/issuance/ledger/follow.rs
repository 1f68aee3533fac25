//! Follows decisions as they are made, by a MongoDB change stream of the ledger's inserts. Several workers insert at
//! the same time and an insert may land late, so a reader that goes on in an order of the documents would miss some;
//! one that goes on in the order in which a majority took them does not.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mongodb::Collection;
use mongodb::bson::{RawDocumentBuf, deserialize_from_bson, doc, serialize_to_bson};
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::{ChangeStreamEvent, OperationType, ResumeToken};
use mongodb::error::ErrorKind;
use tokio::sync::OwnedSemaphorePermit;

use super::record::{MOVED, decision_of};
use super::{IssuanceId, Ledger};
use crate::failure::Unreadable;
use crate::ids::PartitionId;
use crate::issuance::Decision;
use crate::runtime::damage::damaged;
use crate::{Failure, mongo};

/// How long MongoDB waits for the next decision before it answers that there is none now. A reader that wants to wait
/// longer asks again; one that gets decisions gets those of this much longer with them.
const AWAIT_MAX: Duration = Duration::from_millis(200);
/// Where decisions keep coming, a read ends after this.
const READ_MAX: Duration = Duration::from_secs(2);
/// Bytes of a place that a client may give; MongoDB's have about a hundred.
const PLACE_MAX_BYTES: usize = 512;

/// A place between two decisions, as MongoDB names it. Text that fits into a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowPosition(Vec<u8>);

/// A decision, and the place after it.
#[derive(Debug)]
pub struct FollowedDecision {
    pub after: FollowPosition,
    pub what: FollowedRecord,
}

/// An inserted decision.
#[derive(Debug)]
pub enum FollowedRecord {
    Decided(Decision),
    /// It must not end the following, nor be left out unnoticed.
    Unreadable(Unreadable),
}

/// The result of an attempt to follow.
pub enum FollowStart {
    Following(Follower),
    /// MongoDB does not remember this place any more, or never knew it.
    Gone,
    /// It is no place of MongoDB's.
    NotAPlace,
}

/// The result of a read.
pub enum FollowRead {
    /// In order; none if none came in time.
    Decisions(Vec<FollowedDecision>),
    /// The place was forgotten meanwhile, or the ledger dropped.
    Gone,
}

/// A reader that follows the decisions. Dropping it closes MongoDB's cursor.
pub struct Follower {
    stream: ChangeStream<ChangeStreamEvent<RawDocumentBuf>>,
    /// Released with the cursor, and not before, however early the client leaves.
    _seat: OwnedSemaphorePermit,
}

impl Ledger {
    /// Follows the decisions after a place, or those from now on. The follower holds `seat` as long as it keeps MongoDB
    /// busy.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn follow(
        &self,
        after: Option<&FollowPosition>,
        seat: OwnedSemaphorePermit,
    ) -> Result<FollowStart, Failure> {
        let records = self.records.clone_with_type::<RawDocumentBuf>();
        let token = after.map(FollowPosition::token).transpose()?;
        let started = mongo::run("follow the ledger", async move {
            match open(&records, token.clone()).await {
                Ok(stream) => Ok(FollowStart::Following(Follower { stream, _seat: seat })),
                Err(error) if is_gone(&error) => Ok(FollowStart::Gone),
                // MongoDB has dozens of errors for a token that it cannot use. The token is to blame if there is
                // no error without it, and one again with it.
                Err(error) => match token.filter(|_| is_refusal(&error)) {
                    Some(token) if open(&records, None).await.is_ok() => {
                        // Without an error now, MongoDB had another trouble at first.
                        match open(&records, Some(token)).await {
                            Ok(stream) => Ok(FollowStart::Following(Follower { stream, _seat: seat })),
                            Err(again) if is_gone(&again) => Ok(FollowStart::Gone),
                            Err(again) if is_refusal(&again) => Ok(FollowStart::NotAPlace),
                            Err(again) => Err(again),
                        }
                    }
                    _ => Err(error),
                },
            }
        });
        let started = started.await?;
        if after.is_none() && matches!(started, FollowStart::Following(_)) {
            self.catch_up().await?;
        }
        Ok(started)
    }

    /// Waits until a majority has all that this primary had before: majority reads from then on have every decision
    /// from before a place that was just taken. Any linearizable read does that.
    async fn catch_up(&self) -> Result<(), Failure> {
        self.decision_linearizable(IssuanceId::generate(PartitionId::ONE)).await.map(|_| ())
    }
}

async fn open(
    records: &Collection<RawDocumentBuf>,
    after: Option<ResumeToken>,
) -> mongodb::error::Result<ChangeStream<ChangeStreamEvent<RawDocumentBuf>>> {
    // A unit that moved is nobody's outcome, nor is a move that was rejected: `=` begins no user's id.
    let inserts = doc! {"$match": {
        "operationType": "insert",
        "fullDocument.outcome": {"$ne": MOVED},
        "fullDocument.userId": {"$not": {"$regex": "^="}},
    }};
    records.watch().pipeline([inserts]).max_await_time(AWAIT_MAX).resume_after(after).await
}

impl Follower {
    /// The place after the last decision that was read; `None` if MongoDB never named one.
    pub fn place(&self) -> Option<FollowPosition> {
        FollowPosition::of(&self.stream.resume_token()?)
    }

    /// Reads at most `limit` decisions: as soon as one comes, it and those that come with it; none if none comes within
    /// 200 ms.
    ///
    /// # Errors
    ///
    /// If MongoDB fails.
    pub async fn read(mut self, limit: usize) -> Result<(Self, FollowRead), Failure> {
        mongo::run("follow the ledger", async move {
            let started = Instant::now();
            let mut read = Vec::new();
            while read.len() < limit && started.elapsed() < READ_MAX {
                match self.stream.next_if_any().await {
                    Ok(Some(event)) => match followed(event) {
                        Some(followed) => read.push(followed),
                        None => return Ok((self, FollowRead::Gone)),
                    },
                    Ok(None) if self.stream.is_alive() => break,
                    Ok(None) => return Ok((self, FollowRead::Gone)),
                    // What was read stands; the next read meets the error again.
                    Err(_) if !read.is_empty() => break,
                    Err(error) if is_gone(&error) => return Ok((self, FollowRead::Gone)),
                    Err(error) => return Err(error),
                }
            }
            Ok((self, FollowRead::Decisions(read)))
        })
        .await
    }
}

/// A decision out of an event; `None` where the ledger itself went away.
fn followed(event: ChangeStreamEvent<RawDocumentBuf>) -> Option<FollowedDecision> {
    let after = FollowPosition::of(&event.id)?;
    let (OperationType::Insert, Some(document)) = (event.operation_type, event.full_document) else {
        return None;
    };
    let what = match decision_of(&document) {
        Ok(decision) => FollowedRecord::Decided(decision),
        Err(unreadable) => {
            damaged!(unreadable.record; error = %unreadable, "told those who follow of a record that cannot be read");
            FollowedRecord::Unreadable(unreadable)
        }
    };
    Some(FollowedDecision { after, what })
}

/// Whether MongoDB answered, and would not.
fn is_refusal(error: &mongodb::error::Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(_))
}

/// Whether MongoDB does not have a place in its history any more, or has it in another one.
fn is_gone(error: &mongodb::error::Error) -> bool {
    const CHANGE_STREAM_FATAL_ERROR: i32 = 280;
    const CHANGE_STREAM_HISTORY_LOST: i32 = 286;
    let ErrorKind::Command(error) = &*error.kind else { return false };
    [CHANGE_STREAM_FATAL_ERROR, CHANGE_STREAM_HISTORY_LOST].contains(&error.code)
}

/// The member of a resume token that all of it is in: hexadecimal digits.
const DATA: &str = "_data";

impl FollowPosition {
    fn of(token: &ResumeToken) -> Option<Self> {
        let token = serialize_to_bson(token).ok()?;
        let data = token.as_document()?.get_str(DATA).ok()?;
        Some(FollowPosition(from_hex(data)?))
    }

    fn token(&self) -> Result<ResumeToken, Failure> {
        let data: String = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        deserialize_from_bson(doc! {DATA: data}.into())
            .map_err(|why| Failure::Damaged { what: "a place in the ledger's history", why: why.to_string() })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| {
        let [high, low] = pair.try_into().ok()?;
        let value = |digit: u8| char::from(digit).to_digit(16);
        u8::try_from(value(high)? * 16 + value(low)?).ok()
    });
    pairs.collect()
}

impl fmt::Display for FollowPosition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&URL_SAFE_NO_PAD.encode(&self.0))
    }
}

impl FromStr for FollowPosition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let fits = bytes.filter(|bytes| (1..=PLACE_MAX_BYTES).contains(&bytes.len()));
        fits.map(FollowPosition).ok_or_else(|| "must be the `after` of an earlier line or answer".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_text_and_the_drivers_token() {
        let token: ResumeToken = deserialize_from_bson(doc! {DATA: "8265A0FF"}.into()).unwrap();
        let place = FollowPosition::of(&token).unwrap();
        assert_eq!(place.to_string().parse(), Ok(place.clone()));
        assert_eq!(place.token().unwrap(), token);
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for wrong in ["", "!!", "a b", &"A".repeat(2_000)] {
            assert!(wrong.parse::<FollowPosition>().is_err(), "{wrong}");
        }
    }
}
