//! Indices of logs and backends, as types that cannot be confused.

/// One destination's log, by its index among the journal's logs. It is stable while the journal is
/// open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(usize);

/// One backend, by its index in the configuration with which the journal was opened. On disk,
/// backends are identified by name instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(usize);

macro_rules! id {
    ($id:ident) => {
        impl $id {
            /// The id with this index.
            pub const fn new(index: usize) -> Self {
                Self(index)
            }

            /// Its index.
            pub fn index(self) -> usize {
                self.0
            }

            /// All ids, without end. Zip them with what they index.
            pub fn all() -> impl Iterator<Item = Self> + Clone {
                (0..).map(Self)
            }
        }
    };
}

id!(LogId);
id!(BackendId);
