//! The state of the whole service: whether it accepts requests. One document in MongoDB's `service`.

use mongodb::bson::{Document, doc};
use mongodb::options::ReturnDocument;
use mongodb::{Collection, Database};

use crate::Failure;
use crate::mongo;

/// See the module's documentation.
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

impl ServiceStore {
    /// The service of this database.
    pub fn new(database: &Database) -> Self {
        ServiceStore { states: database.collection("service") }
    }

    /// The state now.
    pub async fn get(&self) -> Result<Service, Failure> {
        let states = self.states.clone();
        let found =
            mongo::run("read the service's state", async move { states.find_one(doc! {"_id": ID}).await });
        Ok(found.await?.as_ref().map(read).unwrap_or_default())
    }

    /// Pauses or resumes the service.
    pub async fn set_paused(&self, paused: bool) -> Result<Service, Failure> {
        let states = self.states.clone();
        let changed = mongo::run("change the service's state", async move {
            let change = doc! {"$set": {"paused": paused}, "$inc": {"generation": 1_i64}};
            states
                .find_one_and_update(doc! {"_id": ID}, change)
                .upsert(true)
                .return_document(ReturnDocument::After)
                .await
        });
        Ok(changed.await?.as_ref().map(read).unwrap_or_default())
    }
}

fn read(state: &Document) -> Service {
    Service {
        paused: state.get_bool("paused").unwrap_or(false),
        generation: state.get_i64("generation").unwrap_or(0),
    }
}
