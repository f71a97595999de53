//! Tests that cannot run here say so.

use std::io::Write;

/// Says that a test was left out, and why, where it is read: the test harness hides what a test
/// prints that passes.
pub(crate) fn left_out(test: &str, why: &str) {
    writeln!(std::io::stderr(), "left out: {test}: {why}").expect("a standard error");
}
