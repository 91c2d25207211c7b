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

pub(super) fn out(line: Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

pub(super) fn err(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
