//! Serves a router on a listener until it is asked to stop. The caller binds the listener, so tests use port 0.
//!
//! HTTP/1.1 only. Browsers speak HTTP/2 over TLS alone, which ends at a proxy in front of this server, and proxies
//! speak HTTP/1.1 to it by default. So no client would gain from HTTP/2, and its streams, resets and compressed
//! headers would each need bounds of their own.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::response::Response;
use futures::future::{Either, Ready, ready};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Activity;
use super::addresses::{ClientPrefix, Peer};
use super::answer::{AnswerBody, Answering, of_connection};
use super::concurrency::ConcurrencyLimit;
use super::connection::Connection;
use super::connection_runtimes::ConnectionRuntimes;
use super::connections::{Connections, SHRINK_EVERY};
use super::forwarded::Network;
use super::keep_alive;
use super::queue_delay::QueueDelay;
use crate::metrics;
use crate::runtime::fd_limit;

/// After the request to stop, requests in hand may take this long.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// Request line and headers together. Hyper bounds the number of headers: 100.
const HEAD_MAX_BYTES: usize = 32 * 1024;
/// The bytes read ahead of a request, or held of an answer, for one connection.
const BUFFER_MAX_BYTES: usize = HEAD_MAX_BYTES;
/// Bytes of answers that the kernel takes before the client's side has room for them. A client that requests much and
/// reads nothing otherwise gets megabytes of its memory, and the time to copy them, before the next connection is
/// looked at.
#[cfg(target_os = "linux")]
const UNSENT_MAX_BYTES: u32 = 128 * 1024;
/// The pause after an accept that failed, for example because no file descriptor was left.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How many connections are served.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Open at once; to accept one more, the server closes the one that has idled longest.
    pub connections: usize,
    /// Open at once from one client address; further ones are closed. `None` does not count them.
    pub per_address: Option<usize>,
    /// Networks of proxies. Their connections carry many clients, so they are not counted by address.
    pub proxies: Vec<Network>,
}

impl Default for Bounds {
    /// As many as the limit of open files allows, from any address.
    fn default() -> Self {
        Bounds { connections: fd_limit::connections_max(), per_address: None, proxies: Vec::new() }
    }
}

impl Bounds {
    /// The same for two listeners of one process: together they take no more connections, and those of the second
    /// are free however full the first one is.
    pub fn split(self) -> (Self, Self) {
        /// The second listener has one in this many of the connections.
        const SECOND: usize = 8;
        let second = self.connections.div_ceil(SECOND);
        let first = self.connections.saturating_sub(second).max(1);
        (Bounds { connections: first, ..self.clone() }, Bounds { connections: second, ..self })
    }
}

/// What is served.
pub(crate) struct ServedRouter {
    pub router: Router,
    /// `None` sheds no request.
    pub shedder: Option<Arc<dyn LoadShedder>>,
}

impl From<Router> for ServedRouter {
    fn from(router: Router) -> Self {
        ServedRouter { router, shedder: None }
    }
}

/// Decides before the router which requests are refused under overload, and hears of what the server refuses by
/// itself.
pub(crate) trait LoadShedder: Send + Sync {
    /// Whether such a request may be refused under overload.
    fn concerns(&self, request: &Request<Incoming>) -> bool;

    /// Whether the service can take more of them.
    fn has_room(&self) -> bool;

    /// The answer to a request that is refused.
    fn refusal(&self, request: &Request<Incoming>) -> Response;

    /// The server refused what `peer` sent, because it is no request.
    fn has_refused(&self, peer: IpAddr);

    /// The path under which clients reach the router.
    fn base(&self) -> &str;
}

/// Serves on `runtimes` until `shutdown`; then stops accepting, and waits a bounded time for the requests in hand. From
/// `asked_to_stop` until then it serves everything, and ends each connection with its next answer.
pub(crate) async fn serve(
    listener: TcpListener,
    served: impl Into<ServedRouter>,
    bounds: Bounds,
    runtimes: &ConnectionRuntimes,
    asked_to_stop: CancellationToken,
    shutdown: CancellationToken,
) {
    // Connections have what their listener has.
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT_MAX_BYTES) {
        tracing::warn!(%error, "clients that do not read cost much memory: what they have not read cannot be bounded");
    }
    let ServedRouter { router, shedder } = served.into();
    let mut builder = http1::Builder::new();
    // `keep_alive` bounds how long a request may take to arrive.
    builder.header_read_timeout(None).max_header_size(HEAD_MAX_BYTES).max_buf_size(BUFFER_MAX_BYTES);
    let builder = Arc::new(builder);
    let started = Instant::now();
    let tasks = TaskTracker::new();
    let mut connections = Connections::new(bounds.connections);
    let places = bounds.per_address.map(ConcurrencyLimit::new);
    let mut runtimes = runtimes.in_turn();
    let is_leaving = Arc::new(AtomicBool::new(false));
    let mut ticks = interval(SHRINK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            () = asked_to_stop.cancelled(), if !is_leaving.load(Ordering::Relaxed) => {
                is_leaving.store(true, Ordering::Relaxed);
                continue;
            }
            accepted = listener.accept() => accepted,
            _ = ticks.tick() => {
                connections.shrink();
                continue;
            }
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // An idle connection that closes frees a file descriptor, if none is left.
                connections.send_away();
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        // An answer is one small write: Nagle's algorithm would only delay it.
        let _ = stream.set_nodelay(true);
        let is_proxy = bounds.proxies.iter().any(|network| network.contains(peer));
        let counted =
            places.as_ref().filter(|_| !is_proxy).map(|places| places.enter(ClientPrefix::of(peer)));
        if let Some(None) = counted {
            metrics::DROPPED.count("address");
            continue;
        }
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            place = connections.place() => place,
        };
        let Some(runtime) = runtimes.next() else { break };
        let stream = match move_to(&runtime.handle, stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be served");
                continue;
            }
        };
        let activity = Activity::new(started);
        connections.add(Arc::clone(&activity));
        let requests = Requests {
            activity: Arc::clone(&activity),
            peer: Peer(peer),
            queue_delay: Arc::clone(&runtime.queue_delay),
            shedder: shedder.clone(),
            is_leaving: Arc::clone(&is_leaving),
            router: TowerToHyperService::new(router.clone()),
        };
        let open = Open::new(Arc::clone(&activity));
        let connection = Connection::new(stream, Arc::clone(&activity), peer, shedder.clone());
        let serving = keep_alive::serve(connection, Arc::clone(&builder), requests, activity);
        tasks.spawn_on(
            async move {
                serving.await;
                drop((open, place, counted));
            },
            &runtime.handle,
        );
    }
    drop(listener);
    connections.finish();
    tasks.close();
    if tokio::time::timeout(DRAIN_MAX, tasks.wait()).await.is_err() {
        tracing::warn!("stopped with requests in hand");
    }
}

/// An open connection: counted until this is dropped.
struct Open(Arc<Activity>);

impl Open {
    fn new(activity: Arc<Activity>) -> Self {
        metrics::CONNECTIONS.increment(1.0);
        Open(activity)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::CONNECTIONS.decrement(1.0);
        self.0.close();
    }
}

/// Moves a connection to another runtime.
fn move_to(runtime: &Handle, stream: TcpStream) -> std::io::Result<TcpStream> {
    let stream = stream.into_std()?;
    let _entered = runtime.enter();
    TcpStream::from_std(stream)
}

/// Hands the requests of one connection to the router, each with the address that it comes from.
struct Requests {
    activity: Arc<Activity>,
    peer: Peer,
    queue_delay: Arc<QueueDelay>,
    shedder: Option<Arc<dyn LoadShedder>>,
    /// Whether the process was asked to stop.
    is_leaving: Arc<AtomicBool>,
    router: TowerToHyperService<Router>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Either<
        Ready<Result<Response<AnswerBody>, Infallible>>,
        Answering<<TowerToHyperService<Router> as Service<Request<Incoming>>>::Future>,
    >;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.activity.begin_request();
        request.extensions_mut().insert(self.peer);
        if let Some(shedder) = &self.shedder
            && shedder.concerns(&request)
            && (self.queue_delay.sheds() || !shedder.has_room())
        {
            let refusal = of_connection(shedder.refusal(&request), &self.activity, &self.is_leaving);
            return Either::Left(ready(Ok(refusal)));
        }
        Either::Right(Answering {
            router: self.router.call(request),
            activity: Arc::clone(&self.activity),
            is_leaving: Arc::clone(&self.is_leaving),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_listeners_take_no_more_than_one() {
        let (first, second) =
            Bounds { connections: 1_000, per_address: Some(3), proxies: Vec::new() }.split();
        assert_eq!((first.connections, second.connections), (875, 125));
        assert_eq!((first.per_address, second.per_address), (Some(3), Some(3)));
    }
}
