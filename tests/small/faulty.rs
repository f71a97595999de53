//! A disk that fails on command, loses what was not synced when its power is cut, and forgets a
//! file's dirty pages after a failed sync, as Linux does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use twinflux::journal::disk::{Identity, Misplaced, Space, Storage, StoredFile};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub(crate) struct FaultyDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    files: BTreeMap<String, u64>,
    synced_files: BTreeMap<String, u64>,
    contents: BTreeMap<u64, Content>,
    next: u64,
    /// Bytes of all files, at most.
    pub(crate) capacity: u64,
    /// As many of the next operations of the kind fail.
    pub(crate) failing_writes: u32,
    pub(crate) failing_syncs: u32,
    pub(crate) failing_reads: u32,
    /// So many reads come before those that fail.
    pub(crate) spared_reads: u32,
    pub(crate) failing_opens: u32,
    /// Slots cannot be written.
    pub(crate) fails_slots: bool,
    /// A sync of a segment waits until this is over.
    pub(crate) holds_syncs: bool,
    /// How many have waited so.
    pub(crate) held_syncs: u32,
    /// A write to a segment waits until this is over.
    pub(crate) holds_writes: bool,
    /// How many have waited so.
    pub(crate) held_writes: u32,
    /// Operations that change something, so far.
    pub(crate) operations: u64,
    /// From this operation on nothing happens any more.
    pub(crate) dies_at: Option<u64>,
    /// Files that were set aside.
    pub(crate) quarantine: Vec<String>,
    /// The folder was removed, and nobody has made a new one.
    folder_is_gone: bool,
    /// What was in it.
    moved: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors that a sync would write.
    dirty: BTreeSet<usize>,
    /// A sync failed: it must not be called again.
    failed: bool,
}

#[derive(Debug)]
struct Handle {
    disk: FaultyDisk,
    file: u64,
    is_slot: bool,
}

fn broken(what: &str) -> io::Error {
    io::Error::other(format!("{what} fails"))
}

impl FaultyDisk {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            files: BTreeMap::new(),
            synced_files: BTreeMap::new(),
            contents: BTreeMap::new(),
            next: 0,
            capacity: u64::MAX,
            failing_writes: 0,
            failing_syncs: 0,
            failing_reads: 0,
            spared_reads: 0,
            failing_opens: 0,
            fails_slots: false,
            holds_syncs: false,
            held_syncs: 0,
            holds_writes: false,
            held_writes: 0,
            operations: 0,
            dies_at: None,
            quarantine: Vec::new(),
            folder_is_gone: false,
            moved: BTreeMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic")
    }

    /// A copy that shares nothing.
    pub(crate) fn copy(&self) -> Self {
        let inner = self.inner();
        Self {
            inner: Arc::new(Mutex::new(Inner {
                files: inner.files.clone(),
                synced_files: inner.synced_files.clone(),
                contents: inner.contents.clone(),
                quarantine: inner.quarantine.clone(),
                moved: inner.moved.clone(),
                ..*inner
            })),
        }
    }

    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    /// All faults end.
    pub(crate) fn heal(&self) {
        let mut inner = self.inner();
        (inner.failing_writes, inner.failing_syncs, inner.failing_reads) = (0, 0, 0);
        (inner.capacity, inner.dies_at) = (u64::MAX, None);
    }

    /// The power fails: of what was not synced, what `survives` says is there.
    pub(crate) fn cut_power(&self, mut survives: impl FnMut() -> bool) {
        let inner = &mut *self.inner();
        for content in inner.contents.values_mut() {
            let mut after = content.synced.clone();
            for sector in std::mem::take(&mut content.dirty) {
                let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(content.bytes.len()));
                if survives() && from < to {
                    if after.len() < to {
                        after.resize(to, 0);
                    }
                    after[from..to].copy_from_slice(&content.bytes[from..to]);
                }
            }
            content.bytes.clone_from(&after);
            content.synced = after;
            content.failed = false;
        }
        let mut files = inner.synced_files.clone();
        for (name, file) in &inner.files {
            if !files.contains_key(name) && survives() {
                files.insert(name.clone(), *file);
            }
        }
        files.retain(|name, _| inner.files.contains_key(name) || survives());
        inner.files.clone_from(&files);
        inner.synced_files = files;
    }

    /// Somebody removes the folder. Files that are open can still be used.
    pub(crate) fn remove_folder(&self) {
        let mut inner = self.inner();
        inner.moved = std::mem::take(&mut inner.files);
        inner.synced_files.clear();
        inner.folder_is_gone = true;
    }

    /// The folder that was removed is there again.
    pub(crate) fn put_folder_back(&self) {
        let mut inner = self.inner();
        inner.files = std::mem::take(&mut inner.moved);
        inner.folder_is_gone = false;
    }

    /// Somebody puts another folder in its place.
    pub(crate) fn replace_folder(&self, other: &Self) {
        let other = other.inner();
        let inner = &mut *self.inner();
        let shift = inner.next;
        inner.next += other.next;
        inner.files = other.files.iter().map(|(name, file)| (name.clone(), file + shift)).collect();
        inner.synced_files.clone_from(&inner.files);
        inner.contents.extend(other.contents.iter().map(|(file, content)| (file + shift, content.clone())));
        inner.folder_is_gone = true;
    }

    /// The process ends, and with it what it knew.
    pub(crate) fn end_process(&self) {
        self.inner().contents.values_mut().for_each(|content| content.failed = false);
    }

    /// The names of the segments, oldest first.
    pub(crate) fn segments(&self) -> Vec<String> {
        self.inner().files.keys().filter(|name| name.ends_with(".segment")).cloned().collect()
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        let inner = self.inner();
        inner.contents[&inner.files[name]].bytes.clone()
    }

    /// Changes a file as a failing disk would: in place, and for good.
    pub(crate) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let file = inner.files[name];
        let content = inner.contents.get_mut(&file).expect("there");
        change(&mut content.bytes);
        content.synced = content.bytes.clone();
        content.dirty.clear();
    }

    pub(crate) fn delete(&self, name: &str) {
        let mut inner = self.inner();
        inner.files.remove(name);
        inner.synced_files.remove(name);
    }

    fn open_file(&self, file: u64, name: &str) -> Arc<dyn StoredFile> {
        Arc::new(Handle { disk: self.clone(), file, is_slot: !name.ends_with(".segment") })
    }
}

impl Inner {
    /// Counts an operation; fails where the machine has died.
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.dies_at.is_some_and(|at| self.operations > at) { Err(broken("everything")) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.files.values().map(|file| self.contents[file].bytes.len() as u64).sum()
    }
}

impl Storage for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().files.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let mut inner = self.inner();
        inner.operate()?;
        assert!(!inner.files.contains_key(name), "{name} is there already");
        let file = inner.next;
        inner.next += 1;
        inner.contents.insert(file, Content::default());
        inner.files.insert(name.to_owned(), file);
        drop(inner);
        Ok(self.open_file(file, name))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let mut inner = self.inner();
        if inner.failing_opens > 0 {
            inner.failing_opens -= 1;
            return Err(broken("opening"));
        }
        let file = inner.files.get(name).copied();
        drop(inner);
        Ok(self.open_file(file.ok_or(io::ErrorKind::NotFound)?, name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operate()?;
        inner.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn quarantine(&self, name: &str) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operate()?;
        inner.files.remove(name);
        inner.quarantine.push(name.to_owned());
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operate()?;
        inner.synced_files = inner.files.clone();
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let inner = self.inner();
        Ok(Space { free: inner.capacity.saturating_sub(inner.used()), total: inner.capacity })
    }

    fn misplaced(&self, file: Option<(&str, &dyn StoredFile)>) -> io::Result<Option<Misplaced>> {
        if self.inner().folder_is_gone {
            return Ok(Some(Misplaced::Folder("the folder was removed".to_owned())));
        }
        let Some((name, file)) = file else { return Ok(None) };
        let there = self.inner().files.get(name).copied();
        let is_there = there == Some(file.identity()?.1);
        Ok((!is_there).then(|| Misplaced::File(format!("{name} was removed"))))
    }

    fn renew(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.operate()?;
        inner.folder_is_gone = false;
        Ok(())
    }
}

impl StoredFile for Handle {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.disk.inner().contents[&self.file].bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.disk.inner();
        if !self.is_slot && inner.spared_reads > 0 {
            inner.spared_reads -= 1;
        } else if !self.is_slot && inner.failing_reads > 0 {
            inner.failing_reads -= 1;
            return Err(broken("reading"));
        }
        let bytes = &inner.contents[&self.file].bytes;
        let from = usize::try_from(offset).expect("small").min(bytes.len());
        let length = buffer.len().min(bytes.len() - from);
        buffer[..length].copy_from_slice(&bytes[from..from + length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if !self.is_slot && self.disk.inner().holds_writes {
            self.disk.inner().held_writes += 1;
            while self.disk.inner().holds_writes {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        let mut inner = self.disk.inner();
        inner.operate()?;
        if self.is_slot && inner.fails_slots {
            return Err(broken("saving"));
        }
        let mut length = bytes.len();
        let mut result = Ok(());
        if !self.is_slot && inner.failing_writes > 0 {
            inner.failing_writes -= 1;
            // What fails may have written a part.
            length /= 2;
            result = Err(broken("writing"));
        }
        let grows = (offset + length as u64).saturating_sub(inner.contents[&self.file].bytes.len() as u64);
        let room = inner.capacity.saturating_sub(inner.used());
        if grows > room && !self.is_slot {
            length = length.saturating_sub(usize::try_from(grows - room).expect("small"));
            result = Err(io::ErrorKind::StorageFull.into());
        }
        let content = inner.contents.get_mut(&self.file).expect("there");
        let from = usize::try_from(offset).expect("small");
        if content.bytes.len() < from + length {
            content.bytes.resize(from + length, 0);
        }
        content.bytes[from..from + length].copy_from_slice(&bytes[..length]);
        content.dirty.extend(from / SECTOR..(from + length).div_ceil(SECTOR));
        result
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok((0, self.file))
    }

    fn reserve(&self, _bytes: u64) {}

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.operate()?;
        let content = inner.contents.get_mut(&self.file).expect("there");
        let length = usize::try_from(bytes).expect("small");
        content.bytes.truncate(length);
        content.synced.truncate(length);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if !self.is_slot && self.disk.inner().holds_syncs {
            self.disk.inner().held_syncs += 1;
            while self.disk.inner().holds_syncs {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        let mut inner = self.disk.inner();
        inner.operate()?;
        let fails = inner.failing_syncs > 0;
        inner.failing_syncs = inner.failing_syncs.saturating_sub(1);
        let content = inner.contents.get_mut(&self.file).expect("there");
        assert!(!content.failed || self.is_slot, "a sync that failed is never repeated for the same file");
        content.failed = fails && !self.is_slot;
        let dirty = std::mem::take(&mut content.dirty);
        if fails {
            return Err(broken("syncing"));
        }
        for sector in dirty {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(content.bytes.len()));
            if content.synced.len() < to {
                content.synced.resize(to, 0);
            }
            if from < to {
                content.synced[from..to].copy_from_slice(&content.bytes[from..to]);
            }
        }
        Ok(())
    }
}
