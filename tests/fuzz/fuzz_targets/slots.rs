//! Any bytes as a slot, and as what slots hold: they are read, or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| twinflux::journal::fuzzing::slots(data));
