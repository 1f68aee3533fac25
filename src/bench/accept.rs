//! How fast the service accepts, over a bare handler under the same generator.
//!
//! Each round sends the same burst again and again: to the bare handler; to an API process that
//! remembers no users, and must ask MongoDB for each; to one that knows them; to that while a worker
//! process drains; and to one that also asks each user for a token (HS256), which it has seen before.
//! Redis syncs its append-only file before each answer. But for the one that says so, the queue is
//! drained after the burst.

use std::sync::Arc;

use serde::Serialize;

use super::burst::{BurstResult, CpuMicros, MONGOD, REDIS, RequestBurst, SERVER, WORKER};
use super::context::{BenchContext, BenchSizes};
use super::env::BenchEnv;
use super::program::ChildProgram;
use super::report::{FigureRow, FigureTarget, row};
use super::spread::Spread;
use super::tokens;
use crate::dev::servers::Persistence;

/// The bare handler only repeats it: as long as the name of a real coupon.
pub(super) const NO_COUPON: &str = "bench-abcdefghijkm";

/// Accepted requests per second; ratios are those of one round each, and their median.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AcceptFigures {
    /// The service, workers idle, users seen before, over the bare handler. To be 0.60 or more.
    pub accepted_ratio: f64,
    /// The same, with users seen for the first time.
    pub accepted_first_sight_ratio: f64,
    /// The same as the first, while one worker process drains.
    pub accepted_while_draining_ratio: f64,
    /// With users' tokens over without, in the same round. To be 0.95 or more.
    pub authenticated_ratio: f64,
    pub bare_per_second: Spread,
    pub accepted_per_second: Spread,
    pub first_sight_per_second: Spread,
    pub while_draining_per_second: Spread,
    pub authenticated_per_second: Spread,
    /// With tokens that are seen for the first time.
    pub token_first_sight_per_second: Spread,
    /// Requests in a burst.
    pub requests: u32,
    pub connections: usize,
    pub bare_cpu_micros: CpuMicros,
    pub accepted_cpu_micros: CpuMicros,
    pub first_sight_cpu_micros: CpuMicros,
    pub while_draining_cpu_micros: CpuMicros,
    pub authenticated_cpu_micros: CpuMicros,
    pub token_first_sight_cpu_micros: CpuMicros,
}

/// The bursts of one kind.
#[derive(Default)]
struct BurstSeries {
    rates: Vec<f64>,
    cpu: Vec<CpuMicros>,
}

impl BurstSeries {
    fn add(&mut self, result: BurstResult) {
        self.rates.push(result.accepted_per_second);
        self.cpu.push(result.cpu);
    }

    /// Adds several bursts of one round as one.
    fn add_mean(&mut self, bursts: BurstSeries) {
        self.rates.push(bursts.rates.iter().sum::<f64>() / bursts.rates.len() as f64);
        self.cpu.extend(bursts.cpu);
    }

    fn figures(self) -> (Spread, CpuMicros) {
        (Spread::of(self.rates), CpuMicros::median(&self.cpu))
    }
}

/// Starts the bare handler as a process of its own.
pub(super) async fn bare_handler() -> anyhow::Result<ChildProgram> {
    ChildProgram::start(&std::env::current_exe()?, &["bench", "--serve-bare"]).await
}

pub(super) async fn measure(context: &BenchContext<'_>) -> anyhow::Result<AcceptFigures> {
    let sizes = &context.sizes;
    let [mut bare, mut unseen, mut seen, mut draining, mut fresh, mut known]: [BurstSeries; 6] =
        Default::default();
    let tokens: Arc<[String]> = tokens::headers(sizes.burst).into();
    for round in 1..=sizes.rounds {
        context.say(&format!("accept: round {round} of {}", sizes.rounds));
        let env = BenchEnv::make(context, Persistence::FsyncAlways).await?;
        env.register(sizes.burst).await?;
        // Each alone: an idle process costs little, but not nothing.
        let handler = bare_handler().await?;
        bare.add(to_bare(context, &handler).send(NO_COUPON).await?);
        handler.stop().await?;

        let forgetful = env.api_with(&["--open", "--user-cache", "1"]).await?;
        unseen.add(drained_burst(&env, to_service(context, &env, &forgetful, None)?).await?);
        forgetful.stop().await?;

        let flags = tokens::flags(env.folder())?;
        let open = env.api().await?;
        let guarded = env.api_with(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        let with_tokens = |guarded: &ChildProgram| {
            anyhow::Ok(RequestBurst {
                headers: Arc::clone(&tokens),
                ..to_service(context, &env, guarded, None)?
            })
        };
        // Until they know them all.
        drained_burst(&env, to_service(context, &env, &open, None)?).await?;
        fresh.add(drained_burst(&env, with_tokens(&guarded)?).await?);
        // Side by side, and each once before and once after the other.
        let mut pair = [BurstSeries::default(), BurstSeries::default()];
        for guarded_first in [round % 2 == 0, round % 2 != 0] {
            for is_guarded in [guarded_first, !guarded_first] {
                let burst =
                    if is_guarded { with_tokens(&guarded)? } else { to_service(context, &env, &open, None)? };
                pair[usize::from(is_guarded)].add(drained_burst(&env, burst).await?);
            }
        }
        let [without, with] = pair;
        seen.add_mean(without);
        known.add_mean(with);
        guarded.stop().await?;
        let coupon = env.coupon(sizes.burst).await?;
        let worker = env.worker().await?;
        draining.add(to_service(context, &env, &open, Some(&worker))?.send(coupon.as_str()).await?);
        env.drained(&coupon, sizes.burst).await?;
        worker.stop().await?;
        open.stop().await?;
        env.close().await?;
    }
    let (bare_per_second, bare_cpu_micros) = bare.figures();
    let (accepted_per_second, accepted_cpu_micros) = seen.figures();
    let (first_sight_per_second, first_sight_cpu_micros) = unseen.figures();
    let (while_draining_per_second, while_draining_cpu_micros) = draining.figures();
    let (token_first_sight_per_second, token_first_sight_cpu_micros) = fresh.figures();
    let (authenticated_per_second, authenticated_cpu_micros) = known.figures();
    Ok(AcceptFigures {
        accepted_ratio: accepted_per_second.over(&bare_per_second).median,
        accepted_first_sight_ratio: first_sight_per_second.over(&bare_per_second).median,
        accepted_while_draining_ratio: while_draining_per_second.over(&bare_per_second).median,
        authenticated_ratio: authenticated_per_second.over(&accepted_per_second).median,
        bare_per_second,
        accepted_per_second,
        first_sight_per_second,
        while_draining_per_second,
        authenticated_per_second,
        token_first_sight_per_second,
        requests: sizes.burst,
        connections: sizes.connections,
        bare_cpu_micros,
        accepted_cpu_micros,
        first_sight_cpu_micros,
        while_draining_cpu_micros,
        authenticated_cpu_micros,
        token_first_sight_cpu_micros,
    })
}

/// Sends a burst for a coupon of its own, and drains it after.
async fn drained_burst(env: &BenchEnv, burst: RequestBurst) -> anyhow::Result<BurstResult> {
    let coupon = env.coupon(burst.users).await?;
    let result = burst.send(coupon.as_str()).await?;
    env.drain(&coupon, burst.users).await?;
    Ok(result)
}

/// A burst to the bare handler.
pub(super) fn to_bare(context: &BenchContext<'_>, handler: &ChildProgram) -> RequestBurst {
    let BenchSizes { burst: users, connections, .. } = context.sizes;
    RequestBurst {
        url: handler.url(),
        users,
        connections,
        headers: Arc::default(),
        watched: vec![(SERVER, handler.pid())],
    }
}

/// A burst to the service.
pub(super) fn to_service(
    context: &BenchContext<'_>,
    env: &BenchEnv,
    api: &ChildProgram,
    worker: Option<&ChildProgram>,
) -> anyhow::Result<RequestBurst> {
    let BenchSizes { burst: users, connections, .. } = context.sizes;
    let mut watched = vec![(SERVER, api.pid()), (MONGOD, env.mongodb_pid()?), (REDIS, env.redis_pid()?)];
    watched.extend(worker.map(|worker| (WORKER, worker.pid())));
    Ok(RequestBurst { url: api.url(), users, connections, headers: Arc::default(), watched })
}

impl AcceptFigures {
    pub(super) fn rows(&self) -> Vec<FigureRow> {
        let cpu = &self.accepted_cpu_micros;
        vec![
            row("acceptedRatio", self.accepted_ratio, "service over bare handler, users seen before")
                .with_target(FigureTarget::AtLeast(0.60)),
            row("acceptedFirstSightRatio", self.accepted_first_sight_ratio, "users seen for the first time"),
            row("acceptedWhileDrainingRatio", self.accepted_while_draining_ratio, "while a worker drains"),
            row("authenticatedRatio", self.authenticated_ratio, "with users' tokens over without")
                .with_target(FigureTarget::AtLeast(0.95)),
            row("barePerSecond", self.bare_per_second.median, "").over(&self.bare_per_second),
            row("acceptedPerSecond", self.accepted_per_second.median, "").over(&self.accepted_per_second),
            row("firstSightPerSecond", self.first_sight_per_second.median, "")
                .over(&self.first_sight_per_second),
            row("whileDrainingPerSecond", self.while_draining_per_second.median, "")
                .over(&self.while_draining_per_second),
            row("authenticatedPerSecond", self.authenticated_per_second.median, "tokens seen before")
                .over(&self.authenticated_per_second),
            row("tokenFirstSightPerSecond", self.token_first_sight_per_second.median, "tokens seen first")
                .over(&self.token_first_sight_per_second),
            row("bareCpuMicros.server", self.bare_cpu_micros.server, "processor time per request"),
            row("acceptedCpuMicros.server", cpu.server, "the same of the API process"),
            row(
                "authenticatedCpuMicros.server",
                self.authenticated_cpu_micros.server,
                "the same with tokens",
            ),
            row("acceptedCpuMicros.redis", cpu.redis, "the same of redis-server"),
            row("acceptedCpuMicros.generator", cpu.generator, "the same of the generator"),
        ]
    }
}
