//! Forbids core dumps, which would contain the process's secrets.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Prevents this process from being dumped, and from being traced by another process of its user.
/// Call it before reading secrets.
pub fn forbid() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot switch core dumps off: one would hold passwords and tokens");
    }
}
