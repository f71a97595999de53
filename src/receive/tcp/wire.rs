//! A connection's bytes on the wire: plain, or TLS.
//!
//! Never blocks, so that a TLS connection takes turns like any other. Never does: a handshake;
//! buffering more than one TLS record.

use std::io;

use rustls::ServerConnection;
use tokio::net::TcpStream;

/// A non-blocking read from a socket.
pub(super) type Read = fn(&TcpStream, &mut [u8]) -> io::Result<usize>;

/// Maximum number of socket reads per call. A TLS record has at most 16 KiB, read in steps of 4
/// KiB.
const MAX_READS: usize = 16;

/// Encoding of a connection's bytes.
pub(super) enum Wire {
    /// Plain text.
    Plain,
    /// TLS, after the handshake.
    Tls(Box<Session>),
}

/// A TLS session.
pub(super) struct Session {
    tls: ServerConnection,
    /// Decrypted bytes that have not been read yet.
    left: usize,
}

impl Wire {
    /// Wraps a TLS connection after its handshake.
    ///
    /// # Errors
    /// The bytes received with the handshake are not valid TLS.
    pub(super) fn tls(mut tls: ServerConnection) -> io::Result<Self> {
        let left = tls.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read();
        Ok(Self::Tls(Box::new(Session { tls, left })))
    }

    /// Waits until there may be something to read.
    pub(super) async fn readable(&self, stream: &TcpStream) -> io::Result<()> {
        match self {
            Self::Tls(session) if session.left > 0 => Ok(()),
            Self::Plain | Self::Tls(_) => stream.readable().await,
        }
    }

    /// Reads without waiting. Returns 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is available; otherwise the error of the system or of TLS.
    pub(super) fn read(&mut self, stream: &TcpStream, read: Read, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain => read(stream, room),
            Self::Tls(session) => session.read(&mut Socket(stream, read), room),
        }
    }

    /// Writes what fits. A client that does not read it misses it.
    pub(super) fn write(&mut self, stream: &TcpStream, bytes: &[u8]) {
        match self {
            Self::Plain => drop(stream.try_write(bytes)),
            Self::Tls(session) => {
                drop(io::Write::write(&mut session.tls.writer(), bytes));
                session.send(&mut Socket(stream, TcpStream::try_read));
            }
        }
    }
}

impl Session {
    fn read(&mut self, socket: &mut Socket<'_>, room: &mut [u8]) -> io::Result<usize> {
        for _ in 0..MAX_READS {
            if self.left > 0 {
                let count = io::Read::read(&mut self.tls.reader(), room)?;
                self.left = self.left.saturating_sub(count);
                return Ok(count);
            }
            if self.tls.read_tls(socket)? == 0 {
                return Ok(0);
            }
            let state = self.tls.process_new_packets();
            // Sends pending TLS messages: an alert for an error, or the answer to a key update.
            self.send(socket);
            let state = state.map_err(io::Error::other)?;
            self.left = state.plaintext_bytes_to_read();
            if self.left == 0 && state.peer_has_closed() {
                return Ok(0);
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sends pending TLS messages as far as the socket accepts them now.
    fn send(&mut self, socket: &mut Socket<'_>) {
        while self.tls.wants_write() && self.tls.write_tls(socket).is_ok() {}
    }
}

/// A non-blocking socket.
struct Socket<'a>(&'a TcpStream, Read);

impl io::Read for Socket<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.1(self.0, room)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
