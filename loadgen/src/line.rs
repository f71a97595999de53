//! One traceable line: how the sender marks it, and how a receiver tells a whole one from an
//! altered one.
//!
//! Every line carries its host (`host=sim-00042`), a number of its own among that host's lines and
//! a checksum over everything else, the timestamp included:
//!
//! ```text
//! cpu,cpu=cpu3,dc=eu-west-1,host=sim-00042 usage_user=…,lg_seq=1000000017i,lg_sum=12345678901i 1795400726000000000
//! ```
//!
//! All three have a constant width, so that a rendered line is made anew by patching digits in
//! place.

use memchr::memmem;

/// What stands before the five digits of a host's number, in a tag.
const HOST: &[u8] = b",host=sim-";
const HOST_DIGITS: usize = 5;
const SEQUENCE: &[u8] = b",lg_seq=";
const SEQUENCE_DIGITS: usize = 10;
const SUM: &[u8] = b"i,lg_sum=";
const SUM_DIGITS: usize = 11;
const TIMESTAMP: &[u8] = b"i ";
const TIMESTAMP_DIGITS: usize = 19;

/// The largest number of hosts whose lines can be told apart.
pub const MAX_HOSTS: u32 = 100_000;
/// What is added to a sequence number and to a checksum, so that their widths are constant without
/// leading zeros.
const SEQUENCE_BASE: u64 = 1_000_000_000;
const SUM_BASE: u64 = 10_000_000_000;

/// The length of what [`finish`] appends.
pub(crate) const TAIL: usize =
    SEQUENCE.len() + SEQUENCE_DIGITS + SUM.len() + SUM_DIGITS + TIMESTAMP.len() + TIMESTAMP_DIGITS;

/// The host tag with its leading comma.
pub fn host_tag(host: u32) -> String {
    format!(",host=sim-{host:0HOST_DIGITS$}")
}

/// Appends the sequence, checksum and timestamp of a line under construction, all yet to be
/// patched.
pub fn finish(line: &mut Vec<u8>) {
    line.extend_from_slice(SEQUENCE);
    line.extend_from_slice(&[b'1'; SEQUENCE_DIGITS]);
    line.extend_from_slice(SUM);
    line.extend_from_slice(&[b'1'; SUM_DIGITS]);
    line.extend_from_slice(TIMESTAMP);
    line.extend_from_slice(&[b'1'; TIMESTAMP_DIGITS]);
}

/// Makes a finished line anew: its sequence number (from 0), its timestamp in nanoseconds, its
/// checksum.
pub fn patch(line: &mut [u8], sequence: u64, timestamp: u64) {
    let parts = Parts::of(line.len());
    write_digits(&mut line[parts.sequence..parts.sequence + SEQUENCE_DIGITS], SEQUENCE_BASE + sequence);
    write_digits(&mut line[parts.timestamp..], timestamp);
    let sum = SUM_BASE + u64::from(checksum(line, &parts));
    write_digits(&mut line[parts.sum..parts.sum + SUM_DIGITS], sum);
}

/// What a received line turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A whole line of ours.
    Whole {
        /// The host's number.
        host: u32,
        /// The line's number among the host's lines, from 0.
        sequence: u64,
        /// When it was sent, in nanoseconds since 1970.
        timestamp: u64,
    },
    /// A line that has the marks of ours but not its checksum.
    Altered,
    /// A line without the marks.
    Foreign,
}

/// Judges one received line, without its line feed.
pub fn verify(line: &[u8]) -> Verdict {
    let Some(host_at) = memmem::find(line, HOST).map(|at| at + HOST.len()) else {
        return Verdict::Foreign;
    };
    if memmem::find(line, SEQUENCE).is_none() {
        return Verdict::Foreign;
    }
    read(line, host_at).unwrap_or(Verdict::Altered)
}

fn read(line: &[u8], host_at: usize) -> Option<Verdict> {
    if line.len() < host_at + HOST_DIGITS + TAIL {
        return None;
    }
    let parts = Parts::of(line.len());
    let host = u32::try_from(read_digits(&line[host_at..host_at + HOST_DIGITS])?).ok()?;
    let sequence = read_digits(&line[parts.sequence..parts.sequence + SEQUENCE_DIGITS])?;
    let sum = read_digits(&line[parts.sum..parts.sum + SUM_DIGITS])?;
    let timestamp = read_digits(&line[parts.timestamp..])?;
    if sum != SUM_BASE + u64::from(checksum(line, &parts)) {
        return None;
    }
    Some(Verdict::Whole { host, sequence: sequence.checked_sub(SEQUENCE_BASE)?, timestamp })
}

/// Where a line's digits begin, counted back from its end.
struct Parts {
    sequence: usize,
    sum: usize,
    timestamp: usize,
}

impl Parts {
    fn of(length: usize) -> Self {
        let timestamp = length - TIMESTAMP_DIGITS;
        let sum = timestamp - TIMESTAMP.len() - SUM_DIGITS;
        let sequence = sum - SUM.len() - SEQUENCE_DIGITS;
        Self { sequence, sum, timestamp }
    }
}

/// The CRC-32 of all but the checksum's own digits.
fn checksum(line: &[u8], parts: &Parts) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&line[..parts.sum]);
    hasher.update(&line[parts.sum + SUM_DIGITS..]);
    hasher.finalize()
}

pub(crate) fn write_digits(place: &mut [u8], mut value: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b"0123456789"[usize::try_from(value % 10).unwrap_or(0)];
        value /= 10;
    }
}

pub(crate) fn read_digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0_u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Vec<u8> {
        let mut line = format!("cpu{} usage=1.5", host_tag(42)).into_bytes();
        finish(&mut line);
        patch(&mut line, 17, 1_795_400_726_000_000_000);
        line
    }

    #[test]
    fn a_whole_line_is_known_again() {
        let whole = Verdict::Whole { host: 42, sequence: 17, timestamp: 1_795_400_726_000_000_000 };
        assert_eq!(verify(&line()), whole);
    }

    #[test]
    fn a_change_of_any_byte_shows() {
        for at in 0..line().len() {
            let mut changed = line();
            changed[at] ^= 1;
            assert!(!matches!(verify(&changed), Verdict::Whole { .. }), "byte {at}");
        }
    }

    #[test]
    fn a_cut_line_and_a_strangers_line_are_told_apart() {
        let whole = line();
        assert_eq!(verify(&whole[..whole.len() - 1]), Verdict::Altered);
        assert_eq!(verify(b"cpu,host=web-01 usage=1 1"), Verdict::Foreign);
    }
}
