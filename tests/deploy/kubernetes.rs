//! The Kubernetes manifests and the Compose file are valid, and livebridge accepts the
//! configuration in them.

use std::process::Command;

use livebridge::config::Config;

use crate::support;

const MANIFESTS: &str = include_str!("../../deploy/kubernetes/livebridge.yaml");

/// Runs a script in `tests/deploy/kubernetes/` with the tests' Python; `None` if Python is not available.
fn python(test: &str, arguments: &[&str]) -> Option<String> {
    let python = support::or_skip(test, support::consumer::python())?;
    let output = Command::new(python)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let output_text = [output.stdout, output.stderr].concat();
    let output_text = String::from_utf8(output_text).unwrap();
    assert!(output.status.success(), "{output_text}");
    Some(output_text)
}

/// The oldest supported version of Kubernetes, as the manifest says, and the newest with a published schema.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];

#[test]
fn the_manifests_are_valid_for_the_oldest_and_the_newest_kubernetes_api() {
    assert!(MANIFESTS.contains(&format!("# Kubernetes {} or later", KUBERNETES[0])));
    for version in KUBERNETES {
        let files = [
            "deploy/kubernetes/livebridge.yaml", "deploy/kubernetes/release.yaml",
            "deploy/kubernetes/shell.yaml",
        ];
        let arguments = ["-m", "kubernetes_validate", "--strict", "-k", version];
        let arguments = [&arguments[..], &files].concat();
        let Some(output_text) = python("manifests", &arguments) else { return };
        for kind in [
            "configmap", "service", "statefulset", "poddisruptionbudget", "networkpolicy", "job",
            "pod",
        ] {
            assert!(
                output_text.contains(&format!("passed for resource {kind}/livebridge")),
                "{version}, {kind}: {output_text}"
            );
        }
    }
}

#[test]
fn the_pods_are_restricted_and_their_instances_are_named_after_namespace_and_pod() {
    let arguments = [
        "tests/deploy/kubernetes/restricted.py", "deploy/kubernetes/livebridge.yaml",
        "deploy/kubernetes/release.yaml", "deploy/kubernetes/shell.yaml",
    ];
    let Some(output_text) = python("pods", &arguments) else { return };
    assert!(
        output_text.contains("StatefulSet/livebridge: restricted, 2 containers"),
        "{output_text}"
    );
    assert!(
        output_text.contains("Job/livebridge-release: restricted, 1 containers"),
        "{output_text}"
    );
    assert!(
        output_text.contains("Pod/livebridge-shell: restricted, 1 containers"),
        "{output_text}"
    );
}

#[test]
fn compose_mounts_existing_files_and_publishes_no_port_outside_localhost() {
    let Some(output_text) = python("compose", &["tests/deploy/kubernetes/compose.py"]) else {
        return;
    };
    assert!(output_text.contains("7 services"), "{output_text}");
}

#[test]
fn livebridge_accepts_the_configuration_of_the_manifests() {
    let (_, text) = MANIFESTS.split_once("  livebridge.toml: |\n").unwrap();
    let text = text.split("\n---").next().unwrap();
    let text: Vec<&str> = text.lines().map(|line| line.trim_start_matches("    ")).collect();
    let mut table: toml::Table = text.join("\n").parse().unwrap();
    // The keys come from a secret; the instance name is the pod's name.
    let keys = ("LIVEBRIDGE_CALLBACK_KEYS".to_owned(), "k".to_owned());
    let instance = ("LIVEBRIDGE_KAFKA_INSTANCE".to_owned(), "livebridge-0".to_owned());
    let callback = table.get_mut("callback").and_then(toml::Value::as_table_mut).unwrap();
    assert!(callback.remove("keys_file").is_some(), "the keys are not in the configuration");
    let config = Config::from_parts(table, [keys, instance].into_iter()).unwrap();

    // A pod's termination grace period covers livebridge's shutdown.
    let number = |key: &str| -> u64 {
        let (_, rest) = MANIFESTS.split_once(&format!("{key}: ")).unwrap();
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert!(number("terminationGracePeriodSeconds") > config.http.drain.as_secs() + 20);
    let probe = |name: &str, key: &str| -> u64 {
        let (_, probe) = MANIFESTS.split_once(&format!("          {name}:\n")).unwrap();
        let probe = probe.split_inclusive('\n').take_while(|line| line.starts_with("            "));
        let probe: String = probe.collect();
        let (_, rest) = probe.split_once(&format!("{key}: ")).unwrap_or_else(|| panic!("{key}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    // A terminating pod is found not ready, at most one probe late, before its drain ends.
    let failures = probe("readinessProbe", "failureThreshold");
    let slowest = (failures + 1) * probe("readinessProbe", "periodSeconds")
        + probe("readinessProbe", "timeoutSeconds");
    assert!(failures > 1, "one slow response does not remove a pod");
    assert!(config.http.drain.as_secs() >= slowest, "{slowest}");
    let volume = number("requests: { storage") << 30;
    assert!(
        config.wal.limits.max_bytes + config.wal.limits.min_free_bytes < volume,
        "the log fits"
    );
    assert_eq!(config.admin.listen.port(), 9464);
    assert_eq!(config.http.listen.port(), 8080);
}

/// The lines below `start` that are comments of YAML, without their `#`.
fn uncommented(text: &str, start: &str) -> String {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("no {start}"));
    let lines = rest.lines().skip(1).map(str::trim_start);
    lines.map_while(|line| line.strip_prefix("# ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_commented_settings_of_the_manifest_are_valid() {
    let client = format!("[kafka.client]\n{}", uncommented(MANIFESTS, "    # [kafka.client]"));
    let variables = [
        ("LIVEBRIDGE_CALLBACK_KEYS", "k"),
        ("LIVEBRIDGE_KAFKA_CLIENT_SASL_PASSWORD", "a-long-password"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert!(variables.iter().all(|(name, _)| name.ends_with("KEYS") || MANIFESTS.contains(name)));
    let config = Config::from_parts(client.parse().unwrap(), variables.into_iter()).unwrap();
    let config = format!("{config:#?}");
    for setting in ["sasl.mechanisms", "sasl.username", "sasl.password"] {
        assert!(config.contains(setting), "no {setting} in {config}");
    }
    let egress = uncommented(MANIFESTS, "    # Tencent Cloud's API, for");
    assert_eq!(egress, "- ports: [{ port: 443 }]");
}

/// The probe's path in the manifest.
fn path(probe: &str) -> &'static str {
    let (_, rest) = MANIFESTS.split_once(&format!("          {probe}:\n")).unwrap();
    let (_, rest) = rest.split_once("path: ").unwrap();
    rest.split(',').next().unwrap()
}

#[test]
fn a_pod_with_a_full_log_is_not_ready_but_is_live_and_can_start() {
    assert_eq!(path("readinessProbe"), "/readyz");
    assert_eq!(path("startupProbe"), "/healthz");
    assert_eq!(path("livenessProbe"), "/healthz");
    // The init container's command on a disk with too little free space.
    let (_, init) = MANIFESTS.split_once("      initContainers:\n").unwrap();
    let (_, arguments) = init.split_once("args: [\"").unwrap();
    let (arguments, _) = arguments.split_once("\"]").unwrap();
    let arguments: Vec<&str> = arguments.split("\", \"").collect();
    let dir = tempfile::tempdir().unwrap();
    let init = |min_free: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livebridge"));
        command.args(&arguments).env_clear().env("LIVEBRIDGE_CALLBACK_KEYS", "k");
        command
            .env("LIVEBRIDGE_WAL_DIR", dir.path())
            .env("LIVEBRIDGE_WAL_MIN_FREE_BYTES", min_free);
        command.output().unwrap().status.code()
    };
    assert_eq!(init("1EiB"), Some(0));
    assert_eq!(init("much"), Some(64), "a wrong configuration is found");
}

#[test]
fn the_image_runs_as_a_numeric_non_root_user() {
    let dockerfile = include_str!("../../deploy/Dockerfile");
    let user = dockerfile.lines().rev().find_map(|line| line.strip_prefix("USER ")).unwrap();
    let (user, group) = user.split_once(':').unwrap();
    assert!(user.parse::<u32>().is_ok_and(|user| user > 0), "{user}");
    assert_eq!(user, group);
    assert!(MANIFESTS.contains(&format!("runAsUser: {user}\n")));
}
