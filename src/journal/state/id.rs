//! Which log, and which backend: indexes that cannot be mixed up.

/// One destination's log, by its position among all of the journal's. It is the same as long as the journal is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(usize);

/// One backend, by its position in the configuration that the journal was opened with. What is kept on disk names it
/// by its name instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(usize);

macro_rules! id {
    ($id:ident) => {
        impl $id {
            /// The one at this position.
            pub const fn new(index: usize) -> Self {
                Self(index)
            }

            /// Its position.
            pub fn index(self) -> usize {
                self.0
            }

            /// All, without end: to be zipped with what they stand for.
            pub fn all() -> impl Iterator<Item = Self> + Clone {
                (0..).map(Self)
            }
        }
    };
}

id!(LogId);
id!(BackendId);
