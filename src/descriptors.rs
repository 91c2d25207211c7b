//! File descriptors: the limit is raised as far as the process may, and connections get what the
//! rest of livebridge leaves.
//!
//! The soft limit is 1,024 in many containers and shells. When it is reached, `accept` fails, and
//! neither segments nor connections to Kafka can be opened.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that connections leave to everything else: 64 of the admin listener, segments of the
/// log that are written, read or made ready (sled has up to 8 open files each), two connections to
/// each Kafka broker, runtimes, standard streams. The largest count seen in tests is below 100.
const RESERVED: u64 = 192;
/// Connections are accepted below this limit too, however few descriptors there are.
const CONNECTIONS_MIN: u64 = 16;

/// Raises the soft limit of file descriptors to the hard one. Returns the limit now in effect, or
/// `None` when there is none.
///
/// # Errors
/// The operating system's; the limit is then as before.
pub(crate) fn raise_limit() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum)
}

/// The limit in effect.
#[must_use]
pub(crate) fn current_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The limit that [`raise_limit`] would bring about.
#[must_use]
pub(crate) fn attainable_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// How many connections a process with this `limit` of file descriptors can accept, of those that
/// are `configured`.
#[must_use]
pub(crate) fn connections(configured: usize, limit: Option<u64>) -> usize {
    let Some(limit) = limit else { return configured };
    let left = limit.saturating_sub(RESERVED).max(CONNECTIONS_MIN);
    usize::try_from(left).map_or(configured, |left| configured.min(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_what_the_reserve_leaves() {
        assert_eq!(connections(4096, None), 4096);
        assert_eq!(connections(4096, Some(1 << 20)), 4096);
        assert_eq!(connections(4096, Some(1024)), 832);
        assert_eq!(connections(100, Some(1024)), 100);
        assert_eq!(connections(4096, Some(200)), 16);
    }
}
