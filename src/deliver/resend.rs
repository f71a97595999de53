//! Resends dead letters: makes each pending once more for the backend that rejected it.
//!
//! A letter is kept until the backend has accepted or rejected it again, so a crash in between
//! loses nothing.
//!
//! Never does: change or remove a letter. Bounds: 1,000 lines per record, and the size of
//! letters being resent (see [`DeadLetters`]).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::dead_letters::{DeadLetters, Filter, Letter};
use crate::batch::{Batch, Destination, Received};
use crate::journal::{BackendId, Journal};
use crate::protocol::Precision;

/// Maximum number of lines in a record.
const RECORD_LINES: usize = 1000;

/// Makes the matching letters pending for their backends (`names`, in the journal's order), as many
/// as may be held in memory. Returns how many there were, and whether they are all. Letters of
/// removed backends stay where they are.
///
/// # Errors
/// The letters cannot be read.
pub fn resend(letters: &DeadLetters, journal: &Journal, names: &[&str], filter: &Filter) -> io::Result<(u64, bool)> {
    let (taken, is_all) = letters.take(filter, names)?;
    let alike = |one: &Letter, other: &Letter| {
        let index = |letter: &Letter| {
            let Letter { backend, database, retention_policy, precision, .. } = letter;
            (backend.clone(), database.clone(), retention_policy.clone(), precision.clone())
        };
        index(one) == index(other)
    };
    for alike in taken.chunk_by(alike) {
        for letters in alike.chunks(RECORD_LINES) {
            let Letter { backend, database, retention_policy, precision, .. } = &letters[0];
            let index = names.iter().position(|name| name == backend);
            let (Some(index), Ok(precision)) = (index, precision.parse::<Precision>()) else {
                continue;
            };
            let (database, retention_policy) = (database.clone(), retention_policy.clone());
            let bytes: Bytes =
                letters.iter().flat_map(|letter| [letter.line.as_str(), "\n"]).collect::<String>().into();
            let batch = Batch::new(
                Arc::new(Destination::new(database, retention_policy, precision)),
                bytes,
                letters.len() as u64,
                Received::now(),
            );
            journal.resend(BackendId::new(index), batch, letters.iter().map(|letter| letter.id).collect());
        }
    }
    Ok((taken.len() as u64, is_all))
}
