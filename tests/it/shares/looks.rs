//! Every answer "sold out", judged by what each node did: all commands that changed a share are recorded on the nodes
//! themselves, with their times, and so is known at which instants every share was empty and nothing on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coupon_system::ids::CouponId;
use coupon_system::issuance::{Outcome, Reason};
use futures::StreamExt;
use futures::future::join_all;
use serde_json::json;
use tokio::sync::mpsc;

use super::{adopted, create, shares_of, users_of};
use crate::helpers::{System, cluster, decided, eventually};

const TOTAL: u32 = 90;
const RESTOCKED: u32 = 96;
const SHARES: u32 = 6;
const USERS: usize = 150;
/// Of those who get a unit, one in this many gives it back.
const GIVES_BACK: usize = 5;
/// A user who was told "sold out" comes back so often, after a pause.
const VISITS: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);
/// A look at all shares counts for half a second, and its second pass takes half a second at most.
const TOLD_FOR: u64 = 1_000_000;

/// What a share has, as the commands that its node ran tell.
#[derive(Debug, Default)]
struct Share {
    coupon: String,
    holders: String,
    free_key: String,
    in_flight: String,
    /// What is free by membership.
    free: BTreeSet<String>,
    next: u64,
    total: u64,
}

impl Share {
    fn is_empty(&self) -> bool {
        self.free.is_empty() && self.next > self.total
    }
}

/// Microseconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64
}

/// A line of MONITOR: `1.000002 [0 lua] "HSET" "key" "field"`.
struct Line {
    /// In microseconds.
    at: u64,
    is_of_script: bool,
    words: Vec<String>,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (at, rest) = line.split_once(" [")?;
        let (source, rest) = rest.split_once("] ")?;
        let (seconds, micros) = at.split_once('.')?;
        let at = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
        // Quotes within a word are escaped, so that these end words only.
        let words = rest.strip_prefix('"')?.strip_suffix('"')?.split("\" \"").map(str::to_owned).collect();
        Some(Line { at, is_of_script: source.ends_with("lua"), words })
    }
}

/// All shares, and what is on its way from one to another.
#[derive(Default)]
struct World {
    shares: Vec<Share>,
    moving: BTreeSet<String>,
    /// Ids of moves that arrived.
    moved: BTreeSet<String>,
}

impl World {
    fn is_empty(&self) -> bool {
        self.moving.is_empty() && self.shares.iter().all(Share::is_empty)
    }

    /// Follows one command.
    fn follow(&mut self, words: &[String]) {
        let [command, key, rest @ ..] = words else { return };
        let Some(share) = self
            .shares
            .iter_mut()
            .find(|share| [&share.coupon, &share.holders, &share.free_key, &share.in_flight].contains(&key))
        else {
            return;
        };
        let pairs = || rest.chunks_exact(2).map(|pair| (&pair[0], &pair[1]));
        match command.to_ascii_uppercase().as_str() {
            "SADD" if *key == share.free_key => share.free.extend(rest.iter().cloned()),
            "SREM" if *key == share.free_key => share.free.retain(|unit| !rest.contains(unit)),
            "HSET" if *key == share.coupon => pairs().for_each(|(field, value)| match field.as_str() {
                "next" => share.next = value.parse().expect("a number"),
                "total" => share.total = value.parse().expect("a number"),
                _ => {}
            }),
            "HSET" if *key == share.in_flight => pairs().for_each(|(id, value)| {
                let user = value.rsplit(' ').next().unwrap_or_default();
                if user.starts_with('=') && !self.moved.contains(id) {
                    self.moving.insert(id.clone());
                }
            }),
            "HSETNX" if *key == share.holders && rest[0].starts_with('+') => {
                let id = rest[0].trim_start_matches('+');
                self.moving.remove(id);
                self.moved.insert(id.to_owned());
            }
            "UNLINK" | "DEL" | "RENAME" | "SPOP" | "SMOVE" | "SDIFFSTORE" => {
                panic!("a command that this test does not follow: {words:?}")
            }
            _ => {}
        }
    }
}

/// Records what every node runs, until the receiver of the marks has the one that ends it.
async fn record(url: String, lines: mpsc::UnboundedSender<(usize, Line)>, node: usize, end: String) {
    let client = redis::Client::open(url).expect("a URL");
    let monitor = client.get_async_monitor().await.expect("a connection");
    let mut monitor = std::pin::pin!(monitor.into_on_message::<String>());
    while let Some(line) = monitor.next().await {
        let Some(line) = Line::parse(&line) else { panic!("no line of MONITOR: {line}") };
        let is_end = line.words.last() == Some(&end);
        if lines.send((node, line)).is_err() || is_end {
            return;
        }
    }
}

/// Runs a command on a node that its recording shows.
async fn mark(url: &str, mark: &str) {
    let client = redis::Client::open(url).expect("a URL");
    let mut node = client.get_multiplexed_async_connection().await.expect("it answers");
    let _: String = redis::cmd("ECHO").arg(mark).query_async(&mut node).await.expect("it says so");
}

/// What each share has before anybody requests the coupon.
async fn as_loaded(system: &System, coupon: &CouponId) -> Vec<Share> {
    let mut shares = Vec::new();
    for share in shares_of(system, coupon).await {
        let partition = system.backends.partitions.get(share).expect("it is known");
        let keys = partition.keys();
        let mut read = redis::cmd("HMGET");
        read.arg(keys.coupon(coupon)).arg("next").arg("total");
        let (next, total) = read.query_async(&mut partition.connection()).await.expect("it is loaded");
        shares.push(Share {
            coupon: keys.coupon(coupon),
            holders: keys.holders(coupon),
            free_key: keys.free(coupon),
            in_flight: keys.in_flight(),
            free: BTreeSet::new(),
            next,
            total,
        });
    }
    shares
}

/// A user requests the coupon until there is a unit, which some give back. Returns when each request was sent whose answer
/// was "sold out", and when that came.
async fn visit(system: &System, coupon: &CouponId, user: &str, accepted: &AtomicUsize) -> Vec<(u64, u64)> {
    let mut sold_out = Vec::new();
    while sold_out.len() < VISITS {
        let sent = now();
        let answer = system.client.issue(user, coupon.as_str(), None).await;
        match answer.status {
            202 => {
                if accepted.fetch_add(1, Ordering::Relaxed).is_multiple_of(GIVES_BACK) {
                    let discarded = Outcome::Rejected { reason: Reason::Discarded, unit: None, lost: false };
                    let id = answer.id().parse().expect("an id");
                    // The worker may have decided it first.
                    let decision = decided(id, coupon, user, discarded);
                    system.backends.ledger.insert(&[decision]).await.expect("an answer");
                }
                break;
            }
            409 if answer.code() == "sold-out" => {
                sold_out.push((sent, now()));
                tokio::time::sleep(PAUSE).await;
            }
            503 => {}
            _ => panic!("{answer:?}"),
        }
    }
    sold_out
}

/// The spans of time, in microseconds, in which every share was empty and nothing was on its way.
fn empty_spans(world: &mut World, recorded: BTreeMap<usize, Vec<Line>>) -> Vec<(u64, u64)> {
    let mut commands = Vec::new();
    for (node, lines) in recorded {
        // What a script runs, it runs at one instant.
        let mut at = 0;
        for line in lines {
            at = if line.is_of_script { at } else { line.at };
            commands.push((at, node, line.words));
        }
    }
    commands.sort_by_key(|(at, node, _)| (*at, *node));
    let (mut spans, mut since) = (Vec::new(), None);
    for instant in commands.chunk_by(|one, other| (one.0, one.1) == (other.0, other.1)) {
        let at = instant[0].0;
        instant.iter().for_each(|(_, _, words)| world.follow(words));
        match (world.is_empty(), since) {
            (true, None) => since = Some(at),
            (false, Some(from)) => {
                spans.push((from, at));
                since = None;
            }
            _ => {}
        }
    }
    spans.extend(since.map(|from| (from, u64::MAX - TOLD_FOR)));
    spans
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_sold_out_is_said_every_share_was_empty_at_one_instant() {
    let folder = tempfile::tempdir().expect("a folder");
    let builder = System::builder().cluster(cluster(&folder, 0).await).partitions(64);
    let system = builder.flags(&["--user-rate", "0"]).start().await;
    let coupon = create(&system, "hot", TOTAL, SHARES, 1).await;
    // Most units lie elsewhere than most users.
    let shares = shares_of(&system, &coupon).await;
    let crowd = users_of(&system, &coupon, shares[0], USERS * 2 / 3).await;
    let users = [crowd, users_of(&system, &coupon, shares[3], USERS / 3).await].concat();
    let urls: Vec<String> =
        std::iter::once(&system.redis).chain(&system.other_nodes).map(|node| node.url()).collect();
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let recordings: Vec<_> = urls
        .iter()
        .enumerate()
        .map(|(node, url)| tokio::spawn(record(url.clone(), sender.clone(), node, "end".to_owned())))
        .collect();
    drop(sender);
    let mut recorded: BTreeMap<usize, Vec<Line>> = BTreeMap::new();
    // A recording has begun when it shows a mark.
    while recorded.len() < urls.len() {
        join_all(urls.iter().map(|url| mark(url, "begin"))).await;
        while let Ok((node, line)) = receiver.try_recv() {
            recorded.entry(node).or_default().push(line);
        }
    }
    let mut world = World { shares: as_loaded(&system, &coupon).await, ..World::default() };

    let accepted = AtomicUsize::new(0);
    let visits = join_all(users.iter().map(|user| visit(&system, &coupon, user, &accepted)));
    let operators = async {
        // Nothing is decided before, so that no unit comes back.
        eventually("all is sold", async || {
            (accepted.load(Ordering::Relaxed) == TOTAL as usize).then_some(())
        })
        .await;
        tokio::time::sleep(PAUSE).await;
        let worker = system.worker();
        eventually("some is decided", async || {
            (!system.issued_serials(&coupon).await.is_empty()).then_some(())
        })
        .await;
        let restocked = system.client.post("/coupons/hot/restock", json!({"total": RESTOCKED})).await;
        assert_eq!(restocked.status, 200, "{restocked:?}");
        worker
    };
    let (sold_out, _worker) = tokio::join!(visits, operators);
    let sold_out: Vec<(u64, u64)> = sold_out.into_iter().flatten().collect();
    join_all(urls.iter().map(|url| mark(url, "end"))).await;
    join_all(recordings).await.into_iter().for_each(|ended| ended.expect("no panic"));
    while let Some((node, line)) = receiver.recv().await {
        recorded.entry(node).or_default().push(line);
    }

    let empty = empty_spans(&mut world, recorded);
    for (sent, answered) in &sold_out {
        let was_true = empty.iter().any(|(from, until)| *from <= *answered && *until + TOLD_FOR >= *sent);
        assert!(was_true, "sent at {sent}, told sold out at {answered}, empty only at {empty:?}");
    }
    assert!(world.moved.len() > 3, "{} units were moved", world.moved.len());
    assert!(empty.len() > 1, "units came back after every share was empty: {empty:?}");
    assert!(sold_out.len() > USERS, "{} answers", sold_out.len());
    let stock = system.settled(&coupon).await;
    assert_eq!((stock.total, stock.remaining + stock.issued), (RESTOCKED, RESTOCKED), "{stock:?}");
    println!(
        "{} answers, {} spans in which all was empty, {} units moved",
        sold_out.len(),
        empty.len(),
        world.moved.len()
    );
    adopted(&system, &coupon).await;
    system.audited_clean().await;
}
