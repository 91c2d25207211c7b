//! The systemd unit sandboxes livebridge, and livebridge works within it.
//!
//! No service manager runs here. systemd checks the unit, and strace lists the system calls of a
//! running livebridge: the unit must allow all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::process::Command;

use crate::support::process::Running;
use crate::support::skip;
use crate::support::wire::get;

const UNIT: &str = include_str!("../../deploy/livebridge.service");
const SOCKET: &str = include_str!("../../deploy/livebridge.socket");
const BINARY: &str = env!("CARGO_BIN_EXE_livebridge");

/// The output of a command; `None` if the command does not exist and the tests need not be
/// complete.
fn output(command: &mut Command) -> Option<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) => {
            let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(output.status.success(), "{name}: {text}");
            Some(text)
        }
        Err(error) => {
            skip::skip("the sandbox of the service", &format_args!("{name}: {error}"));
            None
        }
    }
}

/// The unit with the path of this build's binary.
fn unit() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("livebridge.service");
    fs::write(&path, UNIT.replace("/usr/bin/livebridge", BINARY)).unwrap();
    fs::write(dir.path().join("livebridge.socket"), SOCKET).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

/// Users of a metric that is missing would not notice: its alerts do not fire.
#[test]
fn with_the_units_view_of_proc_every_documented_process_metric_exists() {
    assert!(
        UNIT.contains("\nProcSubset=pid\nProtectProc=invisible\n"),
        "the options below are others"
    );
    let script = "mount -t proc -o subset=pid,hidepid=invisible proc /proc && exec \"$0\" serve";
    let unshare = |script| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, BINARY]);
        command
    };
    let mount = unshare("mount -t proc -o subset=pid,hidepid=invisible proc /proc").output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        return skip::skip("the unit's view of /proc", &"mounting needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = unshare(script);
    command.envs([
        ("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:0"),
        ("LIVEBRIDGE_ADMIN_LISTEN", "127.0.0.1:0"),
        ("LIVEBRIDGE_CALLBACK_UNSIGNED", "all"),
        ("LIVEBRIDGE_KAFKA_BROKERS", "127.0.0.1:1"),
        ("LIVEBRIDGE_WAL_DIR", dir.path().to_str().unwrap()),
    ]);
    let running = Running::start(&mut command);
    let metrics = get(running.address("admin listening"), "/metrics").body;
    let document = include_str!("../../docs/metrics.md");
    let documented = document.lines().filter_map(|line| line.strip_prefix("| `process_"));
    let names: Vec<&str> = documented.filter_map(|line| line.split('`').next()).collect();
    assert!(names.contains(&"start_time_seconds"), "{names:?}");
    for name in names {
        assert!(metrics.contains(&format!("\nprocess_{name} ")), "process_{name}: {metrics}");
    }
}

#[test]
fn systemd_accepts_every_line_of_the_unit() {
    let (_dir, path) = unit();
    let socket = path.replace(".service", ".socket");
    let mut verify = Command::new("systemd-analyze");
    let Some(output_text) = output(verify.args(["verify", &path, &socket])) else { return };
    assert!(!output_text.contains("livebridge."), "{output_text}");
}

#[test]
fn the_unit_has_a_low_exposure_score() {
    let (_dir, path) = unit();
    let arguments = ["security", "--offline=true", "--threshold=15", &path];
    // The command fails if the exposure score (of 100) exceeds the threshold.
    let Some(output_text) = output(Command::new("systemd-analyze").args(arguments)) else { return };
    assert!(output_text.contains("exposure level"), "{output_text}");
}

/// Every system call in `set`, including its nested sets.
fn calls(set: &str, sets: &BTreeMap<String, Vec<String>>) -> BTreeSet<String> {
    let all = sets.get(set).unwrap_or_else(|| panic!("systemd has no {set}"));
    all.iter()
        .flat_map(|name| {
            if name.starts_with('@') { calls(name, sets) } else { BTreeSet::from([name.clone()]) }
        })
        .collect()
}

/// The system calls that the unit allows.
fn admitted(listing: &str) -> BTreeSet<String> {
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut set = None;
    for line in listing.lines() {
        if line.starts_with('@') {
            set = Some(sets.entry(line.trim().to_owned()).or_default());
        } else if let (Some(set), Some(name)) = (&mut set, line.strip_prefix("    ")) {
            if !name.starts_with('#') {
                set.push(name.to_owned());
            }
        } else {
            set = None;
        }
    }
    // As in systemd: first the implicit basic set, then line by line.
    let mut admitted = calls("@default", &sets);
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let mut found = 0;
    for line in lines {
        found += 1;
        let (denies, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for name in names.split(' ').flat_map(|name| calls(name, &sets)) {
            if denies {
                admitted.remove(&name);
            } else {
                admitted.insert(name);
            }
        }
    }
    assert_eq!(found, 2, "the filter was not found");
    admitted
}

#[test]
fn at_run_time_no_system_call_is_made_that_the_unit_denies() {
    let Some(listing) = output(Command::new("systemd-analyze").arg("syscall-filter")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let counts = dir.path().join("counts");
    // The whole pipeline: intake, log and Kafka client, with the mock cluster. Under strace, a busy
    // machine may take long until it publishes.
    let mut times = ["3s", "12s", "48s"].into_iter();
    loop {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-c", "-o", counts.to_str().unwrap(), BINARY]);
        strace.args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let time = times.next().expect("events are published within one of these times");
        strace.args(["--samples", "20", "--for", time]);
        let Some(output_text) = output(&mut strace) else { return };
        // dev prints each event with its id.
        if output_text.contains(" id=") {
            break;
        }
    }
    let counts = fs::read_to_string(&counts).unwrap();
    let is_call = |name: &&str| name.starts_with(|c: char| c.is_ascii_lowercase());
    let made: BTreeSet<String> = counts
        .lines()
        .filter_map(|line| line.split_whitespace().next_back())
        .filter(is_call)
        .filter(|name| !["syscall", "total"].contains(name))
        .map(str::to_owned)
        .collect();
    assert!(made.len() > 30 && made.contains("fdatasync"), "{made:?}");
    let denied: Vec<_> = made.difference(&admitted(&listing)).cloned().collect();
    assert!(denied.is_empty(), "the unit denies {denied:?}");
}
