//! Recycled buffers: a sealed batch takes its buffer, and returns it when the last backend is done.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;

/// Idle buffers of one size; the number is bounded.
#[derive(Debug)]
pub struct Pool {
    idle: ArrayQueue<Vec<u8>>,
    buffer_bytes: usize,
}

impl Pool {
    /// Creates an empty pool that keeps at most `idle` buffers of `buffer_bytes` each.
    pub fn new(idle: usize, buffer_bytes: usize) -> Arc<Self> {
        Arc::new(Self { idle: ArrayQueue::new(idle), buffer_bytes })
    }

    /// Returns the size of each buffer.
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Returns an empty buffer: an idle one, or a new one if there is none.
    pub(super) fn take(&self) -> Vec<u8> {
        self.idle.pop().unwrap_or_else(|| Vec::with_capacity(self.buffer_bytes))
    }

    /// Returns an unused buffer to the pool.
    pub(super) fn requeue(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        // A full pool frees the buffer.
        drop(self.idle.push(buffer));
    }

    /// Makes a filled buffer immutable; it returns to the pool when its last reference is dropped.
    pub(super) fn freeze(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Pooled { buffer, home: Arc::clone(self) })
    }
}

struct Pooled {
    buffer: Vec<u8>,
    home: Arc<Pool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.home.requeue(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_reference_is_gone() {
        let pool = Pool::new(1, 64);
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"m v=1\n");
        let index = buffer.as_ptr();
        let bytes = pool.freeze(buffer);
        let copy = bytes.clone();
        drop(bytes);
        assert_eq!(pool.idle.len(), 0);
        assert_eq!(&copy[..], b"m v=1\n");
        drop(copy);
        let again = pool.take();
        assert_eq!(again.as_ptr(), index);
        assert!(again.is_empty());
    }

    #[test]
    fn no_more_idle_buffers_are_kept_than_agreed() {
        let pool = Pool::new(1, 64);
        let (one, two) = (pool.take(), pool.take());
        drop((pool.freeze(one), pool.freeze(two)));
        assert_eq!(pool.idle.len(), 1);
    }
}
