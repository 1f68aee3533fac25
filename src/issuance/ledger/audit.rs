//! How the ledger is read for an audit: all of it, whatever its indexes are, and points of it again.

use std::collections::HashSet;

use futures::TryStreamExt;
use mongodb::Cursor;
use mongodb::bson::{Document, Uuid, doc};
use mongodb::options::FindOptions;
use serde::Deserialize;

use super::record::{ISSUED, damaged, uuid};
use super::{Held, Ledger, PAGE, queries};
use crate::coupon::CouponId;
use crate::issuance::IssuanceId;
use crate::{Failure, mongo};

/// As much of a document as an audit needs.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "_id")]
    id: Uuid,
    #[serde(rename = "userId")]
    user: String,
    serial: i64,
    nth: i32,
}

#[derive(Deserialize)]
struct Id {
    #[serde(rename = "_id")]
    id: Uuid,
}

/// Every issued record of one coupon, all of one user's in a row. Unlike
/// [`Ledger::issued_page`] it leaves none out where the unique indexes are gone: it is one cursor.
pub struct IssuedRecords {
    cursor: Option<Cursor<Line>>,
}

impl IssuedRecords {
    /// The records that follow; none is the end.
    pub async fn next(&mut self) -> Result<Vec<Held>, Failure> {
        let Some(mut cursor) = self.cursor.take() else { return Ok(Vec::new()) };
        let read = mongo::run("read the issued records", async move {
            let mut lines = Vec::with_capacity(PAGE as usize);
            while lines.len() < PAGE as usize {
                match cursor.try_next().await? {
                    Some(line) => lines.push(line),
                    None => return Ok((lines, None)),
                }
            }
            Ok((lines, Some(cursor)))
        });
        let (lines, cursor) = read.await?;
        self.cursor = cursor;
        lines.into_iter().map(held).collect()
    }
}

impl Ledger {
    /// Begins to read every issued record of a coupon.
    pub async fn issued_records(&self, coupon: &CouponId) -> Result<IssuedRecords, Failure> {
        let options = FindOptions::builder()
            .sort(queries::by_user())
            .projection(fields())
            .batch_size(PAGE as u32)
            .allow_disk_use(true)
            .build();
        let (records, filter) = (self.records.clone_with_type::<Line>(), queries::issued(coupon));
        let opened =
            mongo::run(
                "read the issued records",
                async move { records.find(filter).with_options(options).await },
            );
        Ok(IssuedRecords { cursor: Some(opened.await?) })
    }

    /// Which of `ids` are issued.
    pub async fn issued_among(&self, ids: &[IssuanceId]) -> Result<HashSet<IssuanceId>, Failure> {
        let all: Vec<_> = ids.iter().copied().map(uuid).collect();
        let records = self.records.clone_with_type::<Id>();
        let found = mongo::run("look for issued records", async move {
            let filter = doc! {"_id": {"$in": all}, "outcome": ISSUED};
            records.find(filter).projection(doc! {"_id": 1}).await?.try_collect::<Vec<_>>().await
        });
        found.await?.into_iter().map(|found| id(found.id)).collect()
    }

    /// Every record that holds one of these units of a coupon.
    pub async fn holders_of(&self, coupon: &CouponId, serials: &[u32]) -> Result<Vec<Held>, Failure> {
        let mut filter = queries::issued(coupon);
        filter.insert(
            "serial",
            doc! {"$in": serials.iter().map(|serial| i64::from(*serial)).collect::<Vec<_>>()},
        );
        let records = self.records.clone_with_type::<Line>();
        let found = mongo::run("read who holds the units", async move {
            records.find(filter).projection(fields()).await?.try_collect::<Vec<_>>().await
        });
        found.await?.into_iter().map(held).collect()
    }
}

fn fields() -> Document {
    doc! {"userId": 1, "serial": 1, "nth": 1}
}

fn held(line: Line) -> Result<Held, Failure> {
    let wrong = |what: &str| damaged(line.id, what);
    Ok(Held {
        id: id(line.id)?,
        user: line.user.parse().map_err(|_| wrong("its user"))?,
        serial: u32::try_from(line.serial).map_err(|_| wrong("its serial"))?,
        nth: u8::try_from(line.nth).map_err(|_| wrong("its nth"))?,
    })
}

fn id(id: Uuid) -> Result<IssuanceId, Failure> {
    IssuanceId::from_bytes(id.bytes()).ok_or_else(|| damaged(id, "its id"))
}
