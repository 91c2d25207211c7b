//! The metrics at one moment, as numbers: what the status page is made of. Taken from the text that
//! Prometheus reads, so that the two never disagree.

use std::collections::BTreeMap;

use super::Exporter;
use super::declared::Metric;
use super::histogram::Histogram;

/// Values by series, the name with its labels as printed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(BTreeMap<String, f64>);

impl Exporter {
    /// The metrics of now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::parse(&self.render())
    }
}

impl Snapshot {
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self(samples.filter_map(sample).collect())
    }

    /// The value of a metric without a label; 0 when there is none.
    #[must_use]
    pub(crate) fn get<H>(&self, metric: &Metric<H>) -> f64 {
        self.series(metric.declaration.name)
    }

    fn series(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The values of a metric by its one label, those that are not 0.
    #[must_use]
    pub(crate) fn by_label<H>(&self, metric: &Metric<H>) -> BTreeMap<&str, f64> {
        self.labelled(metric.declaration.name)
    }

    fn labelled(&self, name: &str) -> BTreeMap<&str, f64> {
        let labelled = self.0.range(format!("{name}{{")..).map_while(|(series, value)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?;
            Some((labels.split('"').nth(1)?, *value))
        });
        labelled.filter(|(_, value)| *value != 0.0).collect()
    }

    /// The sum of a metric over its label.
    #[must_use]
    pub(crate) fn sum<H>(&self, metric: &Metric<H>) -> f64 {
        // Nothing adds up to -0, which is no number to show.
        self.by_label(metric).values().sum::<f64>() + 0.0
    }

    /// How many values are not above each of the histogram's bounds; last the count of all.
    #[must_use]
    pub(crate) fn histogram(&self, metric: &Metric<Histogram>) -> Vec<f64> {
        let name = metric.declaration.name;
        let all = self.labelled(&format!("{name}_bucket"));
        let bounds = metric.bounds().iter();
        let count = |bound: &f64| all.get(bound.to_string().as_str()).copied().unwrap_or(0.0);
        bounds.map(count).chain([self.series(&format!("{name}_count"))]).collect()
    }
}

#[cfg(test)]
mod tests {
    use ::metrics::{Counter, Gauge, Unit};

    use super::*;
    use crate::metrics::declared::{Counters, Declaration};

    const fn declared<H>(name: &'static str) -> Metric<H> {
        Metric::new(Declaration {
            bounds: &[0.5, 2.0, 10.0],
            ..Declaration::new(name, Unit::Count, "")
        })
    }

    #[test]
    fn series_are_found_by_name_label_and_bound() {
        let text = "# HELP a b\na{x=\"p\"} 1\na{x=\"q\"} 2\na{x=\"r\"} 0\nab{x=\"p\"} 9\nb 3.5\n\n\
            h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"10\"} 4\nh_bucket{le=\"2\"} 3\n\
            h_bucket{le=\"+Inf\"} 5\nh_sum 7\nh_count 5\n";
        let snapshot = Snapshot::parse(text);
        let a = declared::<Counters>("a");
        assert_eq!(snapshot.by_label(&a), BTreeMap::from([("p", 1.0), ("q", 2.0)]));
        let (b, c) = (declared::<Gauge>("b"), declared::<Counter>("c"));
        assert_eq!((snapshot.sum(&a), snapshot.get(&b), snapshot.get(&c)), (3.0, 3.5, 0.0));
        assert_eq!(snapshot.histogram(&declared("h")), [1.0, 3.0, 4.0, 5.0]);
    }
}
