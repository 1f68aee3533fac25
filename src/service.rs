//! The state of the whole service: whether it accepts requests. One document in MongoDB's `service`.

use crate::mongo::Database;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;

use crate::runtime::damage::damaged;
use crate::{Failure, mongo};

/// Whether the service accepts requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Service {
    /// Nothing new is accepted; what was accepted is honoured, and polling goes on.
    pub paused: bool,
    /// Counts the changes; a later one wins.
    pub generation: i64,
}

/// Keeps the state of the service.
#[derive(Clone)]
pub struct ServiceStore {
    states: Collection<Document>,
}

const ID: &str = "service";
/// A generation is below this; whatever is not was never counted.
const GENERATIONS_MAX: i64 = 1_000_000_000_000_000;

impl ServiceStore {
    /// The service of this database.
    pub fn new(database: &Database) -> Self {
        ServiceStore { states: database.collection("service") }
    }

    /// The state now. What of its record cannot be read is named in the log.
    pub async fn get(&self) -> Result<Service, Failure> {
        let (service, damage) = self.checked().await?;
        if let Some(why) = damage {
            damaged!(why; why, "the record of the service's state is damaged: pause or resume the service, which writes it anew");
        }
        Ok(service)
    }

    /// The state now, and what of its record cannot be read: a pause then counts as one, and a generation as
    /// the first, which changes nothing in Redis.
    pub(crate) async fn checked(&self) -> Result<(Service, Option<String>), Failure> {
        let states = self.states.clone();
        let found =
            mongo::run("read the service's state", async move { states.find_one(doc! {"_id": ID}).await });
        Ok(found.await?.as_ref().map(read).unwrap_or_default())
    }

    /// Pauses or resumes the service. A generation that cannot be read is replaced by one that is later than
    /// any that was counted.
    pub async fn set_paused(&self, paused: bool) -> Result<Service, Failure> {
        let states = self.states.clone();
        let changed = mongo::run("change the service's state", async move {
            let is_count = doc! {"$and": [
                {"$isNumber": "$generation"},
                {"$gte": ["$generation", 0_i64]},
                {"$lt": ["$generation", GENERATIONS_MAX]},
            ]};
            let next = doc! {"$add": [{"$toLong": "$generation"}, 1_i64]};
            let change = vec![doc! {"$set": {"paused": paused, "generation": {"$switch": {
                "branches": [
                    {"case": {"$eq": [{"$type": "$generation"}, "missing"]}, "then": 1_i64},
                    {"case": is_count, "then": next},
                ],
                "default": {"$toLong": "$$NOW"},
            }}}}];
            states
                .find_one_and_update(doc! {"_id": ID}, change)
                .upsert(true)
                .return_document(ReturnDocument::After)
                .await
        });
        Ok(changed.await?.as_ref().map(read).unwrap_or_default().0)
    }
}

/// A state, and what of it cannot be read.
fn read(state: &Document) -> (Service, Option<String>) {
    let mut damage = None;
    let mut wrong = |field: &str, value: &Bson| damage = Some(format!("{field} is {value}"));
    let paused = match state.get("paused") {
        None => false,
        Some(Bson::Boolean(paused)) => *paused,
        Some(other) => {
            wrong("paused", other);
            true
        }
    };
    let generation = match state.get("generation") {
        None => 0,
        Some(Bson::Int64(generation)) if (0..GENERATIONS_MAX).contains(generation) => *generation,
        Some(Bson::Int32(generation)) if *generation >= 0 => (*generation).into(),
        Some(other) => {
            wrong("generation", other);
            0
        }
    };
    (Service { paused, generation }, damage)
}
