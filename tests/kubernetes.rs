//! The files for Kubernetes and for Compose are ones that both would take, and they say to livebridge
//! what it understands.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::process::Command;

use livebridge::config::Config;

mod support;

const MANIFESTS: &str = include_str!("../deploy/kubernetes/livebridge.yaml");

/// Runs a script of `tests/kubernetes/` with the tests' Python; `None` when there is none.
fn python(test: &str, arguments: &[&str]) -> Option<String> {
    let python = support::or_skip(test, support::consumer::python())?;
    let output = Command::new(python)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "{said}");
    Some(said)
}

#[test]
fn the_manifests_are_what_the_api_of_kubernetes_takes() {
    let file = "deploy/kubernetes/livebridge.yaml";
    let arguments = ["-m", "kubernetes_validate", "--strict", file];
    let Some(said) = python("manifests", &arguments) else { return };
    for kind in ["configmap", "service", "statefulset", "poddisruptionbudget", "networkpolicy"] {
        assert!(said.contains(&format!("passed for resource {kind}/livebridge")), "{kind}: {said}");
    }
}

#[test]
fn compose_mounts_files_that_there_are_and_opens_nothing_to_the_outside() {
    let Some(said) = python("compose", &["tests/kubernetes/compose.py"]) else { return };
    assert!(said.contains("6 services"), "{said}");
}

#[test]
fn livebridge_takes_the_configuration_of_the_manifests() {
    let (_, text) = MANIFESTS.split_once("  livebridge.toml: |\n").unwrap();
    let text = text.split("\n---").next().unwrap();
    let text: Vec<&str> = text.lines().map(|line| line.trim_start_matches("    ")).collect();
    let mut table: toml::Table = text.join("\n").parse().unwrap();
    // The keys are in a secret; the instance's name is the pod's.
    let keys = ("LIVEBRIDGE_CALLBACK_KEYS".to_owned(), "k".to_owned());
    let instance = ("LIVEBRIDGE_KAFKA_INSTANCE".to_owned(), "livebridge-0".to_owned());
    let callback = table.get_mut("callback").and_then(toml::Value::as_table_mut).unwrap();
    assert!(callback.remove("keys_file").is_some(), "the keys are not in the configuration");
    let config = Config::from_parts(table, [keys, instance].into_iter()).unwrap();

    // A pod is given the time that its livebridge takes to leave.
    let number = |key: &str| -> u64 {
        let (_, rest) = MANIFESTS.split_once(&format!("{key}: ")).unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert!(number("terminationGracePeriodSeconds") > config.http.drain.as_secs() + 20);
    // Whoever asks every three seconds knows before the drain is over.
    assert!(config.http.drain.as_secs() > 2 * 3);
    let volume = number("requests: { storage") << 30;
    assert!(config.wal.max_bytes + config.wal.min_free_bytes < volume, "the log fits");
    assert_eq!(config.admin.listen.port(), 9464);
    assert_eq!(config.http.listen.port(), 8080);
}
