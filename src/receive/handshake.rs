//! How a connection over TLS begins, the same for every listener of connections.
//!
//! Never does: answering who speaks something else, or counting. Bounds: the time for it.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::crowd::Member;
use super::socket::Socket;
use crate::net::tls::{Certificate, begins_as_tls};

/// How long a TLS handshake may take.
const LONGEST: Duration = Duration::from_secs(5);

/// Why there is no TLS on a connection.
#[derive(Debug)]
pub(super) enum Failed {
    /// Client and relay found no way to speak, or the client is gone.
    Handshake(io::Error),
    /// The client speaks without TLS. What it said can still be read.
    PlainText,
    /// It took too long.
    TimedOut,
}

/// Shakes hands with a client.
pub(super) async fn shake_hands(
    certificate: &Certificate,
    member: &Rc<Member<TcpStream>>,
) -> Result<TlsStream<Socket>, Failed> {
    let shaking = timeout(LONGEST, async {
        if !begins_as_tls(&member.stream).await {
            return Err(Failed::PlainText);
        }
        certificate.acceptor().accept(Socket(Rc::clone(member))).await.map_err(Failed::Handshake)
    });
    shaking.await.unwrap_or(Err(Failed::TimedOut))
}
