//! The picture: rate and latency against connections, and an outage over time, from the figures that
//! the sheets left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Fallible;
use super::svg::{self, Across, Chart, Row, Scale, Series};

/// In the order of their classes.
const SYSTEMS: [&str; 5] =
    ["livebridge", "livebridge, Kafka away", "bare hyper", "hyper + raw log", "hyper + mock Kafka"];

/// Looks that a rate is taken over: a transaction commits thousands of records at once.
const OVER: usize = 4;

/// Draws what there is; nothing when there are no figures for it.
pub(crate) fn draw(out: &Path) -> Fallible<Option<PathBuf>> {
    let (intake, outage) = (figures(out, "intake")?, figures(out, "outage")?);
    let rows: Vec<Row> =
        [intake.as_ref().and_then(against_connections), outage.as_ref().and_then(over_time)]
            .into_iter()
            .flatten()
            .collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let path = out.join("speed.svg");
    fs::write(
        &path,
        svg::picture("livebridge: 700-byte callbacks, signed, durable before the 200", &rows),
    )?;
    Ok(Some(path))
}

fn figures(out: &Path, sheet: &str) -> Fallible<Option<Value>> {
    match fs::read_to_string(out.join(format!("{sheet}.json"))) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

fn machine(sheet: &Value) -> String {
    let machine = &sheet["machine"];
    let cpu = machine["cpu"].as_str().unwrap_or("unknown").replace("(R)", "");
    format!("{} cores ({cpu}) shared with the load", machine["cores"])
}

fn against_connections(sheet: &Value) -> Option<Row> {
    // The open loop is told by its rate: there is no picture of it.
    if !sheet["figures"]["rate"].is_null() {
        return None;
    }
    let table = sheet["figures"]["table"].as_array()?;
    let connections: BTreeSet<u64> =
        table.iter().filter_map(|row| row["connections"].as_u64()).collect();
    let series = |figure: &str| -> Vec<Series> {
        let of = |system: &str| {
            let places = (0_u32..).zip(&connections);
            let points = places.filter_map(|(place, connections)| {
                let row = table.iter().find(|row| {
                    row["system"] == system && row["connections"].as_u64() == Some(*connections)
                })?;
                Some((f64::from(place), row[figure].as_f64()?))
            });
            points.collect()
        };
        let all = SYSTEMS.iter().enumerate();
        let all = all.map(|(class, system)| Series { class, points: of(system) });
        all.filter(|series| !series.points.is_empty()).collect()
    };
    let rates = series("callbacks_per_second");
    let chart = |title, scale, series| Chart {
        title,
        below: "connections",
        across: Across::Words(connections.iter().map(u64::to_string).collect()),
        scale,
        series,
        shade: None,
    };
    Some(Row {
        title: format!("As fast as it goes, on {}", machine(sheet)),
        legend: rates.iter().map(|series| (series.class, SYSTEMS[series.class])).collect(),
        charts: vec![
            chart("callbacks answered 200 per second", Scale::Linear, rates),
            chart("99th percentile of the time to the 200, ms", Scale::Log, series("p99_ms")),
        ],
    })
}

fn over_time(sheet: &Value) -> Option<Row> {
    let figures = &sheet["figures"];
    let samples = figures["samples"].as_array()?;
    let points = |name: &str| -> Vec<(f64, f64)> {
        let all = samples.iter().filter_map(|one| Some((one["at"].as_f64()?, one[name].as_f64()?)));
        all.collect()
    };
    let rate = |class, name| Series { class, points: rates(&points(name)) };
    let across = Across::To(points("accepted").last()?.0);
    let goes = figures["kafka_goes_at"].as_f64()?;
    let shade = Some((goes, figures["kafka_comes_at"].as_f64()?, "Kafka away"));
    let chart = |title, series| Chart {
        title,
        below: "seconds",
        across: across.clone(),
        scale: Scale::Linear,
        series,
        shade,
    };
    Some(Row {
        title: format!(
            "An outage of Kafka at {} callbacks per second; 99 % of them answered within {:.1} ms",
            svg::short(figures["rate"].as_f64()?),
            figures["p99_ms"].as_f64()?
        ),
        legend: vec![(0, "published"), (3, "accepted"), (4, "backlog")],
        charts: vec![
            chart("per second", vec![rate(0, "published"), rate(3, "accepted")]),
            chart(
                "records that wait in the log",
                vec![Series { class: 4, points: points("backlog") }],
            ),
        ],
    })
}

/// What was added per second, at the middle of each stretch.
fn rates(totals: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretches = totals.windows(OVER + 1).map(|stretch| {
        let ((from, before), (to, after)) = (stretch[0], stretch[OVER]);
        (f64::midpoint(from, to), (after - before) / (to - from).max(f64::MIN_POSITIVE))
    });
    stretches.collect()
}
