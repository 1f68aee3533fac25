//! Processes: empty variables, and the end after SIGTERM.

use std::time::{Duration, Instant};

use clap::CommandFactory;
use coupon_system::config::{ApiCommand, WorkerCommand};
use mongodb::bson::doc;
use rustix::process::Signal;
use serde_json::json;
use tokio::process::Command;

use crate::helpers::{
    API, CTL, Client, RawConnection, System, WORKER, eventually, fail, obedient_mongodb, program,
    program_as_it_is, send, serving,
};

use super::api;

/// Sets every variable of a program to an empty text.
fn with_empty_variables(command: &mut Command, of: &clap::Command) {
    for variable in of.get_arguments().filter_map(|argument| argument.get_env()) {
        command.env(variable, "");
    }
    of.get_subcommands().for_each(|verb| with_empty_variables(command, verb));
}

#[tokio::test]
async fn an_empty_variable_is_as_if_it_were_not_set() {
    let system = System::start().await;
    for (path, of, listen) in
        [(API, ApiCommand::command(), "--listen"), (WORKER, WorkerCommand::command(), "--metrics-listen")]
    {
        let mut command = program(path, &system);
        command.args([listen, "127.0.0.1:0"]);
        with_empty_variables(&mut command, &of);
        // An empty COUPON_LOG must not silence the line with the address, for which `serving` waits.
        let (_child, address) =
            tokio::time::timeout(Duration::from_secs(60), serving(command)).await.expect("it logs");
        eventually("it is ready", async || {
            (Client::new(address).get("/readyz").await.status == 200).then_some(())
        })
        .await;
    }
    let mut list = Command::new(CTL);
    with_empty_variables(&mut list, &coupon_system::cli::CtlCommand::command());
    list.args(["coupon", "list", "--json", "--api-url", system.client.base()]);
    let output = list.output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_asked_to_stop_says_so_at_once_ends_kept_connections_and_serves_until_the_delay_is_over()
 {
    let system = System::start().await;
    system.users("u", 2).await;
    system.coupon("c", 9, 1).await;
    let (mut child, address) = api(&system, &["--shutdown-delay", "6"]).await;
    assert_eq!(Client::new(address).get("/readyz").await.status, 200);
    let alive = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut kept = RawConnection::connect(address).await;
    kept.send(alive).await.expect("it is taken");
    assert!(!kept.answer().await.head.contains("connection: close"));
    let asked = Instant::now();
    send(&child, Signal::TERM);
    // Each attempt uses a new client, and so a new connection.
    let not_ready = eventually("it says that it is not ready", async || {
        let answer = Client::new(address).get("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!((not_ready.code(), &not_ready.body["stopping"]), ("unavailable", &json!(true)));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    kept.send(alive).await.expect("it is taken");
    let last = kept.answers().await;
    assert!(last.len() == 1 && last[0].head.contains("connection: close"), "{last:?}");
    assert!(asked.elapsed() < Duration::from_secs(6), "the connection ends before the delay does");
    assert_eq!(Client::new(address).get("/livez").await.status, 200);
    assert_eq!(Client::new(address).issue("u0", "c", None).await.status, 202, "new connections are served");
    let ended = tokio::time::timeout(Duration::from_secs(40), child.wait()).await.expect("it ends");
    assert_eq!(ended.expect("it ends").code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_secs(6), "{:?}", asked.elapsed());

    let (mut child, address) = api(&system, &["--shutdown-delay", "600"]).await;
    send(&child, Signal::TERM);
    eventually("it has heard", async || {
        (Client::new(address).get("/readyz").await.status == 503).then_some(())
    })
    .await;
    send(&child, Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.expect("it ends at once");
    assert_eq!(ended.expect("it ends").code(), Some(1));
    system.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_asked_to_stop_is_not_ready_and_finishes_what_it_has() {
    let (mongod, _folder) = obedient_mongodb().await;
    let system = System::builder().mongodb(mongod.url()).start().await;
    system.users("u", 1).await;
    system.coupon("c", 9, 1).await;
    let mut command = program_as_it_is(WORKER, &system);
    command.args(["--metrics-listen", "127.0.0.1:0"]);
    let (mut child, address) = serving(command).await;
    let ledger = format!("{}.user_coupons", system.database);
    let slow =
        doc! {"failCommands": ["insert"], "namespace": ledger, "blockConnection": true, "blockTimeMS": 6_000};
    fail(&system, doc! {"times": 1}, slow).await;
    let accepted = system.client.issue("u0", "c", None).await;
    eventually("the worker has it in hand", async || (system.queue().await == (1, 1)).then_some(())).await;
    assert_eq!(Client::new(address).get("/readyz").await.status, 200);
    send(&child, Signal::TERM);
    let unready = eventually("it is not ready", async || {
        let answer = Client::new(address).get("/readyz").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!((unready.code(), &unready.body["stopping"]), ("unavailable", &json!(true)), "{unready:?}");
    assert_eq!(Client::new(address).get("/livez").await.status, 200);
    assert_eq!(system.client.get(&format!("/issuances/{}", accepted.id())).await.state(), "queued");
    let ended = tokio::time::timeout(Duration::from_secs(40), child.wait()).await.expect("it ends");
    assert_eq!(ended.expect("it ends").code(), Some(0));
    assert_eq!(system.client.get(&format!("/issuances/{}", accepted.id())).await.state(), "issued");
}
