//! The files in `deploy/` match the code: keys, defaults, variables, metrics.

use std::collections::BTreeSet;

use livebridge::config::Config;

const SAMPLE: &str = include_str!("../deploy/livebridge.toml");
const COMPOSE: &str = include_str!("../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../deploy/Dockerfile");
const ALERTS: &str = include_str!("../deploy/alerts.yml");
const METRICS: &str = include_str!("../docs/metrics.md");
const CONFIGURATION: &str = include_str!("../docs/configuration.md");

fn config(toml: &str, environment: &[(String, String)]) -> String {
    let table = toml.parse().expect("TOML");
    let config = Config::from_parts(table, environment.iter().cloned());
    format!("{:#?}", config.expect("a valid configuration"))
}

/// Every word in `text` that begins with `prefix`.
fn words<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c)).filter(|word| word.starts_with(prefix)).collect()
}

#[test]
fn the_sample_configuration_is_the_defaults_plus_an_instance_name() {
    let key = ("LIVEBRIDGE_CALLBACK_KEYS".to_owned(), "a-real-key".to_owned());
    let examples = "[kafka]\ninstance = \"livebridge-1\"\n";
    let environment = [key];
    assert_eq!(config(SAMPLE, &environment), config(examples, &environment));
}

#[test]
fn the_sample_configuration_does_not_start_without_a_real_key() {
    let table = SAMPLE.parse().expect("TOML");
    let error = Config::from_parts(table, std::iter::empty()).expect_err("no key is in it");
    assert!(error.to_string().starts_with("callback.keys: is empty"), "{error}");
}

#[test]
fn the_sample_configuration_has_every_documented_key() {
    let (_, table) = CONFIGURATION.split_once("## Keys").expect("the section");
    let (table, _) = table.split_once("\n## ").expect("another section");
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    let names = cells.flat_map(|cell| cell.split('`')).filter_map(|name| name.split_once('.'));
    let sections = ["http", "tls", "access", "admin", "callback", "wal", "kafka", "dedup", "log"];
    let mut known = 0;
    for (section, key) in names.filter(|(section, _)| sections.contains(section)) {
        known += 1;
        let (_, rest) = SAMPLE.split_once(&format!("\n[{section}]\n")).expect(section);
        let lines = rest.lines().take_while(|line| !line.starts_with('['));
        let keys: Vec<_> = lines
            .filter_map(|line| line.trim_start_matches("# ").split_once(" = "))
            .map(|(key, _)| key)
            .collect();
        assert!(keys.contains(&key), "{section}.{key} is not in {keys:?}");
    }
    assert!(known >= 24, "the table was not found");
}

#[test]
fn every_variable_of_the_image_and_of_compose_is_a_known_key() {
    let mut environment = Vec::new();
    for line in COMPOSE.lines().chain(DOCKERFILE.lines()) {
        let line = line.trim().trim_start_matches("ENV ").trim_end_matches(" \\");
        let pair = line.split_once(": ").or_else(|| line.split_once('='));
        let Some((name, value)) = pair.filter(|(name, _)| name.starts_with("LIVEBRIDGE_")) else {
            continue;
        };
        let value = value.trim_matches('"');
        // Takes the default from "${VARIABLE:-default}".
        let value = value.split_once(":-").map_or(value, |(_, value)| value.trim_end_matches('}'));
        environment.push((name.to_owned(), value.to_owned()));
    }
    assert_eq!(environment.len(), 6, "{environment:?}");
    let config = config("", &environment);
    for part in ["kafka-1:19092", "livebridge-1", "0.0.0.0:9464", "/var/lib/livebridge/log"] {
        assert!(config.contains(part), "no {part} in {config}");
    }
}

#[test]
fn the_metrics_table_lists_exactly_the_declared_metrics() {
    let source = concat!(
        include_str!("../src/metrics/table.rs"),
        include_str!("../src/metrics/process.rs"),
    );
    for prefix in ["livebridge_", "process_"] {
        let defined = source.split('"').filter(|text| text.starts_with(prefix));
        let rows = METRICS.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let documented: BTreeSet<_> = rows.filter(|name| name.starts_with(prefix)).collect();
        assert_eq!(defined.collect::<BTreeSet<_>>(), documented);
    }
}

#[test]
fn the_alerts_query_only_metrics_and_labels_that_exist() {
    let metrics = words(ALERTS, "livebridge_");
    assert!(metrics.len() >= 5, "{metrics:?}");
    let reasons = ALERTS.split("reason=~\"").skip(1).filter_map(|rest| rest.split('"').next());
    let reasons: Vec<_> = reasons.flat_map(|reasons| reasons.split('|')).collect();
    assert!(reasons.len() >= 5, "{reasons:?}");
    for name in metrics.into_iter().chain(reasons) {
        let name = name.trim_end_matches("_bucket");
        assert!(METRICS.contains(&format!("`{name}`")), "{name} does not exist");
    }
}
