//! Shutdown: the first SIGTERM or SIGINT asks the process to stop, a second one ends it at once.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled `delay` after `asked` is.
pub fn after(asked: &CancellationToken, delay: Duration) -> CancellationToken {
    if delay.is_zero() {
        return asked.clone();
    }
    let over = CancellationToken::new();
    let (asked, cancelled) = (asked.clone(), over.clone());
    tokio::spawn(async move {
        asked.cancelled().await;
        tracing::info!(seconds = delay.as_secs(), "not ready; going on until load balancers have noticed");
        tokio::time::sleep(delay).await;
        cancelled.cancel();
    });
    over
}

/// A token that is cancelled by the first signal.
///
/// # Errors
///
/// If the signals cannot be listened to.
pub(crate) fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked.is_cancelled() {
                tracing::warn!("asked to stop a second time: stopping at once");
                std::process::exit(1);
            }
            tracing::info!("asked to stop; finishing what is in hand (once more to stop at once)");
            asked.cancel();
        }
    });
    Ok(token)
}
