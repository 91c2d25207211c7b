//! The metrics at one moment, as numbers: what the status page is made of. Taken from the text that
//! Prometheus reads, so that the two never disagree.

use std::collections::BTreeMap;

use super::Exporter;

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

    /// The value of a series; 0 when there is none.
    #[must_use]
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    /// The values of a metric by its one label, those that are not 0.
    #[must_use]
    pub fn by_label(&self, name: &str) -> BTreeMap<&str, f64> {
        let labelled = self.0.range(format!("{name}{{")..).map_while(|(series, value)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?;
            Some((labels.split('"').nth(1)?, *value))
        });
        labelled.filter(|(_, value)| *value != 0.0).collect()
    }

    /// The sum of a metric over its label.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        // Nothing adds up to -0, which is no number to show.
        self.by_label(name).values().sum::<f64>() + 0.0
    }

    /// A histogram's upper bounds, the infinite one left out, and how many values are not above
    /// each; last the count of all.
    #[must_use]
    pub fn histogram(&self, name: &str) -> (Vec<f64>, Vec<f64>) {
        let all = self.by_label(&format!("{name}_bucket"));
        let prefix = format!("{name}_bucket{{le=\"");
        let mut bounds: Vec<f64> = self
            .0
            .range(prefix.clone()..)
            .map_while(|(series, _)| series.strip_prefix(&prefix)?.split('"').next()?.parse().ok())
            .filter(|bound: &f64| bound.is_finite())
            .collect();
        bounds.sort_by(f64::total_cmp);
        let count = |bound: &f64| all.get(bound.to_string().as_str()).copied().unwrap_or(0.0);
        let mut counts: Vec<f64> = bounds.iter().map(count).collect();
        counts.push(self.get(&format!("{name}_count")));
        (bounds, counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_label_and_bound() {
        let text = "# HELP a b\na{x=\"p\"} 1\na{x=\"q\"} 2\na{x=\"r\"} 0\nab{x=\"p\"} 9\nb 3.5\n\n\
            h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"10\"} 4\nh_bucket{le=\"2\"} 3\n\
            h_bucket{le=\"+Inf\"} 5\nh_sum 7\nh_count 5\n";
        let snapshot = Snapshot::parse(text);
        assert_eq!(snapshot.by_label("a"), BTreeMap::from([("p", 1.0), ("q", 2.0)]));
        assert_eq!((snapshot.sum("a"), snapshot.get("b"), snapshot.get("c")), (3.0, 3.5, 0.0));
        let expected = (vec![0.5, 2.0, 10.0], vec![1.0, 3.0, 4.0, 5.0]);
        assert_eq!(snapshot.histogram("h"), expected);
    }
}
