//! The keys of one line's tags, to find duplicates.
//!
//! Owns: the offsets of keys in a text that the caller holds. Never does: holding text, allocating.
//!
//! A few keys are compared with each other by length and first byte, which is cheaper than any hash
//! for the tags that hosts have. A line with more than [`FEW`] keys, or with several that look
//! alike, uses a table keyed by a hash whose seed no sender knows. The work per key is therefore
//! bounded, whatever the keys are.
//!
//! Bounds: [`MAX_KEYS`] keys, at most [`MAX_COMPARED`] comparisons of texts before the table is
//! used.

use std::hash::{BuildHasher, RandomState};

/// Maximum number of keys in a line.
pub(super) const MAX_KEYS: usize = 256;
/// Up to this many keys are compared with each other.
const FEW: u16 = 16;
/// After this many keys of one line that looked like another one, the keys are hashed.
const MAX_COMPARED: u16 = 4;
/// Slots of the table. At most half of them are in use, which keeps searches short.
const SLOTS: usize = 2 * MAX_KEYS;
/// Bytes that the hash consumes in one step.
const WORD: usize = 8;

/// The keys of the current line.
#[derive(Debug)]
pub(super) struct Keys {
    count: usize,
    effort: Effort,
    /// For each key, its length and first byte or, once keys are hashed, a part of its hash.
    prints: [u32; MAX_KEYS],
    starts: [u32; MAX_KEYS],
    /// For each key, its length, once keys are hashed.
    lengths: [u32; MAX_KEYS],
    /// A line's number, with the index of a key of that line in the lowest byte. Slots of other
    /// lines are free.
    slots: [u32; SLOTS],
    /// The number of the last line whose keys were hashed; the lowest byte is 0.
    line: u32,
    seed: u64,
}

/// The work spent on the current line, and its limit.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Keys beyond this number are hashed; 0 if all are.
    few: u16,
    /// Texts compared so far.
    compared: u16,
}

/// The result of adding a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// The key is new and was added.
    New,
    /// The line already has the key.
    Twice,
    /// The line already has the maximum number of keys.
    TooMany,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            count: 0,
            effort: Effort::NONE,
            prints: [0; MAX_KEYS],
            starts: [0; MAX_KEYS],
            lengths: [0; MAX_KEYS],
            slots: [0; SLOTS],
            line: 0,
            seed: RandomState::new().hash_one(0),
        }
    }
}

impl Effort {
    const NONE: Self = Self { few: FEW, compared: 0 };
}

impl Keys {
    /// Removes all keys, for a new line.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.effort = Effort::NONE;
    }

    /// Returns the number of keys.
    #[inline]
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Adds the key from `start` to `end`, which must not be empty. All keys of a line must be in
    /// the same text.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "one text is far below 4 GiB; a print need not be exact")]
    pub(super) fn add(&mut self, text: &[u8], start: usize, end: usize) -> Added {
        if self.count >= usize::from(self.effort.few) {
            return self.add_hashed(text, start, end);
        }
        let key = &text[start..end];
        let print = (key.len() as u32) << 8 | u32::from(key[0]);
        for index in 0..self.count {
            if self.prints[index] == print {
                let other = self.starts[index] as usize;
                if &text[other..other + key.len()] == key {
                    return Added::Twice;
                }
                self.effort.compared += 1;
                if self.effort.compared == MAX_COMPARED {
                    return self.add_hashed(text, start, end);
                }
            }
        }
        self.prints[self.count] = print;
        self.starts[self.count] = start as u32;
        self.count += 1;
        Added::New
    }

    /// Adds a key by its hash.
    #[cold]
    #[inline(never)]
    #[expect(clippy::cast_possible_truncation, reason = "one text is far below 4 GiB; a print is a part of the hash")]
    fn add_hashed(&mut self, text: &[u8], start: usize, end: usize) -> Added {
        if self.effort.few > 0 {
            self.hash_all(text);
        }
        let hash = hash(self.seed, text, start, end);
        let (print, mut slot) = ((hash >> 32) as u32, hash as usize % SLOTS);
        // Half of the slots are free, so the search ends.
        while self.slots[slot] & !0xff == self.line {
            let index = (self.slots[slot] & 0xff) as usize;
            let other = self.starts[index] as usize..(self.starts[index] + self.lengths[index]) as usize;
            if self.prints[index] == print && text[other] == text[start..end] {
                return Added::Twice;
            }
            slot = (slot + 1) % SLOTS;
        }
        if self.count == MAX_KEYS {
            return Added::TooMany;
        }
        self.slots[slot] = self.line | self.count as u32;
        self.prints[self.count] = print;
        self.starts[self.count] = start as u32;
        self.lengths[self.count] = (end - start) as u32;
        self.count += 1;
        Added::New
    }

    /// Hashes the keys so far, which are all distinct, and switches to hashing for those to come.
    #[cold]
    #[inline(never)]
    #[expect(clippy::cast_possible_truncation, reason = "a print is a part of the hash; an index is below 256")]
    fn hash_all(&mut self, text: &[u8]) {
        self.effort.few = 0;
        self.line = self.line.wrapping_add(0x100);
        if self.line == 0 {
            // The line numbers wrapped: no slot of an earlier line may be taken for one of this
            // line.
            self.slots.fill(0);
            self.line = 0x100;
        }
        for index in 0..self.count {
            self.lengths[index] = self.prints[index] >> 8;
            let start = self.starts[index] as usize;
            let hash = hash(self.seed, text, start, start + self.lengths[index] as usize);
            let mut slot = hash as usize % SLOTS;
            while self.slots[slot] & !0xff == self.line {
                slot = (slot + 1) % SLOTS;
            }
            self.slots[slot] = self.line | index as u32;
            self.prints[index] = (hash >> 32) as u32;
        }
    }
}

/// A hash that is unpredictable without the seed: it multiplies each word and folds both halves of
/// the product.
#[inline]
fn hash(seed: u64, text: &[u8], start: usize, end: usize) -> u64 {
    let (mut state, mut at) = (seed ^ (end - start) as u64, start);
    while at < end {
        state = mix(state ^ word(text, at, end), seed | 1);
        at += WORD;
    }
    mix(state, 0x9e37_79b9_7f4a_7c15)
}

/// Returns up to eight bytes from `at` as a number; bytes from `end` on are 0.
#[inline]
fn word(text: &[u8], at: usize, end: usize) -> u64 {
    if let Some(bytes) = text.get(at..).and_then(<[u8]>::first_chunk::<WORD>) {
        let word = u64::from_le_bytes(*bytes);
        return if end - at >= WORD { word } else { word & ((1 << (8 * (end - at))) - 1) };
    }
    text[at..end].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves of the product are taken")]
fn mix(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Adds keys to a new line; returns the result for each.
    fn add(keys: &mut Keys, line: &[String]) -> Vec<Added> {
        let text = line.concat();
        keys.clear();
        let mut start = 0;
        let added = line.iter().map(|key| {
            let added = keys.add(text.as_bytes(), start, start + key.len());
            start += key.len();
            added
        });
        added.collect()
    }

    #[test]
    fn keys_that_look_alike_are_told_apart() {
        let mut keys = Keys::default();
        for length in [2, 8, 9, 40] {
            let line: Vec<String> = (0..MAX_KEYS).map(|n| format!("a{n:0>width$x}", width = length.max(3))).collect();
            assert_eq!(add(&mut keys, &line), [Added::New; MAX_KEYS]);
            assert_eq!(keys.count(), MAX_KEYS);
            let more = [&line[..], &["b".to_owned(), line[7].clone()]].concat();
            assert_eq!(add(&mut keys, &more)[MAX_KEYS..], [Added::TooMany, Added::Twice]);
            // Keys of another line are not known, however often keys were hashed before.
            assert_eq!(add(&mut keys, &line[..40]), [Added::New; 40]);
        }
    }

    #[test]
    fn the_work_for_a_key_is_bounded_whatever_the_keys_are() {
        let mut keys = Keys::default();
        for alike in [true, false] {
            let first = |n: u32| if alike { 'a' } else { char::from_u32(0x61 + n % 26).expect("a letter") };
            let line: Vec<String> = (0..200).map(|n| format!("{}{n:03}", first(n))).collect();
            add(&mut keys, &line);
            assert!(keys.effort.few == 0 && keys.effort.compared <= MAX_COMPARED, "{:?}", keys.effort);
        }
        let line: Vec<String> = (0..16).map(|n| format!("{}x", char::from(b'a' + n))).collect();
        add(&mut keys, &line);
        assert_eq!((keys.effort.few, keys.effort.compared), (FEW, 0), "an ordinary line's keys are not hashed");
    }

    #[test]
    fn line_numbers_that_begin_again_know_no_old_key() {
        let mut keys = Keys::default();
        let line: Vec<String> = (0..20).map(|n| format!("a{n:02}")).collect();
        assert_eq!(add(&mut keys, &line), [Added::New; 20]);
        keys.line = !0xff;
        for _ in 0..3 {
            assert_eq!(add(&mut keys, &line), [Added::New; 20]);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_as_a_set_tells(line in prop::collection::vec("[ab]{1,3}|[abc]{7,10}", 0..300)) {
            let mut known = std::collections::HashSet::new();
            let expected: Vec<Added> = line.iter().map(|key| {
                if known.contains(key) {
                    Added::Twice
                } else if known.len() == MAX_KEYS {
                    Added::TooMany
                } else {
                    known.insert(key.clone());
                    Added::New
                }
            }).collect();
            let mut keys = Keys::default();
            prop_assert_eq!(add(&mut keys, &line), expected);
        }
    }
}
