//! Backup and restore, done as the runbook says: MongoDB and Redis get an older copy of their data back, the commands of
//! the page audit it, and the service opens again. A copy is one of the data folder of a server that is stopped.

use std::fs;
use std::path::{Path, PathBuf};

use coupon_system::dev::servers::{MongoOptions, MongoServer, RedisOptions, RedisServer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::helpers::{API, CTL, Client, CommandOutput, WORKER, eventually, serving, stopped};

/// Issuances before the backup, and as many after it.
const ISSUED: usize = 20;
const TOTAL: usize = 3 * ISSUED;

/// Servers of one's own, whose data can be put back, and the programs on them.
struct Deployment {
    mongodb: MongoServer,
    redis: RedisServer,
    folder: TempDir,
}

/// An API and a worker.
struct Running {
    api: Child,
    worker: Child,
    client: Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BackedUp {
    Redis,
    MongoDb,
    Both,
}

impl BackedUp {
    fn has_mongodb(self) -> bool {
        self != BackedUp::Redis
    }

    fn has_redis(self) -> bool {
        self != BackedUp::MongoDb
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("an entry");
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("it is copied");
        }
    }
}

/// Makes the content of `to` that of `from`.
fn put_back(from: &Path, to: &Path) {
    for entry in fs::read_dir(to).expect("a folder") {
        let path = entry.expect("an entry").path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.expect("it is removed");
    }
    copy(from, to);
}

impl Deployment {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = |name: &str| folder.path().join(name);
        let mongodb = MongoServer::start(MongoOptions::new(data("mongodb"))).await.expect("it starts");
        let redis = RedisServer::start(RedisOptions::new(data("redis"))).await.expect("it starts");
        Deployment { mongodb, redis, folder }
    }

    fn program(&self, path: &str) -> Command {
        let mut command = Command::new(path);
        command.env("COUPON_REDIS_URL", self.redis.url()).env("COUPON_MONGODB_URI", self.mongodb.url());
        command.kill_on_drop(true).stderr(std::process::Stdio::piped());
        command
    }

    async fn run(&self) -> Running {
        let mut api = self.program(API);
        api.args(["--listen", "127.0.0.1:0", "--open", "--audit-every", "0"]);
        let mut worker = self.program(WORKER);
        worker.args(["--metrics-listen", "127.0.0.1:0"]);
        let ((api, address), (worker, _)) = tokio::join!(serving(api), serving(worker));
        let client = Client::new(address);
        eventually("the API is ready", async || (client.get("/readyz").await.status == 200).then_some(()))
            .await;
        Running { api, worker, client }
    }

    async fn ctl(&self, words: &[&str]) -> CommandOutput {
        self.program(CTL).args(words).output().await.expect("it runs").into()
    }

    /// Runs a command until it succeeds: in the first seconds after the last process has ended it may see one that still
    /// seems to serve.
    async fn ctl_at_last(&self, words: &[&str]) {
        eventually(&format!("{words:?} succeeds"), async || {
            (self.ctl(words).await.code == Some(0)).then_some(())
        })
        .await;
    }

    /// What a full audit tells of the coupon, with the exit code that it must end with.
    async fn audited(&self, code: i32) -> Value {
        // Other exit codes say that it could not audit yet.
        let audit = eventually("an audit ends", async || {
            let audit = self.ctl(&["audit", "--full", "--json"]).await;
            (audit.code == Some(code)).then_some(audit)
        });
        audit.await.json()
    }

    fn backup(&self, server: &str) -> PathBuf {
        self.folder.path().join("backup").join(server)
    }

    /// Stops the servers that are to be copied, and starts them again.
    async fn back_up(&mut self, what: BackedUp) {
        if what.has_redis() {
            self.redis.stop().await.expect("it stops");
            copy(&self.redis.spec().data_dir, &self.backup("redis"));
            self.redis.restart().await.expect("it is back");
        }
        if what.has_mongodb() {
            self.mongodb.stop().await.expect("it stops");
            copy(&self.mongodb.spec().data_dir, &self.backup("mongodb"));
            self.mongodb.restart().await.expect("it is back");
        }
    }

    async fn restore(&mut self, what: BackedUp) {
        if what.has_redis() {
            self.redis.stop().await.expect("it stops");
            put_back(&self.backup("redis"), &self.redis.spec().data_dir);
            self.redis.restart().await.expect("it is back");
        }
        if what.has_mongodb() {
            self.mongodb.stop().await.expect("it stops");
            put_back(&self.backup("mongodb"), &self.mongodb.spec().data_dir);
            self.mongodb.restart().await.expect("it is back");
        }
    }

    /// Issues some coupons, makes a backup, issues as many more, and puts the backup back. No process runs afterwards.
    async fn restored(what: BackedUp) -> Self {
        let mut deployment = Deployment::start().await;
        let running = deployment.run().await;
        let coupon = json!({
            "id": "autumn", "name": "autumn", "total": TOTAL,
            "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2100-01-01T00:00:00Z",
        });
        assert_eq!(running.client.post("/coupons", coupon).await.status, 201);
        for user in 0..TOTAL {
            let registered = running.client.post("/users", json!({"id": format!("u{user}")})).await;
            assert_eq!(registered.status, 201);
        }
        running.issue(0..ISSUED).await;
        running.stop().await;
        deployment.back_up(what).await;
        let running = deployment.run().await;
        running.issue(ISSUED..2 * ISSUED).await;
        running.stop().await;
        deployment.restore(what).await;
        deployment
    }

    /// Opens the service again: the users of this range get their coupons, and the accounts add up to `issued`.
    async fn opens(&self, users: std::ops::Range<usize>, issued: usize) {
        let running = self.run().await;
        running.issue(users).await;
        running.stop().await;
        assert_eq!(self.audited(0).await["coupons"][0]["issued"], issued);
    }
}

impl Running {
    /// Has each of these users get a coupon.
    async fn issue(&self, users: std::ops::Range<usize>) {
        for user in users {
            let accepted = self.client.issue(&format!("u{user}"), "autumn", None).await;
            assert_eq!(accepted.status, 202, "{accepted:?}");
            assert_eq!(self.client.decided(&accepted.id()).await.state(), "issued");
        }
    }

    async fn stop(self) {
        for process in [self.api, self.worker] {
            assert!(stopped(process).await.success());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_redis_is_built_anew_from_mongodb_and_nobody_loses_a_coupon() {
    let deployment = Deployment::restored(BackedUp::Redis).await;
    deployment.ctl_at_last(&["recover"]).await;
    assert_eq!(deployment.audited(0).await["verdict"], "clean");
    deployment.opens(2 * ISSUED..TOTAL, TOTAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_older_mongodb_the_audit_names_who_lost_a_coupon_and_they_may_request_again() {
    let deployment = Deployment::restored(BackedUp::MongoDb).await;
    let lost = deployment.audited(4).await;
    let findings = lost["findings"].as_array().expect("findings");
    assert_eq!((&lost["verdict"], findings.len()), (&json!("broken"), ISSUED), "{lost:#}");
    for user in ISSUED..2 * ISSUED {
        let names_them =
            |finding: &Value| finding["code"] == "record-missing" && finding["user"] == format!("u{user}");
        assert!(findings.iter().any(names_them), "{user}: {lost:#}");
    }
    deployment.ctl_at_last(&["recover", "--rebuild"]).await;
    assert_eq!(deployment.audited(0).await["verdict"], "clean");
    deployment.opens(ISSUED..2 * ISSUED, 2 * ISSUED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_of_the_same_moment_are_intact_as_they_were() {
    let deployment = Deployment::restored(BackedUp::Both).await;
    deployment.ctl_at_last(&["recover"]).await;
    assert_eq!(deployment.audited(0).await["coupons"][0]["issued"], ISSUED);
    deployment.opens(ISSUED..TOTAL, TOTAL).await;
}
