//! How a command ends: its exit code, its output, and the sentence that says what went wrong.

use std::io::{self, Write};

/// It failed at run time, or there is something to do.
pub const FAILED: u8 = 1;
/// It was used or configured wrongly.
pub const BAD_CONFIGURATION: u8 = 2;
/// What it asks does not answer.
pub const UNREACHABLE: u8 = 3;

/// Well, or with an exit code and what went wrong.
pub type Ended = Result<(), (u8, String)>;

/// Prints a command's result. A reader that goes away has read what it wanted.
///
/// # Errors
/// The output cannot be written, such as to a full disk.
pub fn print(text: &str) -> Ended {
    print_on(text).map(drop)
}

/// Prints a part of what a command goes on to print; false once nobody reads it any more.
///
/// # Errors
/// As `print`.
pub fn print_on(text: &str) -> Result<bool, (u8, String)> {
    let printed = io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    match printed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err((FAILED, format!("cannot write the output: {error}"))),
    }
}
