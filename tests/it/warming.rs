//! The API reads users ahead when it starts, and does not read them again.

use coupon_system::user::User;
use futures::TryStreamExt;
use mongodb::bson::{Document, doc};

use crate::helpers::{API, Client, System, at, eventually, program, serving};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_are_remembered_are_not_read_over_and_over() {
    const USERS: usize = 50;
    let system = System::start().await;
    let users: Vec<_> = (0..USERS)
        .map(|number| format!("u{number}"))
        .map(|id| User { id: id.parse().expect("an id"), name: id, created_at: at(-60) })
        .collect();
    system.backends.users.insert(&users).await.expect("they are registered");
    let database = &system.backends.database;
    database.run_command(doc! {"profile": 2}).await.expect("it is watched");
    let mut api = program(API, &system);
    api.args(["--listen", "127.0.0.1:0"]);
    let (_api, address) = serving(api).await;
    eventually("they are remembered", async || {
        let told = Client::new(address).request("GET", "/metrics").send().await.expect("an answer");
        let told = told.text().await.expect("a text");
        told.contains(&format!("coupon_cache_entries{{cache=\"users\"}} {USERS}")).then_some(())
    })
    .await;

    // Both processes poll every second.
    let watched = database.collection::<Document>("system.profile");
    let looks = doc! {"ns": format!("{}.users", system.database), "command.sort.createdAt": -1};
    let looks = eventually("they looked some more times", async || {
        let seen: Vec<Document> =
            watched.find(looks.clone()).await.expect("a look").try_collect().await.expect("documents");
        (seen.len() > 8).then_some(seen)
    })
    .await;
    let read: i32 = looks.iter().map(|look| look.get_i32("nreturned").expect("a number")).sum();
    assert!(read <= 2 * USERS as i32, "once by each process, at its start: {read}");
}
