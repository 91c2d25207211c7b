//! Statistics.

use std::time::Duration;

/// For figures in a table: counts here are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "exact for every count a benchmark reaches")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn mib(bytes: u64) -> f64 {
    real(bytes) / f64::from(1 << 20)
}

/// The median; zero for an empty slice.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        n if n % 2 == 1 => figures[n / 2],
        n => f64::midpoint(figures[n / 2 - 1], figures[n / 2]),
    }
}

/// The slope of `y` over `x` by least squares. Zero when it is undefined.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = real(points.len() as u64);
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), point| {
        (above + (point.0 - x) * (point.1 - y), below + (point.0 - x).powi(2))
    });
    if below > 0.0 { above / below } else { 0.0 }
}
