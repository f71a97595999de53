//! The system calls that the standard library lacks: `recvmmsg` into fixed slots, `prctl`, socket
//! options, and sockets passed by descriptor number. The only file with `unsafe` code.
//!
//! Slots are allocated once. The loop over received datagrams uses only the returned count: a slot
//! that the last call did not fill is never read, whatever an earlier call left in it.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The payload, as far as it fitted into the slot.
    pub bytes: &'a [u8],
    /// Whether the slot was too small for the payload.
    pub truncated: bool,
    /// The sender's address, if the socket's family has one.
    pub source: Option<IpAddr>,
}

/// The system call that receives datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Many datagrams per call.
    Recvmmsg,
    /// One datagram per call, for sandboxes that refuse `recvmmsg`.
    Recvmsg,
}

/// Size of the buffer for a sender's address.
#[expect(clippy::cast_possible_truncation, reason = "28 bytes")]
const NAME_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

/// Buffers for a fixed number of datagrams, created and used on one thread.
pub struct Slots {
    buffers: Vec<u8>,
    slot_bytes: usize,
    /// The headers point into the three other vectors, which are never resized.
    headers: Vec<libc::mmsghdr>,
    _vectors: Vec<libc::iovec>,
    /// Buffers for the senders' addresses; those of IPv6 are the largest.
    names: Vec<libc::sockaddr_in6>,
    method: Method,
    /// Number of slots that the last call filled.
    filled: usize,
}

impl Slots {
    /// Creates `count` slots of `slot_bytes` each. Memory becomes resident only as far as datagrams
    /// fill it.
    pub fn new(count: usize, slot_bytes: usize, method: Method) -> Self {
        let mut buffers = vec![0_u8; count * slot_bytes];
        // SAFETY: all-zero is a valid value of this plain C structure.
        let no_name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let mut names = vec![no_name; count];
        let mut vectors: Vec<libc::iovec> = buffers
            .chunks_exact_mut(slot_bytes)
            .map(|slot| libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot_bytes })
            .collect();
        let headers = (0..count)
            .map(|index| {
                // SAFETY: all-zero is a valid value of this plain C structure.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = &raw mut vectors[index];
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_name = (&raw mut names[index]).cast();
                header.msg_hdr.msg_namelen = NAME_BYTES;
                header
            })
            .collect();
        Self { buffers, slot_bytes, headers, _vectors: vectors, names, method, filled: 0 }
    }

    /// Maximum number of datagrams per call.
    pub fn count(&self) -> usize {
        self.headers.len()
    }

    /// Receives queued datagrams without waiting, and returns their number; 0 if none is queued.
    ///
    /// # Errors
    /// The system's error, except that nothing is queued. If the system refuses `recvmmsg`, the
    /// slots switch to one call per datagram and continue.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // The kernel has changed only the headers that it filled.
        for header in &mut self.headers[..self.filled] {
            header.msg_hdr.msg_namelen = NAME_BYTES;
        }
        self.filled = 0;
        let received = match self.method {
            Method::Recvmmsg => self.receive_many(socket),
            Method::Recvmsg => self.receive_singly(socket),
        };
        match received {
            Ok(count) => {
                self.filled = count;
                Ok(count)
            }
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
                    && self.method == Method::Recvmmsg =>
            {
                self.method = Method::Recvmsg;
                self.receive(socket)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The system call in use.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The datagrams that the last call received.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        self.headers[..self.filled].iter().zip(self.buffers.chunks_exact(self.slot_bytes)).enumerate().map(
            |(index, (header, slot))| Datagram {
                bytes: &slot[..(header.msg_len as usize).min(self.slot_bytes)],
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                source: self.names.get(index).and_then(address),
            },
        )
    }

    fn receive_many(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let count = length(self.headers.len());
        #[allow(
            clippy::useless_conversion,
            clippy::unnecessary_cast,
            clippy::cast_sign_loss,
            reason = "musl's flags are unsigned"
        )]
        let flags = libc::MSG_DONTWAIT as _;
        // SAFETY: the headers, and the vectors, buffers and names they point to, live as long as
        // `self`, are not moved on the heap, and are borrowed mutably for the call; `count` is
        // their number.
        let received = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, flags, std::ptr::null_mut())
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    fn receive_singly(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for (index, header) in self.headers.iter_mut().enumerate() {
            // SAFETY: as for `receive_many`, for this one header.
            let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header.msg_hdr, libc::MSG_DONTWAIT) };
            match u32::try_from(received) {
                Ok(bytes) => header.msg_len = bytes,
                Err(_) if index > 0 => return Ok(index),
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(self.headers.len())
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("count", &self.headers.len()).field("method", &self.method).finish()
    }
}

/// Converts an address that the kernel wrote. IPv4 senders of a dual-stack socket become plain
/// IPv4.
fn address(name: &libc::sockaddr_in6) -> Option<IpAddr> {
    // The family has the same offset in every kind of address.
    match i32::from(name.sin6_family) {
        libc::AF_INET => {
            // SAFETY: by the family, this is what the kernel wrote; the storage is larger and no
            // less aligned.
            let inet = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(inet.sin_addr.s_addr))))
        }
        libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(name.sin6_addr.s6_addr)).to_canonical()),
        _ => None,
    }
}

/// A socket's memory as the kernel counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketMemory {
    /// Bytes that the kernel charges for queued datagrams.
    pub queued_bytes: u32,
    /// Datagrams dropped because the buffer was full, since the socket was created; wraps.
    pub drops: u32,
}

/// Indices in the array that `SO_MEMINFO` fills, from `linux/sock_diag.h`.
const SK_MEMINFO_RMEM_ALLOC: usize = 0;
const SK_MEMINFO_DROPS: usize = 8;
const SK_MEMINFO_VARS: usize = 9;

/// Reads a socket's `SO_MEMINFO`.
///
/// # Errors
/// The system's error; the option exists since Linux 4.12.
pub(super) fn socket_memory(socket: BorrowedFd<'_>) -> io::Result<SocketMemory> {
    let mut values = [0_u32; SK_MEMINFO_VARS];
    let mut bytes = length(size_of_val(&values));
    // SAFETY: the array is borrowed for the call, and its size in bytes is passed with it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(SocketMemory { queued_bytes: values[SK_MEMINFO_RMEM_ALLOC], drops: values[SK_MEMINFO_DROPS] })
}

/// Sets the receive buffer beyond the system's limit, which requires `CAP_NET_ADMIN`.
///
/// # Errors
/// The system's error; `PermissionDenied` without the capability.
pub(super) fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: the integer is borrowed for the call, and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            length(size_of::<i32>()),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the descriptors that a service manager passed to this process, and their names. Child
/// processes do not inherit them. Later calls return an empty list.
///
/// # Errors
/// The environment variables are malformed.
pub(in crate::receive) fn passed_descriptors() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: the variables, which carry our process ID, say that these descriptors are open and
    // ours; nothing else in this process knows them, and the flag keeps a second call from owning
    // them again.
    Ok(passed.map(|(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) })).collect())
}

/// Makes the calling thread's sleeps end on time: within a microsecond instead of 50.
pub(super) fn precise_sleeps() {
    // SAFETY: this `prctl` takes an integer and touches no memory. It cannot fail for a positive
    // value.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
}

/// Disables transparent huge pages (2 MiB) for the process. A worker's slots and an allocator's
/// arenas are touched sparsely, and each touch would make a whole huge page resident. Call it
/// before threads start.
pub fn use_small_pages() {
    // SAFETY: this `prctl` takes integers and touches no memory. If it is refused, the process
    // merely uses more memory.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1_u64, 0_u64, 0_u64, 0_u64) };
}

/// Converts the size of a structure or a number of slots; all are far below 4 GiB.
fn length(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        sender.connect(receiver.local_addr().expect("address")).expect("connect");
        (receiver, sender)
    }

    fn payloads(slots: &Slots) -> Vec<Vec<u8>> {
        slots.datagrams().map(|datagram| datagram.bytes.to_vec()).collect()
    }

    /// Guards against the bug of brubeck's `recvmmsg` loop: after a short return, the slots that
    /// were not filled still hold what an earlier call left there.
    #[test]
    fn a_short_return_never_shows_a_stale_slot() {
        for method in [Method::Recvmmsg, Method::Recvmsg] {
            let (receiver, sender) = pair();
            let mut slots = Slots::new(4, 64, method);
            assert_eq!(slots.count(), 4);
            for payload in [b"one", b"two", b"six"] {
                sender.send(payload).expect("send");
            }
            assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 3);
            assert_eq!(payloads(&slots), [b"one", b"two", b"six"]);
            sender.send(b"x").expect("send");
            assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 1);
            assert_eq!(payloads(&slots), [b"x"]);
            assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 0);
            assert!(payloads(&slots).is_empty());
            assert_eq!(slots.method(), method);
        }
    }

    #[test]
    fn truncation_and_emptiness_show() {
        for method in [Method::Recvmmsg, Method::Recvmsg] {
            let (receiver, sender) = pair();
            let mut slots = Slots::new(4, 8, method);
            for payload in [&b"12345678"[..], b"123456789", b""] {
                sender.send(payload).expect("send");
            }
            assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 3);
            let seen: Vec<_> = slots.datagrams().map(|d| (d.bytes.len(), d.truncated)).collect();
            assert_eq!(seen, [(8, false), (8, true), (0, false)]);
        }
    }

    #[test]
    fn senders_are_known_and_mapped_addresses_are_plain() {
        for method in [Method::Recvmmsg, Method::Recvmsg] {
            let receiver = UdpSocket::bind("[::]:0").expect("bind");
            let port = receiver.local_addr().expect("address").port();
            for (from, to) in [("127.0.0.1:0", format!("127.0.0.1:{port}")), ("[::1]:0", format!("[::1]:{port}"))] {
                let sender = UdpSocket::bind(from).expect("bind");
                sender.send_to(b"x", to).expect("send");
            }
            let mut slots = Slots::new(4, 64, method);
            assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 2);
            let sources: Vec<_> = slots.datagrams().map(|datagram| datagram.source).collect();
            assert_eq!(sources, [Some("127.0.0.1".parse().expect("IP")), Some("::1".parse().expect("IP"))]);
            // The same with a socket that only knows IPv4.
            let (receiver, sender) = pair();
            sender.send(b"x").expect("send");
            assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 1);
            let sources: Vec<_> = slots.datagrams().map(|datagram| datagram.source).collect();
            assert_eq!(sources, [Some("127.0.0.1".parse().expect("IP"))]);
        }
    }

    #[test]
    fn what_is_no_socket_is_an_error_and_changes_nothing() {
        let file = std::fs::File::open("/dev/null").expect("open");
        for method in [Method::Recvmmsg, Method::Recvmsg] {
            let mut slots = Slots::new(4, 64, method);
            let error = slots.receive(file.as_fd()).expect_err("no socket");
            assert_eq!((error.raw_os_error(), slots.method()), (Some(libc::ENOTSOCK), method));
        }
    }

    /// Makes the kernel refuse a system call of the calling thread from now on, with this error.
    fn refuse(call: libc::c_long, errno: i32) {
        let step = |code: u32, jump_if_not, value| libc::sock_filter {
            code: u16::try_from(code).expect("small"),
            jt: 0,
            jf: jump_if_not,
            k: value,
        };
        let call = u32::try_from(call).expect("small");
        let error = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).expect("positive");
        // The system call number is at offset 0 of the filter's data.
        let mut steps = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call),
            step(libc::BPF_RET | libc::BPF_K, 0, error),
            step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        // SAFETY: the program and its steps live for the calls, and `len` is their number.
        let results = unsafe {
            [
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            ]
        };
        assert_eq!(results, [0, 0], "{}", io::Error::last_os_error());
    }

    /// Sandboxes that know only old system calls return one of these errors.
    #[test]
    fn where_many_in_one_call_are_refused_one_in_each_is_taken() {
        for errno in [libc::ENOSYS, libc::EPERM, libc::EACCES] {
            let (receiver, sender) = pair();
            for payload in [b"one", b"two"] {
                sender.send(payload).expect("send");
            }
            // The filter ends with its thread.
            let sandboxed = std::thread::spawn(move || {
                refuse(libc::SYS_recvmmsg, errno);
                let mut slots = Slots::new(4, 64, Method::Recvmmsg);
                assert_eq!(slots.receive(receiver.as_fd()).expect("receive"), 2);
                assert_eq!(
                    (payloads(&slots), slots.method()),
                    (vec![b"one".to_vec(), b"two".to_vec()], Method::Recvmsg)
                );
                // If `recvmsg` is refused as well, that is an error.
                refuse(libc::SYS_recvmsg, errno);
                let error = slots.receive(receiver.as_fd()).expect_err("refused");
                assert_eq!(error.raw_os_error(), Some(errno));
            });
            sandboxed.join().expect("no panic");
        }
    }

    /// The kernel doubles the requested size.
    #[test]
    fn a_buffer_beyond_the_limit_is_had_by_right_or_refused() {
        let (receiver, _) = pair();
        let size = || socket2::SockRef::from(&receiver).recv_buffer_size().expect("a size");
        let before = size();
        match force_receive_buffer(receiver.as_fd(), 64 << 20) {
            Ok(()) => assert_eq!(size(), 128 << 20),
            Err(error) => assert_eq!((error.kind(), size()), (io::ErrorKind::PermissionDenied, before)),
        }
    }

    #[test]
    fn the_kernel_counts_what_found_no_room() {
        let (receiver, sender) = pair();
        let socket = socket2::SockRef::from(&receiver);
        socket.set_recv_buffer_size(4096).expect("buffer");
        for _ in 0..1000 {
            sender.send(&[0; 512]).expect("send");
        }
        let mut slots = Slots::new(64, 1024, Method::Recvmmsg);
        let mut received = 0;
        loop {
            match slots.receive(receiver.as_fd()).expect("receive") {
                0 => break,
                count => received += count,
            }
        }
        let memory = socket_memory(receiver.as_fd()).expect("SO_MEMINFO");
        assert!(received > 0 && memory.drops > 0);
        assert_eq!(received + memory.drops as usize, 1000);
    }

    #[test]
    fn a_threads_sleeps_end_on_time_and_pages_are_small() {
        let sandboxed = std::thread::spawn(|| {
            // SAFETY: these two calls touch no memory.
            let known =
                || unsafe { [libc::prctl(libc::PR_GET_TIMERSLACK), libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0)] };
            let before = known()[0];
            precise_sleeps();
            use_small_pages();
            let [slack, is_small] = known();
            assert!(slack < before, "{slack} ns, and before {before} ns");
            assert_eq!(is_small, 1);
        });
        sandboxed.join().expect("no panic");
    }
}
