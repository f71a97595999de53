//! What clients have sent of heads and lines that are not whole: nobody can have it all.
//!
//! Bounds: [`MOST_BYTES`] of all connections together. Past it, whoever has more than its share has no room.

use std::cell::Cell;
use std::rc::Rc;

/// What all connections keep together, in bytes, before those with more than their share have no room.
const MOST_BYTES: usize = 16 << 20;

/// What all connections of a listener keep, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct All(Rc<Cell<usize>>);

impl All {
    /// The part of one that keeps nothing yet.
    pub(super) fn part(&self) -> Part {
        Part { all: self.clone(), bytes: 0 }
    }
}

/// What one of them keeps; nothing once it is gone.
#[derive(Debug)]
pub(super) struct Part {
    all: All,
    bytes: usize,
}

impl Part {
    /// Keeps so many bytes now, as one of so many. False if there is no room for it.
    pub(super) fn set(&mut self, bytes: usize, sharers: usize) -> bool {
        let all = self.all.0.get() - self.bytes + bytes;
        self.all.0.set(all);
        self.bytes = bytes;
        all <= MOST_BYTES || bytes <= MOST_BYTES / sharers.max(1)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.0.set(self.all.0.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_with_more_than_their_share_have_no_room_once_all_is_taken() {
        let all = All::default();
        let mut parts: Vec<Part> = (0..4).map(|_| all.part()).collect();
        assert!(parts[0].set(MOST_BYTES, 4), "there is room as long as there is");
        assert!(parts[1].set(MOST_BYTES / 4, 4), "everybody has a share");
        assert!(!parts[2].set(MOST_BYTES / 4 + 1, 4));
        assert!(!parts[0].set(MOST_BYTES, 4));
        parts.drain(..1);
        assert!(parts[1].set(MOST_BYTES / 4 + 1, 4), "what is gone keeps nothing");
        parts.clear();
        assert_eq!(all.0.get(), 0);
    }
}
