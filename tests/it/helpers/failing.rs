//! A mongod that fails or delays commands when a test asks for it.

use coupon_system::dev::servers::{MongoOptions, MongoServer};
use mongodb::bson::{Bson, Document, doc};
use tempfile::TempDir;

use super::System;

/// A mongod of the test's own that obeys [`fail`].
pub async fn obedient_mongodb() -> (MongoServer, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut options = MongoOptions::new(folder.path().join("mongodb"));
    options.extra_args = ["--setParameter", "enableTestCommands=1"].map(Into::into).to_vec();
    (MongoServer::start(options).await.expect("it starts"), folder)
}

/// Sets MongoDB's `failCommand` failpoint: which commands fail or wait, and how. `mode` is `{"times": 2}`,
/// `"alwaysOn"` or `"off"`.
pub async fn fail(system: &System, mode: impl Into<Bson>, how: Document) {
    let admin = system.backends.database.client().database("admin");
    let command = doc! {"configureFailPoint": "failCommand", "mode": mode, "data": how};
    admin.run_command(command).await.expect("it obeys");
}
