//! Captured traffic of real senders (`tests/captures`).

#![allow(unreachable_pub, reason = "several test programs use it")]

use std::io::Read;
use std::path::Path;

/// The frames of a captured file: datagrams, or pieces of a stream.
pub fn frames(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/captures/{name}.bin.gz"));
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("gzip");
    let (mut frames, mut rest) = (Vec::new(), &bytes[..]);
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (frame, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        frames.push(frame.to_vec());
        rest = behind;
    }
    assert!(rest.is_empty() && !frames.is_empty());
    frames
}
