//! Listeners of a process.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};

use crate::failure::SetUpError;

/// Connections that are made and not yet accepted. The system keeps fewer if it is not allowed more
/// (Linux: net.core.somaxconn), and beyond that the client's system tries again only after a second.
const CONNECTS_WAITING_MAX: u32 = 65_535;

/// Binds a listener to an address that was given with `flag`.
///
/// # Errors
///
/// If that is not possible: a sentence that says what to do.
pub fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, SetUpError> {
    listen(address).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program serves there (a second copy?); stop it",
            std::io::ErrorKind::PermissionDenied => "it needs more rights",
            _ => "it is no address of this machine",
        };
        SetUpError(vec![format!(
            "cannot listen on {address}: {advice}, or give another with {flag} ({error})"
        )])
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(CONNECTS_WAITING_MAX)
}

/// The address that a listener is bound to.
///
/// # Errors
///
/// If the operating system does not tell.
pub fn address(listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    listener.local_addr().context("the listener has no address")
}
