//! The API process.
//!
//! | module | what it holds |
//! |---|---|
//! | `router` | every route, by who may use it |
//! | `middleware` | what a request passes through before its handler |
//! | `handlers` | a function a route, with its OpenAPI block |
//! | [`wire`] | what goes over the wire: reading requests strictly, writing answers |
//! | `state` | what the handlers work with, by topic; the limits on what comes in |
//! | [`openapi`] | the OpenAPI document |
//! | `pages` | the pages for people, and Swagger UI |
//! | `background` | what the process does beside answering |

mod background;
mod handlers;
mod middleware;
pub mod openapi;
mod pages;
mod router;
mod state;
pub mod wire;

use std::process::ExitCode;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{self, ApiCommand, ApiConfig};
use crate::http::connection_runtimes::ConnectionRuntimes;
use crate::http::server::{self, LoadShedder, ServedRouter};
use crate::process::{self, Backends, TraceExporter};
use crate::runtime::{fd_limit, shutdown, telemetry};
use middleware::shedding::Shedding;
pub use router::ListenerScope;
use router::router;
pub use state::App;

/// The listeners that the API is served on.
pub struct Listeners {
    pub public: TcpListener,
    /// Serves operators' routes beside all others; the public listener then does not have them.
    pub operators: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(public: TcpListener) -> Self {
        Listeners { public, operators: None }
    }
}

/// Runs the API process: parses the command line, connects, and serves until the process is asked to stop.
///
/// The binary calls this and nothing else, so that the code of its tasks is generated once, with this crate, and
/// not in each binary again.
#[tokio::main]
pub async fn main() -> ExitCode {
    process::exit(start(config::parse()).await)
}

async fn start(command: ApiCommand) -> anyhow::Result<()> {
    telemetry::start(command.log.log_format, &command.log.log)?;
    let traces = TraceExporter::start("coupon-api")?;
    fd_limit::raise_limit();
    let shutdown = shutdown::on_signal()?;
    let listener = process::bind(command.api.listen, "--listen")?;
    let backends = process::connect(&command.redis, &command.mongodb).await?;
    let ended = run(listener, backends, &command.api, shutdown).await;
    traces.finish().await;
    ended
}

/// Runs an API process until `shutdown`.
///
/// # Errors
/// The configuration cannot be met, an address cannot be bound, or a database does not answer at the start.
pub async fn run(
    public: TcpListener,
    backends: Backends,
    config: &ApiConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let operators = match config.access.operator_listen {
        Some(address) => Some(process::bind(address, "--operator-listen")?),
        None => None,
    };
    let app = App::start(&backends, config, shutdown).await?;
    serve(Listeners { public, operators }, app, &backends).await
}

/// Serves the API, keeps the partition certified and its accounts audited, until the `app` stops.
///
/// # Errors
/// The system refuses a thread, or does not tell the address of a listener.
pub async fn serve(listeners: impl Into<Listeners>, app: App, backends: &Backends) -> anyhow::Result<()> {
    let Listeners { public, operators } = listeners.into();
    if let Some(operators) = &operators {
        tracing::info!(operator_listen = %process::address(operators)?, "serving operators");
    }
    tracing::info!(listen = %process::address(&public)?, "serving the API");
    let runtimes = ConnectionRuntimes::start()?;
    let drained = CancellationToken::new();
    let background = background::start(&app, backends, &drained);
    let serve = |listener, scope, bounds| {
        let shedder: Arc<dyn LoadShedder> = Arc::new(Shedding::new(app.clone()));
        let served = ServedRouter { router: router(app.clone(), scope), shedder: Some(shedder) };
        let (asked, stopping) = (app.lifecycle.asked_to_stop.clone(), app.lifecycle.stopping.clone());
        server::serve(listener, served, bounds, &runtimes, asked, stopping)
    };
    match operators {
        None => serve(public, ListenerScope::Whole, app.limits.connections.clone()).await,
        Some(operators) => {
            let (of_public, of_operators) = app.limits.connections.clone().split();
            tokio::join!(
                serve(public, ListenerScope::Public, of_public),
                serve(operators, ListenerScope::Whole, of_operators)
            );
        }
    }
    drained.cancel();
    background.wait().await;
    Ok(())
}
