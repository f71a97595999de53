//! What the journal needs of a disk: a small trait, so that tests can use a failing disk, and a
//! folder.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where unreadable files go.
const QUARANTINE: &str = "quarantine";
/// Most files in quarantine. Further files stay where they are.
const MAX_QUARANTINED: usize = 100;

/// One folder of files.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Lists the names of its files, in any order.
    ///
    /// # Errors
    /// The system fails.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates a file that does not exist yet.
    ///
    /// # Errors
    /// The system fails.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// The system fails.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>>;

    /// Removes a file.
    ///
    /// # Errors
    /// The system fails.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Moves an unreadable file out of the way.
    ///
    /// # Errors
    /// The system fails.
    fn quarantine(&self, name: &str) -> io::Result<()>;

    /// Makes file creations, moves and removals so far survive a power cut.
    ///
    /// # Errors
    /// The system fails.
    fn sync_folder(&self) -> io::Result<()>;

    /// Returns the volume's space.
    ///
    /// # Errors
    /// The system fails.
    fn space(&self) -> io::Result<Space>;

    /// Returns what is no longer where it was opened: the folder, or this file under this name.
    /// Somebody may have removed or replaced it. `None` if all is in place.
    ///
    /// # Errors
    /// The system fails; then it is unknown.
    fn misplaced(&self, file: Option<(&str, &dyn StoredFile)>) -> io::Result<Option<Misplaced>>;

    /// Creates the folder again where it was, unless there is one, and uses it from now on.
    ///
    /// # Errors
    /// The system fails.
    fn renew(&self) -> io::Result<()>;
}

/// What is no longer in place, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// The folder, and everything in it.
    Folder(String),
    /// One file.
    File(String),
}

/// Identifies a file or folder: its device and its inode.
pub type Identity = (u64, u64);

/// One file.
pub trait StoredFile: Send + Sync + fmt::Debug {
    /// Returns its length in bytes.
    ///
    /// # Errors
    /// The system fails.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills the buffer from this offset on, with less only at the file's end. Returns the number
    /// of bytes read.
    ///
    /// # Errors
    /// The system fails.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes at an offset.
    ///
    /// # Errors
    /// The system fails; some of the bytes may be written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns its identity.
    ///
    /// # Errors
    /// The system fails.
    fn identity(&self) -> io::Result<Identity>;

    /// Asks for space in advance, so that it need not be allocated piece by piece. A hint: nothing
    /// depends on it.
    fn reserve(&self, bytes: u64);

    /// Truncates the file.
    ///
    /// # Errors
    /// The system fails.
    fn truncate(&self, bytes: u64) -> io::Result<()>;

    /// Makes everything written so far survive a power cut. After an error it must not be called
    /// again for this file: the system has dropped what it could not write, and would report
    /// success ("Can Applications Recover from fsync Failures?", USENIX ATC 2020).
    ///
    /// # Errors
    /// The system fails.
    fn sync(&self) -> io::Result<()>;
}

/// A volume's space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free for this process.
    pub free: u64,
    /// In total.
    pub total: u64,
}

/// A folder of the file system, with mode 0700; its files have mode 0600.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    handle: Mutex<Arc<File>>,
}

impl Folder {
    /// Opens the folder, creating it if missing.
    ///
    /// # Errors
    /// The system fails.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), handle: Mutex::new(Arc::new(open_folder(path)?)) })
    }

    fn handle(&self) -> Arc<File> {
        Arc::clone(&self.handle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open_with(&self, name: &str, options: &mut OpenOptions) -> io::Result<Arc<dyn StoredFile>> {
        Ok(Arc::new(options.read(true).write(true).mode(0o600).open(self.path.join(name))?))
    }
}

/// Opens a folder, creating it if missing.
fn open_folder(path: &Path) -> io::Result<File> {
    let is_new = !path.exists();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if let (true, Some(parent)) = (is_new, path.parent()) {
        File::open(parent)?.sync_all()?;
    }
    File::open(path)
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// What is wrong with a path that should lead to `opened`. `None` if it does.
fn is_elsewhere(path: &Path, opened: Identity) -> io::Result<Option<String>> {
    use io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::metadata(path) {
        Ok(there) if identity(&there) == opened => Ok(None),
        Ok(_) => Ok(Some(format!("{} was replaced", path.display()))),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {
            Ok(Some(format!("{} was removed", path.display())))
        }
        Err(error) => Err(error),
    }
}

impl Storage for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        self.open_with(name, OpenOptions::new().create_new(true))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        match self.open_with(name, &mut OpenOptions::new()) {
            // A failed disk is often remounted read-only, and that is when somebody wants to
            // inspect it.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Ok(Arc::new(File::open(self.path.join(name))?))
            }
            opened => opened,
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn quarantine(&self, name: &str) -> io::Result<()> {
        let quarantine = self.path.join(QUARANTINE);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&quarantine)?;
        if std::fs::read_dir(&quarantine)?.count() >= MAX_QUARANTINED {
            return Err(io::Error::other(format!(
                "{} holds {MAX_QUARANTINED} files: look at them",
                quarantine.display()
            )));
        }
        std::fs::rename(self.path.join(name), quarantine.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.handle().sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let volume = rustix::fs::fstatvfs(self.handle())?;
        Ok(Space { free: volume.f_bavail * volume.f_frsize, total: volume.f_blocks * volume.f_frsize })
    }

    fn misplaced(&self, file: Option<(&str, &dyn StoredFile)>) -> io::Result<Option<Misplaced>> {
        if let Some(what) = is_elsewhere(&self.path, self.handle().identity()?)? {
            return Ok(Some(Misplaced::Folder(what)));
        }
        let Some((name, file)) = file else { return Ok(None) };
        Ok(is_elsewhere(&self.path.join(name), file.identity()?)?.map(Misplaced::File))
    }

    fn renew(&self) -> io::Result<()> {
        let opened = Arc::new(open_folder(&self.path)?);
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(())
    }
}

impl StoredFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(identity(&self.metadata()?))
    }

    fn reserve(&self, bytes: u64) {
        // Some file systems cannot, and a full one has no space.
        rustix::fs::fallocate(self, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes).ok();
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
