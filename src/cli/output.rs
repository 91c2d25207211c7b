//! Output lines. `println!` panics when the reader has closed the pipe, as in
//! `livebridge check | head`; with these macros the command continues and exits with its code.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Prints a line to standard output.
macro_rules! print_out {
    ($($argument:tt)*) => { $crate::cli::output::out(format_args!($($argument)*)) };
}

/// Prints a line to standard error.
macro_rules! print_err {
    ($($argument:tt)*) => { $crate::cli::output::err(format_args!($($argument)*)) };
}

/// A number of things, such as `1 record` or `2 records`.
pub(super) fn count(number: impl TryInto<u64>, thing: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

pub(super) fn out(line: Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

pub(super) fn err(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
