//! Charts of lines as SVG: plain text, readable on light and dark ground.

use std::fmt::Write as _;

/// A chart's whole place, and what its axes take of it.
const WIDTH: f64 = 470.0;
const HEIGHT: f64 = 264.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 38.0;
const BOTTOM: f64 = 40.0;
/// Above the first row of charts.
const HEAD: f64 = 64.0;
/// Between a row's legend and its charts.
const LEGEND: f64 = 26.0;
const GAP: f64 = 16.0;
const EDGE: f64 = 14.0;

/// The classes `s0` to `s4` are series, the first the one that matters.
const STYLE: &str = "\
svg{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;font-size:12px}
.ground{fill:#ffffff}.text{fill:#1f2328}.faint{fill:#59636e}
.grid{stroke:#d1d9e0;stroke-width:1}.axis{stroke:#818b98;stroke-width:1}
.shade{fill:#d1242f;fill-opacity:.09}
.title{font-size:13px;font-weight:600}.big{font-size:16px;font-weight:600}
.end{text-anchor:end}.middle{text-anchor:middle}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.s0{stroke:#0969da;stroke-width:3}.s1{stroke:#54aeff;stroke-dasharray:7 4}.s2{stroke:#818b98}
.s3{stroke:#bc4c00}.s4{stroke:#1a7f37}
.dot{stroke:none}.s0.dot{fill:#0969da}.s1.dot{fill:#54aeff}.s2.dot{fill:#818b98}
.s3.dot{fill:#bc4c00}.s4.dot{fill:#1a7f37}
@media (prefers-color-scheme:dark){
.ground{fill:#0d1117}.text{fill:#f0f6fc}.faint{fill:#9198a1}
.grid{stroke:#2a313c}.axis{stroke:#656c76}.shade{fill:#f85149;fill-opacity:.16}
.s0{stroke:#4493f8}.s1{stroke:#79c0ff}.s2{stroke:#9198a1}.s3{stroke:#f0883e}.s4{stroke:#3fb950}
.s0.dot{fill:#4493f8}.s1.dot{fill:#79c0ff}.s2.dot{fill:#9198a1}.s3.dot{fill:#f0883e}.s4.dot{fill:#3fb950}
}";

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From zero.
    Linear,
    /// Each power of ten as high as the next.
    Log,
}

/// Where the points are on the horizontal axis.
#[derive(Clone, Debug)]
pub(crate) enum Across {
    /// Points have numbers from zero on; these are the words for them, at equal distances.
    Words(Vec<String>),
    /// Points have values from zero to this.
    To(f64),
}

/// A line: the number of its class, and its points.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) class: usize,
    pub(crate) points: Vec<(f64, f64)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    pub(crate) below: &'static str,
    pub(crate) across: Across,
    pub(crate) scale: Scale,
    pub(crate) series: Vec<Series>,
    /// A stretch of the horizontal axis that is marked, and what for.
    pub(crate) shade: Option<(f64, f64, &'static str)>,
}

/// Charts side by side with one legend.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) title: String,
    pub(crate) legend: Vec<(usize, &'static str)>,
    pub(crate) charts: Vec<Chart>,
}

/// The whole picture.
pub(crate) fn picture(title: &str, rows: &[Row]) -> String {
    let columns = rows.iter().map(|row| row.charts.len()).max().unwrap_or(0);
    let width = 2.0 * EDGE + WIDTH * count(columns) + GAP * count(columns.saturating_sub(1));
    let row_height = LEGEND + 20.0 + HEIGHT + GAP;
    let height = HEAD - 20.0 + row_height * count(rows.len());
    let mut svg = String::new();
    put(
        &mut svg,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>{}</title>\n\
             <style>\n{STYLE}\n</style>\n\
             <rect class=\"ground\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n",
            escape(title)
        ),
    );
    text(&mut svg, "text big", EDGE, 28.0, title);
    for (index, row) in rows.iter().enumerate() {
        let top = HEAD - 8.0 + row_height * count(index);
        text(&mut svg, "text title", EDGE, top, &row.title);
        legend(&mut svg, &row.legend, EDGE, top + 22.0);
        for (column, chart) in row.charts.iter().enumerate() {
            let left = EDGE + (WIDTH + GAP) * count(column);
            draw(&mut svg, chart, left, top + LEGEND);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, entries: &[(usize, &str)], left: f64, y: f64) {
    let mut x = left;
    for (class, name) in entries {
        let (end, middle) = (x + 26.0, y - 4.0);
        put(
            svg,
            format_args!("<path class=\"line s{class}\" d=\"M{x:.1} {middle:.1}H{end:.1}\"/>\n"),
        );
        text(svg, "text", x + 32.0, y, name);
        x += 32.0 + 6.9 * count(name.chars().count()) + 18.0;
    }
}

/// Where in the picture a chart's values are.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    across: f64,
    low: f64,
    high: f64,
    scale: Scale,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        self.left + (self.right - self.left) * value / self.across.max(f64::MIN_POSITIVE)
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => value / self.high,
            Scale::Log => (value.max(self.low) / self.low).log10() / (self.high / self.low).log10(),
        };
        self.bottom - (self.bottom - self.top) * share
    }
}

fn draw(svg: &mut String, chart: &Chart, left: f64, top: f64) {
    let values =
        || chart.series.iter().flat_map(|series| series.points.iter().map(|point| point.1));
    let highest = values().fold(0.0, f64::max);
    let ticks = match chart.scale {
        Scale::Linear => linear_ticks(highest),
        Scale::Log => {
            log_ticks(values().filter(|value| *value > 0.0).fold(highest, f64::min), highest)
        }
    };
    // Words stand a little inside, so that the first and the last have room.
    let inset = if matches!(chart.across, Across::Words(_)) { 22.0 } else { 0.0 };
    let frame = Frame {
        left: left + LEFT + inset,
        right: left + WIDTH - RIGHT - inset,
        top: top + TOP,
        bottom: top + HEIGHT - BOTTOM,
        across: match &chart.across {
            Across::Words(words) => count(words.len().saturating_sub(1)),
            Across::To(end) => *end,
        },
        low: ticks.first().copied().unwrap_or(0.0),
        high: ticks.last().copied().unwrap_or(1.0),
        scale: chart.scale,
    };
    text(svg, "text", left, top + TOP - 14.0, chart.title);
    if let Some((from, to, what)) = chart.shade {
        let (x, width) = (frame.x(from), frame.x(to) - frame.x(from));
        let (y, height) = (frame.top, frame.bottom - frame.top);
        put(
            svg,
            format_args!(
                "<rect class=\"shade\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                 height=\"{height:.1}\"/>\n"
            ),
        );
        text(svg, "faint middle", x + width / 2.0, frame.top + 14.0, what);
    }
    let (start, end) = (left + LEFT, left + WIDTH - RIGHT);
    for tick in &ticks {
        let y = frame.y(*tick);
        let class = if (y - frame.bottom).abs() < 0.1 { "axis" } else { "grid" };
        put(svg, format_args!("<path class=\"{class}\" d=\"M{start:.1} {y:.1}H{end:.1}\"/>\n"));
        text(svg, "faint end", start - 6.0, y + 4.0, &short(*tick));
    }
    let below = frame.bottom + 17.0;
    match &chart.across {
        Across::Words(words) => {
            for (index, word) in words.iter().enumerate() {
                text(svg, "faint middle", frame.x(count(index)), below, word);
            }
        }
        Across::To(end) => {
            for tick in linear_ticks(*end).into_iter().filter(|tick| tick <= end) {
                text(svg, "faint middle", frame.x(tick), below, &short(tick));
            }
        }
    }
    text(svg, "faint middle", f64::midpoint(start, end), below + 17.0, chart.below);
    // The one that matters lies on top.
    for series in chart.series.iter().rev() {
        lines(svg, &frame, series, matches!(chart.across, Across::Words(_)));
    }
}

fn lines(svg: &mut String, frame: &Frame, series: &Series, dots: bool) {
    let mut path = String::new();
    for (index, (x, y)) in series.points.iter().enumerate() {
        let letter = if index == 0 { 'M' } else { 'L' };
        put(&mut path, format_args!("{letter}{:.1} {:.1}", frame.x(*x), frame.y(*y)));
    }
    let class = series.class;
    put(svg, format_args!("<path class=\"line s{class}\" d=\"{path}\"/>\n"));
    for (x, y) in series.points.iter().filter(|_| dots) {
        let (x, y) = (frame.x(*x), frame.y(*y));
        put(
            svg,
            format_args!("<circle class=\"dot s{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>\n"),
        );
    }
}

/// Round numbers from zero to at least `highest`, four to six steps of them.
pub(crate) fn linear_ticks(highest: f64) -> Vec<f64> {
    if highest <= 0.0 {
        return vec![0.0, 1.0];
    }
    let power = 10_f64.powf((highest / 5.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| highest / step <= 5.0 + 1e-9).unwrap_or(10.0 * power);
    let mut ticks = vec![0.0];
    while ticks[ticks.len() - 1] < highest {
        ticks.push(step * count(ticks.len()));
    }
    ticks
}

/// Numbers of one digit, 1, 2 and 5, from at most `lowest` to at least `highest`; of each power of
/// ten only the first if there are many.
pub(crate) fn log_ticks(lowest: f64, highest: f64) -> Vec<f64> {
    if lowest <= 0.0 || highest < lowest {
        return vec![1.0, 10.0];
    }
    let digits: &[f64] = if highest / lowest > 2000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let mut ticks = Vec::new();
    let mut power = 10_f64.powf(lowest.log10().floor());
    loop {
        for tick in digits.iter().map(|digit| digit * power) {
            if tick <= lowest * (1.0 + 1e-9) {
                ticks.clear();
            }
            ticks.push(tick);
            if tick >= highest && ticks.len() > 1 {
                return ticks;
            }
        }
        power *= 10.0;
    }
}

/// As few characters as say it: 0.5, 20, 150k, 1.5M.
pub(crate) fn short(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e4 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let digits = format!("{value:.2}");
    let digits = digits.trim_end_matches('0').trim_end_matches('.');
    format!("{digits}{unit}")
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, words: &str) {
    let words = escape(words);
    put(svg, format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{words}</text>\n"));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn put(into: &mut String, what: std::fmt::Arguments<'_>) {
    let written = into.write_fmt(what);
    debug_assert!(written.is_ok(), "a string takes everything");
}

/// Of things in a picture.
#[expect(clippy::cast_precision_loss, reason = "there are never many")]
fn count(things: usize) -> f64 {
    things as f64
}
