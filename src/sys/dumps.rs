//! Core dumps: none of a process that holds secrets, which would be in them.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Lets this process never be dumped, nor be looked into by another one of its user. To be called before secrets are read.
pub fn forbid() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot switch core dumps off: one would hold passwords and tokens");
    }
}
