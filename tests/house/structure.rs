//! Structural rules of the source: allowed dependencies between modules, and which module uses
//! which external crate. src/lib.rs lists the modules and their order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::files;

/// A module and the modules it may depend on.
const MAY_NAME: [(&str, &[&str]); 34] = [
    ("audit", &["event", "kafka", "ledger", "permission", "publisher", "record", "wal"]),
    ("authorities", &[]),
    ("backoff", &[]),
    ("event", &[]),
    ("record", &["event"]),
    ("callback", &["event", "record"]),
    ("metrics", &["event", "record"]),
    ("status_history", &["event", "record"]),
    ("log_limit", &[]),
    ("outage", &[]),
    ("wal", &["metrics", "event", "record", "log_limit", "permission", "reloadable"]),
    ("ledger", &["metrics", "event", "record", "wal"]),
    ("kafka", &["metrics", "event", "outage", "permission", "record", "secret"]),
    (
        "publisher",
        &[
            "backoff", "kafka", "ledger", "metrics", "outage", "permission", "status_history",
            "event", "record", "log_limit", "wal",
        ],
    ),
    ("reloadable", &[]),
    ("heartbeat", &[]),
    ("health", &["heartbeat", "wal"]),
    ("gaps", &["event", "log_limit", "metrics", "permission", "wal"]),
    ("descriptors", &[]),
    ("permission", &[]),
    ("proxy_protocol", &[]),
    ("secret", &[]),
    ("service", &[]),
    (
        "intake",
        &[
            "permission", "callback", "reloadable", "metrics", "health", "heartbeat", "log_limit",
            "proxy_protocol", "status_history", "event", "record", "secret", "wal",
        ],
    ),
    (
        "admin",
        &[
            "reloadable", "logging", "log_limit", "metrics", "health", "proxy_protocol",
            "status_history", "event", "record", "secret", "wal",
        ],
    ),
    (
        "config",
        &[
            "permission", "admin", "callback", "intake", "kafka", "ledger", "logging", "publisher",
            "event", "record", "secret", "wal",
        ],
    ),
    (
        "reload",
        &["callback", "config", "intake", "reloadable", "logging", "metrics", "service", "wal"],
    ),
    (
        "bridge",
        &[
            "admin", "config", "intake", "metrics", "publisher", "descriptors", "gaps", "health",
            "permission", "reload", "service", "wal",
        ],
    ),
    ("logging", &["secret"]),
    ("sample", &["callback", "event", "record"]),
    ("sender", &["authorities"]),
    ("tencent", &["authorities", "backoff", "event", "secret"]),
    (
        "recover",
        &[
            "callback", "event", "gaps", "kafka", "ledger", "permission", "publisher", "record",
            "tencent",
        ],
    ),
    ("lib", &[]),
];

/// An external crate and the modules that use it. The command line is above all modules and may use
/// any.
const NAMED_IN: [(&str, &[&str]); 22] = [
    ("clap", &[]),
    ("hyper", &["admin", "intake", "sender"]),
    ("hyper_util", &["admin", "intake", "sender"]),
    ("ipnet", &["intake"]),
    ("libc", &[]),
    ("listenfd", &["service"]),
    ("md5", &["callback"]),
    ("metrics_exporter_prometheus", &["metrics"]),
    ("rdkafka", &["kafka"]),
    ("ring", &["intake", "sender", "tencent"]),
    ("rustls_native_certs", &["authorities"]),
    ("sd_notify", &["service"]),
    ("sha2", &["callback"]),
    ("sled", &["wal"]),
    ("socket2", &["intake"]),
    ("strsim", &["config"]),
    ("subtle", &["callback", "secret"]),
    ("tokio_rustls", &["intake", "sender", "tencent"]),
    ("toml", &["config"]),
    ("tracing_subscriber", &["logging"]),
    ("ureq", &["tencent"]),
    ("x509_cert", &["intake"]),
];

/// The maximum length of a file; a longer file must be split.
const LINES_MAX: usize = 500;

fn source() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

fn sources() -> Vec<PathBuf> {
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files(&source()).into_iter().filter(is_rust).collect()
}

/// Every source file that is not a test: its module, its path, its code without comments.
fn modules() -> Vec<(String, PathBuf, String)> {
    let paths = sources();
    assert!(paths.len() > 20, "the sources were found");
    let code = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap().to_owned();
        let lines = text.lines().map(|line| line.split("//").next().unwrap().to_owned());
        lines.collect::<Vec<_>>().join("\n")
    };
    paths
        .into_iter()
        .filter(|path| path.file_name().unwrap() != "tests.rs")
        .map(|path| {
            let below = path.strip_prefix(source()).unwrap();
            let module = below.iter().next().unwrap().to_str().unwrap();
            (module.trim_end_matches(".rs").to_owned(), path.clone(), code(&path))
        })
        .collect()
}

/// The modules of the library that `code` names, also those in the braces of `use crate::{…}`.
fn named_modules(code: &str) -> BTreeSet<String> {
    let word = |text: &str| {
        text.split(|c| !char::is_alphanumeric(c) && c != '_').next().map(str::to_owned)
    };
    let mut named = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        let Some(group) = path.strip_prefix('{') else {
            named.extend(word(path));
            continue;
        };
        let mut depth = 0;
        let mut nested = |c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth
        };
        let of_group = group.chars().map(|c| (c, nested(c))).take_while(|(_, depth)| *depth >= 0);
        let top: String = of_group.filter(|(_, depth)| *depth == 0).map(|(c, _)| c).collect();
        named.extend(top.split(',').filter_map(|path| word(path.trim())));
    }
    named
}

#[test]
fn modules_in_the_braces_of_a_use_are_found() {
    let code = "use crate::{a, b::{c, d::{e}}, f};\nuse crate::g::{h, i}; crate::j::k()";
    assert_eq!(named_modules(code), BTreeSet::from(["a", "b", "f", "g", "j"].map(str::to_owned)));
}

/// Whether a path in `code` begins with `name`.
fn names(code: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| word(c) || c == ':')
    })
}

#[test]
fn no_module_depends_on_one_above_its_layer() {
    let allowed: BTreeMap<_, _> = MAY_NAME.into_iter().collect();
    for (module, path, code) in modules() {
        if module == "main" || module == "cli" {
            continue;
        }
        let allowed = allowed.get(module.as_str());
        let allowed = allowed.unwrap_or_else(|| panic!("{} is not in the table", path.display()));
        let named = named_modules(&code);
        for (other, _) in MAY_NAME {
            let named = named.contains(other) && other != module && other != "lib";
            assert!(!named || allowed.contains(&other), "{} names {other}", path.display());
        }
    }
}

#[test]
fn each_external_crate_is_used_in_its_module_only() {
    for (module, path, code) in modules() {
        if module == "main" || module == "cli" {
            continue;
        }
        for (foreign, at) in NAMED_IN {
            let named = names(&code, foreign);
            assert!(!named || at.contains(&module.as_str()), "{} names {foreign}", path.display());
        }
        let sled = names(&code, "sled") && !path.ends_with("wal/segment.rs");
        assert!(!sled, "{} names sled", path.display());
    }
}

#[test]
fn no_output_panics_when_its_reader_has_closed_the_pipe() {
    for (_, path, code) in modules() {
        for printing in ["println!(", "print!("] {
            assert!(!code.contains(printing), "{} prints with {printing}", path.display());
        }
    }
}

#[test]
fn only_a_verified_callback_becomes_a_record() {
    for (module, path, code) in modules() {
        let made = code.contains("Record {") && !code.contains("struct Record {");
        let made = made && code.contains("received_at,");
        // Exported records were verified before they were logged, and are not logged again.
        let verified = module == "callback" || path.ends_with("publisher/replay/event.rs");
        assert!(!made || verified, "{} makes records (I2)", path.display());
    }
}

#[test]
fn every_file_has_a_module_comment_and_at_most_500_lines() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not say what it is", path.display());
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
        for mark in ["TODO", "FIXME", "XXX"] {
            assert!(!text.contains(mark), "{} has a {mark}", path.display());
        }
    }
}

#[test]
fn every_dependency_states_its_reason() {
    let text = include_str!("../../Cargo.toml").to_owned() + include_str!("../../fuzz/Cargo.toml");
    let mut count = 0;
    for section in text.split("\n[").filter(|section| {
        section.starts_with("dependencies]") || section.starts_with("dev-dependencies]")
    }) {
        for line in section.lines().skip(1).filter(|line| line.contains(" = ")) {
            let reason = line.split_once(" # ").map_or("", |(_, reason)| reason.trim());
            assert!(!reason.is_empty(), "no reason is stated: {line}");
            count += 1;
        }
    }
    assert!(count > 40, "{count} were found");
}
