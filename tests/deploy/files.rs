//! The files in `deploy/` match the code: keys, defaults, variables, metrics.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use livebridge::config::Config;

const SAMPLE: &str = include_str!("../../deploy/livebridge.toml");
const UNIT: &str = include_str!("../../deploy/livebridge.service");
const COMPOSE: &str = include_str!("../../docker-compose.yml");
const DOCKERFILE: &str = include_str!("../../deploy/Dockerfile");
const ALERTS: &str = include_str!("../../deploy/alerts.yml");
const METRICS: &str = include_str!("../../docs/metrics.md");

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
fn the_sample_configuration_is_the_defaults() {
    let key = ("LIVEBRIDGE_CALLBACK_KEYS".to_owned(), "a-real-key".to_owned());
    let environment = [key];
    assert_eq!(config(SAMPLE, &environment), config("", &environment));
}

/// The commands in the head of the systemd unit, from `sed` on, turn the sample into a configuration that starts.
#[test]
fn the_installation_steps_of_the_unit_set_log_directory_keys_and_brokers() {
    let steps: Vec<&str> = UNIT.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files =
        steps.iter().filter(|step| step.starts_with("install ")).flat_map(|step| step.split(' '));
    let files: Vec<&str> = files.filter(|word| word.starts_with("deploy/")).collect();
    assert_eq!(files.len(), 3, "{steps:?}");
    assert!(files.iter().all(|file| root.join(file).is_file()), "{files:?}");

    let dir = tempfile::tempdir().unwrap();
    let installed = dir.path().join("livebridge.toml");
    fs::write(&installed, SAMPLE).unwrap();
    let step = steps.iter().find(|step| step.starts_with("sed ")).expect("the step");
    let step = step.replace("/etc/livebridge/livebridge.toml", "\"$1\"");
    let mut shell = Command::new("sh");
    assert!(shell.args(["-c", &step, "sh"]).arg(&installed).status().unwrap().success());
    let keys = dir.path().join("callback-keys");
    fs::write(&keys, "main a-real-key\n").unwrap();
    let text = fs::read_to_string(&installed).unwrap();
    let text = text.replace("/etc/livebridge/callback-keys", keys.to_str().unwrap());
    let config = config(&text, &[]);
    for part in ["/var/lib/livebridge/log", "kafka.example.com:9092", "CallbackKey(main, "] {
        assert!(config.contains(part), "no {part} in {config}");
    }
}

#[test]
fn the_sample_configuration_does_not_start_without_a_real_key() {
    let table = SAMPLE.parse().expect("TOML");
    let error = Config::from_parts(table, std::iter::empty()).expect_err("no key is in it");
    assert!(error.to_string().starts_with("callback.keys: is empty"), "{error}");
}

/// The variables that a Dockerfile or Compose file sets for livebridge.
fn variables(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().map(|line| {
        let line = line.trim().trim_start_matches("ENV ").trim_end_matches(" \\");
        line.split_once(": ").or_else(|| line.split_once('='))
    });
    let ours = lines.flatten().filter(|(name, _)| name.starts_with("LIVEBRIDGE_"));
    // Takes the default from "${VARIABLE:-default}".
    let value = |value: &str| {
        let value = value.trim_matches('"');
        value.split_once(":-").map_or(value, |(_, value)| value.trim_end_matches('}')).to_owned()
    };
    ours.map(|(name, text)| (name.to_owned(), value(text))).collect()
}

#[test]
fn a_configuration_file_takes_precedence_over_the_defaults_of_the_image() {
    let mut environment = variables(DOCKERFILE);
    assert_eq!(environment.len(), 2, "{environment:?}");
    environment.push(("LIVEBRIDGE_CALLBACK_KEYS".to_owned(), "a-real-key".to_owned()));
    let by_image = config("", &environment);
    let by_file =
        config("[wal]\ndir = \"/mounted\"\n[admin]\nlisten = \"127.0.0.1:1\"\n", &environment);
    for (image, file) in [("/var/lib/livebridge/log", "/mounted"), ("0.0.0.0:9464", "127.0.0.1:1")]
    {
        assert!(by_image.contains(image) && !by_file.contains(image), "{by_file}");
        assert!(by_file.contains(file), "{by_file}");
    }
}

/// Cargo does not build a package when a file that its manifest names is missing, tests included.
#[test]
fn the_image_is_built_from_everything_that_cargo_wants_to_find() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored = include_str!("../../deploy/Dockerfile.dockerignore");
    let dir = tempfile::tempdir().unwrap();
    let copied = DOCKERFILE.lines().filter_map(|line| line.strip_prefix("COPY "));
    for line in copied.filter(|line| !line.starts_with("--from")) {
        let (sources, target) = line.rsplit_once(' ').unwrap();
        for source in sources.split(' ') {
            assert!(
                ignored.lines().any(|line| line.starts_with(&format!("!{source}"))),
                "{source}"
            );
            let to = dir.path().join(target).join(if target == "./" { source } else { "" });
            let mut copy = Command::new("cp");
            copy.arg("-r").arg(root.join(source)).arg(to.parent().unwrap());
            assert!(copy.status().unwrap().success(), "{line}");
        }
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version=1"]).current_dir(&dir);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_variable_of_the_image_and_of_compose_is_a_known_key() {
    let environment = [variables(COMPOSE), variables(DOCKERFILE)].concat();
    assert_eq!(environment.len(), 7, "{environment:?}");
    let config = config("", &environment);
    for part in ["kafka-1:19092", "livebridge-1", "0.0.0.0:9464", "/var/lib/livebridge/log"] {
        assert!(config.contains(part), "no {part} in {config}");
    }
}

#[test]
fn the_metrics_table_lists_exactly_the_declared_metrics() {
    let source = concat!(
        include_str!("../../src/metrics/table.rs"),
        include_str!("../../src/metrics/process.rs"),
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
