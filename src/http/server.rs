//! Serving a router on a listener until it is asked to stop. The listener is the caller's, so tests
//! use port 0.
//!
//! HTTP/1.1 only. Browsers speak HTTP/2 over TLS alone, which is ended in front of this server, and
//! what stands there speaks HTTP/1.1 to it unless told otherwise; so HTTP/2 would serve nobody, and
//! its streams, resets and compressed headers would each need bounds of their own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use axum::response::Response;
use futures::future::{Either, Ready, ready};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::addresses::{Peer, Places};
use super::connection::{Connection, InHand};
use super::files;
use super::lag::Lag;
use super::threads::Threads;
use crate::metrics;

/// After the request to stop, requests in hand may take this long.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// Request line and headers together. How many headers there may be is hyper's bound: 100.
const HEAD_MAX_BYTES: usize = 32 * 1024;
/// What is read ahead of a request, or held of an answer, for one connection.
const BUFFER_MAX_BYTES: usize = 64 * 1024;
/// An accept that fails (no file descriptors left) is tried again after this.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How many connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Open at once; more wait to be accepted.
    pub connections: usize,
    /// Open at once from one place; more are closed. `None` counts nothing.
    pub per_address: Option<usize>,
}

impl Default for Bounds {
    /// As many as the limit of open files has room for, wherever they come from.
    fn default() -> Self {
        Bounds { connections: files::connections_max(), per_address: None }
    }
}

impl Bounds {
    /// The same for two listeners of one process: together they take no more, and whoever fills the first
    /// one leaves room on the second.
    pub fn split(self) -> (Self, Self) {
        /// Of the connections, the second listener has one in so many.
        const SECOND: usize = 8;
        let second = self.connections.div_ceil(SECOND);
        let first = self.connections.saturating_sub(second).max(1);
        (Bounds { connections: first, ..self }, Bounds { connections: second, ..self })
    }
}

/// What is served.
pub struct Served {
    pub router: Router,
    /// `None` turns nobody away.
    pub shed: Option<Arc<dyn Shed>>,
}

impl From<Router> for Served {
    fn from(router: Router) -> Self {
        Served { router, shed: None }
    }
}

/// Who is turned away when there is too much to do, before the router sees the request.
pub trait Shed: Send + Sync {
    /// Whether such a request may be turned away.
    fn concerns(&self, request: &Request<Incoming>) -> bool;

    /// Whether there is room behind the router.
    fn has_room(&self) -> bool;

    /// The answer to a request that is turned away.
    fn refusal(&self, request: &Request<Incoming>) -> Response;
}

/// Serves on `threads` until `shutdown`; then stops accepting and finishes what is in hand, within a bound.
pub async fn serve(
    listener: TcpListener,
    served: impl Into<Served>,
    bounds: Bounds,
    threads: &Threads,
    shutdown: CancellationToken,
) {
    let Served { router, shed } = served.into();
    let mut builder = http1::Builder::new();
    // How long a request may take to come is the connection's to say.
    builder.header_read_timeout(None).max_header_size(HEAD_MAX_BYTES).max_buf_size(BUFFER_MAX_BYTES);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(bounds.connections));
    let places = bounds.per_address.map(Places::new);
    let mut threads = threads.in_turn();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let counted = places.as_ref().map(|places| places.enter(peer.ip()));
        if let Some(None) = counted {
            metrics::DROPPED.count("address");
            continue;
        }
        let Some(thread) = threads.next() else { break };
        let stream = match on(&thread.handle, stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be served");
                continue;
            }
        };
        let service = Requests {
            in_hand: InHand::default(),
            peer: Peer(peer.ip()),
            lag: Arc::clone(&thread.lag),
            shed: shed.clone(),
            router: TowerToHyperService::new(router.clone()),
        };
        let connection = TokioIo::new(Connection::new(stream, service.in_hand.clone()));
        let connection = graceful.watch(builder.serve_connection(connection, service));
        metrics::CONNECTIONS.increment(1.0);
        thread.handle.spawn(async move {
            // A client that breaks off is no event.
            let _ = connection.await;
            metrics::CONNECTIONS.decrement(1.0);
            drop((permit, counted));
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("stopped with requests in hand");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            // An answer is one small write: waiting for more to send with it only delays it.
            let _ = stream.set_nodelay(true);
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_RETRY).await;
            None
        }
    }
}

/// Moves a connection to another scheduler.
fn on(scheduler: &Handle, stream: TcpStream) -> std::io::Result<TcpStream> {
    let stream = stream.into_std()?;
    let _entered = scheduler.enter();
    TcpStream::from_std(stream)
}

/// The router, given the requests of one connection, each with where it comes from.
struct Requests {
    in_hand: InHand,
    peer: Peer,
    lag: Arc<Lag>,
    shed: Option<Arc<dyn Shed>>,
    router: TowerToHyperService<Router>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<
        Ready<Result<Response, Infallible>>,
        <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future,
    >;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.in_hand.begin();
        if let Some(shed) = &self.shed
            && shed.concerns(&request)
            && (self.lag.turns_away() || !shed.has_room())
        {
            return Either::Left(ready(Ok(shed.refusal(&request))));
        }
        request.extensions_mut().insert(self.peer);
        Either::Right(self.router.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_listeners_take_no_more_than_one() {
        let (first, second) = Bounds { connections: 1_000, per_address: Some(3) }.split();
        assert_eq!((first.connections, second.connections), (875, 125));
        assert_eq!((first.per_address, second.per_address), (Some(3), Some(3)));
    }
}
