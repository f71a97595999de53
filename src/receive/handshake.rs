//! The TLS handshake, shared by all connection-oriented listeners.
//!
//! Never does: answering a client that speaks another protocol, or counting. Bounds: the time for a
//! handshake.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use super::crowd::Member;
use super::door::stopped;
use super::socket::Socket;
use crate::net::tls::{Certificate, begins_as_tls};

/// Maximum duration of a TLS handshake.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a handshake in progress may continue once the listener stops.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);

/// Why a connection has no TLS session.
#[derive(Debug)]
pub(super) enum Failed {
    /// The handshake failed, or the client disconnected.
    Handshake(io::Error),
    /// The client does not speak TLS. Its bytes can still be read from the socket.
    PlainText,
    /// The handshake timed out.
    TimedOut,
    /// The listener stopped first.
    Stopped,
}

/// Performs the handshake with a client. Once the listener stops, a handshake that has not begun is
/// abandoned. One in progress gets [`LAST_HANDSHAKES`] more, because the client may already have
/// sent lines after its last handshake message.
pub(super) async fn shake_hands(
    certificate: &Certificate,
    member: &Rc<Member<TcpStream>>,
    stop: watch::Receiver<bool>,
) -> Result<TlsStream<Socket>, Failed> {
    let beginning = until(stop.clone(), Duration::ZERO, async { Ok(begins_as_tls(&member.stream).await) });
    let shaking = timeout(TIMEOUT, async {
        if !beginning.await? {
            return Err(Failed::PlainText);
        }
        until(stop, LAST_HANDSHAKES, async {
            certificate.acceptor().accept(Socket(Rc::clone(member))).await.map_err(Failed::Handshake)
        })
        .await
    });
    shaking.await.unwrap_or(Err(Failed::TimedOut))
}

/// Runs `work`, but gives up `grace` after the listener was told to stop.
async fn until<T>(
    mut stop: watch::Receiver<bool>,
    grace: Duration,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let ended = async {
        stopped(&mut stop).await;
        sleep(grace).await;
    };
    tokio::select! {
        biased;
        done = work => done,
        () = ended => Err(Failed::Stopped),
    }
}
