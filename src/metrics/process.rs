//! The process as the kernel sees it, under the names that every Prometheus client uses. Read from
//! /proc at each scrape, and written as text: the counters of the `metrics` crate are whole
//! numbers, and processor time is not.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::event::Timestamp;

/// Appends the process's metrics to an exposition; none of what cannot be read.
pub(super) fn render(into: &mut String) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let fds = fs::read_dir("/proc/self/fd").ok();
    #[expect(clippy::cast_precision_loss, reason = "ticks per second are few")]
    let ticks = rustix::param::clock_ticks_per_second() as f64;

    let cpu = field(&stat, 14).zip(field(&stat, 15)).map(|(user, kernel)| (user + kernel) / ticks);
    let started = field(&stat, 22).and_then(|after| started(after / ticks));
    let resident = word(&status, "VmRSS:").map(|kib| kib * 1024.0);
    // One of them is the look itself.
    #[expect(clippy::cast_precision_loss, reason = "descriptors are few")]
    let open = fds.map(|fds| fds.count().saturating_sub(1) as f64);

    let mut line = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        let Some(value) = value else { return };
        // Writing to a String cannot fail.
        let _ = writeln!(into, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    };
    line("process_cpu_seconds_total", "counter", "Processor time used, user and system", cpu);
    line("process_resident_memory_bytes", "gauge", "Memory in use", resident);
    line("process_open_fds", "gauge", "Open file descriptors", open);
    line(
        "process_max_fds",
        "gauge",
        "File descriptors that may be open",
        word(&limits, "Max open files"),
    );
    line("process_threads", "gauge", "Threads", word(&status, "Threads:"));
    line(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in seconds since 1970",
        started,
    );
}

/// When the process started, in whole seconds since 1970, because two clocks are read one after
/// the other. `after` is the running time of the machine at that moment, in seconds. Not by
/// `/proc/stat`, which a service manager may hide (`ProcSubset=pid`).
fn started(after: f64) -> Option<f64> {
    let running: Duration = clock_gettime(ClockId::Boottime).try_into().ok()?;
    let age = running.saturating_sub(Duration::try_from_secs_f64(after).ok()?);
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are exact in an f64")]
    let seconds = Timestamp::now().before(age).as_millis().div_euclid(1000) as f64;
    Some(seconds)
}

/// Field `number` of /proc/…/stat, as proc(5) counts them. The second is the program's name in
/// parentheses, with anything in it.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number - 3)?.parse().ok()
}

/// The first word behind `name` at the beginning of a line.
fn word(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_moves_no_field() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 12345 1 2";
        assert_eq!(field(stat, 14), Some(250.0));
        assert_eq!(field(stat, 15), Some(50.0));
        assert_eq!(field(stat, 22), Some(12345.0));
        assert_eq!(field("", 14), None);
    }
}
