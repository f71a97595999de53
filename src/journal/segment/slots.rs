//! A small state in three files, one of which is always whole and synced.
//!
//! | at | bytes | slot |
//! |---|---|---|
//! | 0 | 8 | `TWFXSLOT` |
//! | 8 | 2 | format: 1 |
//! | 10 | 2 | what it holds: 1 = cursors, 2 = gaps |
//! | 12 | 4 | bytes of the body, at most 64 MiB |
//! | 16 | 8 | generation: the sound slot with the highest one is the state |
//! | 24 | 8 | the journal's identity |
//! | 32 | 4 | CRC-32C of the header, with these four as 0, and the body |
//! | 36 | 4 | 0 |
//!
//! The body follows; bytes after it mean nothing. There are three slots, because at any moment one
//! may be written while another is being synced. A power cut then still leaves the third, which was
//! synced before.

use std::io;
use std::sync::Arc;

use super::storage::{Storage, StoredFile};

const MAGIC: &[u8; 8] = b"TWFXSLOT";
const FORMAT: u16 = 1;
const HEADER_BYTES: usize = 40;
const MAX_BODY_BYTES: usize = 64 << 20;
const SLOTS: usize = 3;

/// What slots hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::journal) enum Kind {
    Cursors = 1,
    Gaps = 2,
}

impl Kind {
    fn file_name(self, slot: usize) -> String {
        let base = match self {
            Self::Cursors => "cursors",
            Self::Gaps => "gaps",
        };
        format!("{base}-{slot}")
    }
}

/// Whether a file of this name is a slot.
pub(in crate::journal) fn is_slot(name: &str) -> bool {
    [Kind::Cursors, Kind::Gaps].iter().any(|kind| (0..SLOTS).any(|slot| kind.file_name(slot) == name))
}

/// What a slot held.
#[derive(Debug)]
pub(in crate::journal) struct Found {
    pub(in crate::journal) journal: u64,
    pub(in crate::journal) body: Vec<u8>,
    generation: u64,
    slot: usize,
}

/// Reads the newest sound slot. Returns `None` if there is none.
///
/// # Errors
/// A newer version wrote it.
pub(in crate::journal) fn load(storage: &dyn Storage, kind: Kind) -> Result<Option<Found>, Newer> {
    let mut best: Option<Found> = None;
    for slot in 0..SLOTS {
        let Ok(bytes) = storage.open(&kind.file_name(slot)).and_then(|file| read(&*file)) else { continue };
        let Some(Slot { generation, journal, body }) = decode(kind, &bytes)? else { continue };
        if best.as_ref().is_none_or(|best| best.generation < generation) {
            best = Some(Found { journal, body: body.to_vec(), generation, slot });
        }
    }
    Ok(best)
}

/// A newer version wrote a slot.
#[derive(Debug, thiserror::Error)]
#[error("a newer version wrote the slot")]
pub(in crate::journal) struct Newer;

/// Writes the slots of one kind.
#[derive(Debug)]
pub(in crate::journal) struct Slots {
    kind: Kind,
    journal: u64,
    files: Vec<Arc<dyn StoredFile>>,
    generation: u64,
    current: usize,
    /// Whether the current slot was written since the last sync.
    is_dirty: bool,
    /// The slot synced last; it is not written to.
    synced: Option<usize>,
}

/// A slot to be synced.
#[derive(Debug)]
pub(in crate::journal) struct Unsynced {
    pub(in crate::journal) file: Arc<dyn StoredFile>,
    slot: usize,
}

impl Slots {
    /// Opens the files, creating those that are missing. `found` is what was loaded.
    ///
    /// # Errors
    /// The disk fails.
    pub(in crate::journal) fn open(
        storage: &dyn Storage,
        kind: Kind,
        journal: u64,
        found: Option<&Found>,
    ) -> io::Result<Self> {
        let open = |slot| {
            let name = kind.file_name(slot);
            match storage.open(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => storage.create(&name),
                opened => opened,
            }
        };
        let files: Vec<Arc<dyn StoredFile>> = (0..SLOTS).map(open).collect::<io::Result<_>>()?;
        for file in &files {
            discard_damaged(&**file, kind);
        }
        // An earlier process may have ended before it synced this slot. The next write avoids it
        // for that reason.
        if let Some(Err(error)) = found.map(|found| files[found.slot].sync()) {
            tracing::warn!(%error, "cannot sync what the journal is opened with");
        }
        let (generation, current) = found.map_or((0, 0), |found| (found.generation, (found.slot + 1) % SLOTS));
        let synced = found.map(|found| found.slot);
        Ok(Self { kind, journal, files, generation, current, is_dirty: false, synced })
    }

    /// Writes a newer state.
    ///
    /// # Errors
    /// The disk fails; the older state remains.
    pub(in crate::journal) fn write(&mut self, body: &[u8]) -> io::Result<()> {
        self.generation += 1;
        self.files[self.current].write_at(&encode(self.kind, self.generation, self.journal, body), 0)?;
        self.is_dirty = true;
        Ok(())
    }

    /// Takes the slot to sync, if anything was written since the last call. Later writes go to a
    /// slot that is neither this one nor the one synced last.
    pub(in crate::journal) fn take_unsynced(&mut self) -> Option<Unsynced> {
        if !std::mem::take(&mut self.is_dirty) {
            return None;
        }
        let slot = self.current;
        self.current = (0..SLOTS).find(|other| *other != slot && Some(*other) != self.synced).unwrap_or(slot);
        Some(Unsynced { file: Arc::clone(&self.files[slot]), slot })
    }

    /// Notes that a slot was synced.
    pub(in crate::journal) fn note_synced(&mut self, unsynced: &Unsynced) {
        self.synced = Some(unsynced.slot);
    }
}

/// Empties an unsound slot. Otherwise a later write that a power cut leaves half done could make it
/// pass as whole.
fn discard_damaged(file: &dyn StoredFile, kind: Kind) {
    let emptied = read(file).and_then(|bytes| match decode(kind, &bytes) {
        Ok(None) if !bytes.is_empty() => file.truncate(0).and_then(|()| file.sync()),
        _ => Ok(()),
    });
    if let Err(error) = emptied {
        tracing::warn!(%error, "cannot empty a damaged slot of the journal");
    }
}

pub(in crate::journal) fn encode(kind: Kind, generation: u64, journal: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&(kind as u16).to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&journal.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    let crc = crc32c::crc32c(&bytes);
    bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A sound slot.
struct Slot<'a> {
    generation: u64,
    journal: u64,
    body: &'a [u8],
}

fn decode(kind: Kind, bytes: &[u8]) -> Result<Option<Slot<'_>>, Newer> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let number = |at: usize, length: usize| {
        header[at..at + length].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let length = usize::try_from(number(12, 4)).unwrap_or(usize::MAX);
    if &header[..8] != MAGIC || length > MAX_BODY_BYTES {
        return Ok(None);
    }
    let Some(body) = bytes[HEADER_BYTES..].get(..length) else { return Ok(None) };
    let mut clean = *header;
    clean[32..36].fill(0);
    if u64::from(crc32c::crc32c_append(crc32c::crc32c(&clean), body)) != number(32, 4) {
        return Ok(None);
    }
    if number(8, 2) > u64::from(FORMAT) {
        return Err(Newer);
    }
    let slot = Slot { generation: number(16, 8), journal: number(24, 8), body };
    Ok((number(10, 2) == kind as u64).then_some(slot))
}

/// The body of a slot with these bytes.
#[cfg(any(test, fuzzing))]
pub(in crate::journal) fn body_of(kind: Kind, bytes: &[u8]) -> Option<Vec<u8>> {
    decode(kind, bytes).ok().flatten().map(|slot| slot.body.to_vec())
}

fn read(file: &dyn StoredFile) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.bytes()?).unwrap_or(usize::MAX).min(HEADER_BYTES + MAX_BODY_BYTES);
    let mut bytes = vec![0; length];
    let filled = file.read_at(&mut bytes, 0)?;
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::segment::storage::Folder;

    /// The state that remains if a power cut tears every slot except the synced one.
    fn survivor(folder: &std::path::Path, synced: usize) -> Vec<u8> {
        let bytes = std::fs::read(folder.join(Kind::Cursors.file_name(synced))).expect("a slot");
        decode(Kind::Cursors, &bytes).ok().flatten().expect("a sound slot").body.to_vec()
    }

    /// Many turns of writes, syncs that end, syncs that fail, and restarts: the slot synced last
    /// never changes.
    #[test]
    fn the_slot_that_was_synced_last_is_never_written() {
        let folder = tempfile::tempdir().expect("folder");
        let storage = Folder::open(folder.path()).expect("open");
        let mut slots = Slots::open(&storage, Kind::Cursors, 7, None).expect("open");
        let mut synced: Option<(usize, Vec<u8>)> = None;
        let mut random = fastrand::Rng::with_seed(5);
        let mut syncing: Option<(Unsynced, Vec<u8>)> = None;
        let mut body = Vec::new();
        for turn in 0..2000_u32 {
            match random.u8(..8) {
                0..4 => {
                    body = turn.to_le_bytes().to_vec();
                    slots.write(&body).expect("write");
                }
                4 if syncing.is_none() => {
                    syncing = slots.take_unsynced().map(|unsynced| (unsynced, body.clone()));
                }
                5 => {
                    if let Some((unsynced, body)) = syncing.take() {
                        slots.note_synced(&unsynced);
                        synced = Some((unsynced.slot, body));
                    }
                }
                // The sync failed.
                6 => syncing = None,
                7 if turn % 5 == 0 => {
                    syncing = None;
                    let found = load(&storage, Kind::Cursors).ok().flatten();
                    slots = Slots::open(&storage, Kind::Cursors, 7, found.as_ref()).expect("open");
                    // A start syncs the slot it finds.
                    synced = found.map(|found| (found.slot, found.body));
                }
                _ => {}
            }
            if let Some((slot, body)) = &synced {
                assert_eq!(survivor(folder.path(), *slot), *body, "turn {turn}");
            }
            if let Some((unsynced, body)) = &syncing {
                assert_eq!(
                    survivor(folder.path(), unsynced.slot),
                    *body,
                    "turn {turn}: what is being synced stays, too"
                );
            }
        }
        assert!(synced.is_some());
    }

    fn state(storage: &Folder) -> Option<Vec<u8>> {
        load(storage, Kind::Gaps).ok().flatten().map(|found| found.body)
    }

    #[test]
    fn the_slot_that_was_written_last_is_the_state_whichever_it_is() {
        let folder = tempfile::tempdir().expect("folder");
        let storage = Folder::open(folder.path()).expect("open");
        assert_eq!(state(&storage), None);
        for round in 0..3 {
            let found = load(&storage, Kind::Gaps).ok().flatten();
            let mut slots = Slots::open(&storage, Kind::Gaps, 7, found.as_ref()).expect("open");
            assert!(slots.take_unsynced().is_none(), "nothing was written");
            for turn in 0..5_u8 {
                let body = [round, turn];
                slots.write(&body).expect("write");
                assert_eq!(state(&storage).as_deref(), Some(&body[..]));
                let unsynced = slots.take_unsynced().expect("a slot");
                assert!(slots.take_unsynced().is_none(), "it is being synced");
                slots.note_synced(&unsynced);
            }
        }
    }

    #[test]
    fn slots_are_known_by_their_names() {
        for (name, expected) in [
            ("cursors-0", true),
            ("cursors-2", true),
            ("gaps-0", true),
            ("gaps-2", true),
            ("gaps-3", false),
            ("gaps", false),
            ("others-0", false),
            ("", false),
        ] {
            assert_eq!(is_slot(name), expected, "{name}");
        }
    }

    /// A slot with these bytes in its header at this offset, and a matching checksum.
    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut slot = encode(Kind::Gaps, 5, 7, b"body");
        slot[at..at + bytes.len()].copy_from_slice(bytes);
        slot[32..36].fill(0);
        let crc = crc32c::crc32c(&slot);
        slot[32..36].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    #[test]
    fn only_what_a_slots_header_says_rightly_is_taken() {
        let taken = |bytes: &[u8]| {
            decode(Kind::Gaps, bytes).map(|slot| slot.map(|slot| (slot.generation, slot.journal, slot.body.to_vec())))
        };
        let whole = with(0, MAGIC);
        assert_eq!(taken(&whole).ok().flatten(), Some((5, 7, b"body".to_vec())));
        assert_eq!(taken(&[&whole[..], b"older"].concat()).ok().flatten(), Some((5, 7, b"body".to_vec())));
        for end in 0..whole.len() {
            assert!(matches!(taken(&whole[..end]), Ok(None)), "cut at {end}");
        }
        for other in [with(0, b"TWFXSEGM"), with(10, &[Kind::Cursors as u8]), with(12, &[5]), with(12, &[0xff; 4])] {
            assert!(matches!(taken(&other), Ok(None)), "{other:?}");
        }
        for (format, is_newer) in [(0, false), (1, false), (2, true), (256, true)] {
            assert_eq!(taken(&with(8, &u16::to_le_bytes(format))).is_err(), is_newer, "format {format}");
        }
    }

    #[test]
    fn a_damaged_slot_is_emptied_before_anything_is_written_and_a_sound_one_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |slot| folder.path().join(Kind::Gaps.file_name(slot));
        let mut damaged = with(0, MAGIC);
        damaged[HEADER_BYTES] ^= 1;
        std::fs::write(path(0), &damaged).expect("write");
        std::fs::write(path(1), with(0, MAGIC)).expect("write");
        let storage = Folder::open(folder.path()).expect("open");
        let found = load(&storage, Kind::Gaps).ok().flatten().expect("a sound slot");
        Slots::open(&storage, Kind::Gaps, 7, Some(&found)).expect("open");
        let left = [0, 1, 2].map(|slot| std::fs::read(path(slot)).expect("a slot"));
        assert_eq!(left, [Vec::new(), with(0, MAGIC), Vec::new()]);
    }
}
