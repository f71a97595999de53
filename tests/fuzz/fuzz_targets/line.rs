//! Any bytes at all: the scanner walks through, and what it accepts it accepts again.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz line`
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinflux::protocol::{Precision, Scanner};

fuzz_target!(|input: &[u8]| {
    let mut scanner = Scanner::new(Precision::Nanoseconds);
    let accepted: Vec<Vec<u8>> = scanner.lines(input, false).flatten().map(|line| line.bytes.to_vec()).collect();
    let joined = accepted.join(&b'\n');
    let again: Vec<Vec<u8>> =
        scanner.lines(&joined, false).map(|line| line.expect("accepted before").bytes.to_vec()).collect();
    assert_eq!(accepted, again);
});
