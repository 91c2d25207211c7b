//! The kernel's figures for a process: CPU time and peak memory.

use std::fs;
use std::io;
use std::time::Duration;

/// Ticks per second of the times in `/proc`: a constant of the kernel's interface to programs.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a whole process, including all its threads.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    cpu_time_in(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// The same of a JVM, without its compiler: a new one compiles for minutes, an old one does not.
pub(crate) fn jvm_cpu_time(pid: u32) -> io::Result<Duration> {
    let mut time = cpu_time(pid)?;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        if ["(C1 Compiler", "(C2 Compiler"].iter().any(|name| stat.contains(name)) {
            time = time.saturating_sub(cpu_time_in(&stat)?);
        }
    }
    Ok(time)
}

/// User and system time of the calling thread.
pub(crate) fn thread_cpu_time() -> io::Result<Duration> {
    cpu_time_in(&fs::read_to_string("/proc/thread-self/stat")?)
}

/// The name in parentheses may contain anything, including spaces; the numbers follow the last one.
fn cpu_time_in(stat: &str) -> io::Result<Duration> {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    match (times.next(), times.next()) {
        (Some(Ok(user)), Some(Ok(system))) => {
            Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
        }
        _ => Err(io::Error::other("no processor times in /proc stat")),
    }
}

/// The largest resident set a process ever had, in bytes.
pub(crate) fn peak_memory(pid: u32) -> io::Result<u64> {
    status_bytes(pid, "VmHWM:")
}

/// The resident set of a process, in bytes.
pub(crate) fn memory(pid: u32) -> io::Result<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, field: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("no {field} in /proc status")))
}
