//! What a connection's bytes are on the wire: as they stand, or TLS.
//!
//! Reads without waiting, so that a connection over TLS takes its turn like any other. Never does: a handshake; keeping
//! more than one record.

use std::io;

use rustls::ServerConnection;
use tokio::net::TcpStream;

/// How a socket is read without waiting.
pub(super) type Read = fn(&TcpStream, &mut [u8]) -> io::Result<usize>;

/// Reads from the socket for one piece of text: a record has at most 16 KiB, and comes by 4 KiB.
const MOST_READS: usize = 16;

/// A connection's bytes on the wire.
pub(super) enum Wire {
    /// As they stand.
    Plain,
    /// TLS, after the handshake.
    Tls(Box<Session>),
}

/// A TLS session.
pub(super) struct Session {
    tls: ServerConnection,
    /// Bytes of text that were decrypted and not yet read.
    left: usize,
}

impl Wire {
    /// TLS, after the handshake.
    ///
    /// # Errors
    /// What came with the handshake is no TLS.
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

    /// Reads what there is; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing; else what the system or TLS says.
    pub(super) fn read(&mut self, stream: &TcpStream, read: Read, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain => read(stream, room),
            Self::Tls(session) => session.read(&mut Socket(stream, read), room),
        }
    }

    /// Writes what fits. One who does not read it does without it.
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
        for _ in 0..MOST_READS {
            if self.left > 0 {
                let count = io::Read::read(&mut self.tls.reader(), room)?;
                self.left = self.left.saturating_sub(count);
                return Ok(count);
            }
            if self.tls.read_tls(socket)? == 0 {
                return Ok(0);
            }
            let state = self.tls.process_new_packets();
            // An alert says what was wrong; a change of keys wants an answer.
            self.send(socket);
            let state = state.map_err(io::Error::other)?;
            self.left = state.plaintext_bytes_to_read();
            if self.left == 0 && state.peer_has_closed() {
                return Ok(0);
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sends what TLS has to say, as far as the socket takes it now.
    fn send(&mut self, socket: &mut Socket<'_>) {
        while self.tls.wants_write() && self.tls.write_tls(socket).is_ok() {}
    }
}

/// A socket that does not wait.
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
