//! Any bytes as the frames of a segment: they are walked through to the end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| twinflux::journal::fuzzing::frames(data));
