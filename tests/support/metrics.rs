//! `/metrics`, parsed as Prometheus parses it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::wire;

/// Values by series, which is the name with its labels as printed.
pub(crate) type Series = BTreeMap<String, f64>;

/// The current values at `/metrics`.
pub(crate) fn scrape(admin: SocketAddr) -> Series {
    let answer = wire::get(admin, "/metrics");
    assert_eq!(answer.status, 200);
    parse(&answer.body)
}

/// The samples of an exposition.
pub(crate) fn parse(text: &str) -> Series {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// The series that differ, with the difference.
pub(crate) fn moved(before: &Series, after: &Series) -> Series {
    after
        .iter()
        .map(|(series, value)| (series.clone(), value - before.get(series).unwrap_or(&0.0)))
        .filter(|(_, change)| *change != 0.0)
        .collect()
}
