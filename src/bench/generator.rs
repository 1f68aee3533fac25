//! Whether the generator is cheap enough: it shares the machine with what it loads, and what it takes
//! is missing there.

use serde::Serialize;

use super::accept::{NO_COUPON, bare_handler, to_bare, to_service};
use super::bed::Bed;
use super::burst::{Burnt, Cpu};
use super::lab::Lab;
use super::report::{Row, row};
use super::spread::Spread;
use crate::dev::servers::Persistence;

/// Against the bare handler, the cheapest thing that answers; then against the service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Generator {
    /// Answered per second by the bare handler: no figure of the bench can be above it.
    pub ceiling_per_second: Spread,
    /// Processor time per request against the bare handler, in microseconds.
    pub generator_cpu_micros: f64,
    pub handler_cpu_micros: f64,
    /// What the generator could send if it had all cores to itself.
    pub generator_alone_per_second: f64,
    /// Its share of all cores while it loads the bare handler, 0 to 1.
    pub share_of_cores_bare: f64,
    /// Its share of all cores while it loads the service, 0 to 1.
    pub share_of_cores_service: f64,
    /// The share that the service's processes (API, Redis, MongoDB) take meanwhile.
    pub service_share_of_cores: f64,
    pub cores: usize,
}

pub(super) async fn measure(lab: &Lab<'_>) -> anyhow::Result<Generator> {
    let sizes = &lab.sizes;
    let cores = std::thread::available_parallelism()?.get();
    lab.say("generator: against the bare handler");
    let handler = bare_handler().await?;
    let mut bare = Vec::new();
    for _ in 0..sizes.rounds {
        bare.push(to_bare(lab, &handler).send(NO_COUPON).await?);
    }
    handler.stop().await?;

    lab.say("generator: against the service");
    let bed = Bed::make(lab, Persistence::FsyncAlways).await?;
    bed.register(sizes.burst).await?;
    let api = bed.api().await?;
    let mut full = Vec::new();
    for _ in 0..sizes.rounds {
        let coupon = bed.coupon(sizes.burst).await?;
        full.push(to_service(lab, &bed, &api, None)?.send(coupon.as_str()).await?);
        bed.drain(&coupon, sizes.burst).await?;
    }
    api.stop().await?;
    bed.close().await?;

    let median = |of: &[Burnt], one: &dyn Fn(&Burnt) -> f64| Spread::of(of.iter().map(one).collect()).median;
    let share = |used: fn(&Cpu) -> f64| {
        move |burnt: &Burnt| used(&burnt.cpu) * 1e-6 * burnt.accepted_per_second / cores as f64
    };
    let generator_cpu_micros = median(&bare, &|burnt| burnt.cpu.generator);
    Ok(Generator {
        ceiling_per_second: Spread::of(bare.iter().map(|burnt| burnt.accepted_per_second).collect()),
        generator_cpu_micros,
        handler_cpu_micros: median(&bare, &|burnt| burnt.cpu.server),
        generator_alone_per_second: 1e6 * cores as f64 / generator_cpu_micros,
        share_of_cores_bare: median(&bare, &share(|cpu| cpu.generator)),
        share_of_cores_service: median(&full, &share(|cpu| cpu.generator)),
        service_share_of_cores: median(&full, &share(|cpu| cpu.server + cpu.redis + cpu.mongod)),
        cores,
    })
}

impl Generator {
    pub(super) fn rows(&self) -> Vec<Row> {
        vec![
            row("ceilingPerSecond", self.ceiling_per_second.median, "against the bare handler")
                .over(&self.ceiling_per_second),
            row("generatorCpuMicros", self.generator_cpu_micros, "processor time per request"),
            row("handlerCpuMicros", self.handler_cpu_micros, "the same of the bare handler"),
            row("generatorAlonePerSecond", self.generator_alone_per_second, "with all cores to itself"),
            row("shareOfCoresBare", self.share_of_cores_bare, "of the generator, against the bare handler"),
            row("shareOfCoresService", self.share_of_cores_service, "of the generator, against the service"),
            row("serviceShareOfCores", self.service_share_of_cores, "of API, Redis, MongoDB meanwhile"),
        ]
    }
}
