//! livebridge's executable.

use std::process::ExitCode;

fn main() -> ExitCode {
    map_large_blocks();
    livebridge::cli::run()
}

/// Has large blocks of memory mapped on their own, so that they go back to the system when they are
/// freed.
///
/// glibc does so, but raises its idea of a large block to that of the largest that was freed. The
/// ledger's tables, which grow and go, then leave holes: 171 MiB instead of 106 after 25 s of full
/// load.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a setting of the C library that has no safe interface")]
fn map_large_blocks() {
    const LARGE_BYTES: i32 = 1024 * 1024;
    // SAFETY: it stores a number, and there is no other thread yet.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn map_large_blocks() {}
