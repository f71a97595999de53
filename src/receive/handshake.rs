//! How a connection over TLS begins, the same for every listener of connections.
//!
//! Never does: answering who speaks something else, or counting. Bounds: the time for it.

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

/// How long a TLS handshake may take.
const LONGEST: Duration = Duration::from_secs(5);
/// How long handshakes that have begun may go on once the listener is to stop.
const LAST_HANDSHAKES: Duration = Duration::from_secs(1);

/// Why there is no TLS on a connection.
#[derive(Debug)]
pub(super) enum Failed {
    /// Client and relay found no way to speak, or the client is gone.
    Handshake(io::Error),
    /// The client speaks without TLS. What it said can still be read.
    PlainText,
    /// It took too long.
    TimedOut,
    /// The listener stopped first.
    Stopped,
}

/// Shakes hands with a client. Once the listener is to stop, one that has not begun is not waited for; one that has may
/// already have sent lines behind its last word, and gets a moment more.
pub(super) async fn shake_hands(
    certificate: &Certificate,
    member: &Rc<Member<TcpStream>>,
    stop: watch::Receiver<bool>,
) -> Result<TlsStream<Socket>, Failed> {
    let beginning = until(stop.clone(), Duration::ZERO, async { Ok(begins_as_tls(&member.stream).await) });
    let shaking = timeout(LONGEST, async {
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

/// What comes of this, unless the listener was to stop so long ago.
async fn until<T>(
    mut stop: watch::Receiver<bool>,
    longest: Duration,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let ended = async {
        stopped(&mut stop).await;
        sleep(longest).await;
    };
    tokio::select! {
        biased;
        done = work => done,
        () = ended => Err(Failed::Stopped),
    }
}
