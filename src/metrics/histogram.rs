//! A histogram with fixed buckets. The recorder's own keeps every value, with its time, until the
//! next scrape or upkeep; this one keeps counts.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::declared::{Declaration, Handle};

/// Counts values by the bounds of its declaration.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// For each bound the values up to it and above the one before; last those above all.
    buckets: Vec<AtomicU64>,
    /// The bits of a float.
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn record(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        let add = |sum| Some((f64::from_bits(sum) + value).to_bits());
        // It cannot fail: there always is a next value.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

impl Handle for Histogram {
    fn make(Declaration { bounds, .. }: &Declaration) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    fn render(&self, Declaration { name, help, .. }: &Declaration, into: &mut String) {
        let bounds = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut count = 0;
        // Writing to a String cannot fail.
        let _ = writeln!(into, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, bucket) in bounds.zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(into, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        let _ = writeln!(into, "{name}_sum {sum}\n{name}_count {count}\n");
    }
}

#[cfg(test)]
mod tests {
    use metrics::Unit;

    use super::*;

    #[test]
    fn a_value_counts_for_every_bound_that_it_does_not_exceed() {
        let declaration = Declaration {
            bounds: &[0.5, 1.0, 20.0],
            ..Declaration::new("lag", Unit::Seconds, "How late")
        };
        let histogram = Histogram::make(&declaration);
        for value in [0.0, 0.5, 0.75, 20.0, 20.5, 1000.0] {
            histogram.record(value);
        }
        let mut text = String::new();
        histogram.render(&declaration, &mut text);
        let expected = "# HELP lag How late\n# TYPE lag histogram\nlag_bucket{le=\"0.5\"} 2\n\
            lag_bucket{le=\"1\"} 3\nlag_bucket{le=\"20\"} 4\nlag_bucket{le=\"+Inf\"} 6\n\
            lag_sum 1041.75\nlag_count 6\n\n";
        assert_eq!(text, expected);
    }
}
