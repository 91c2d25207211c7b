//! The drills that operators are given do what they say. The long ones are theirs to run:
//! `deploy/drills/drill all`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::process::Command;

/// Runs a drill; it ends with what it proved, or says what it lacks.
fn drill(name: &str, proves: &str) {
    let mut drill = Command::new("bash");
    drill.args([concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/drills/drill"), name]);
    drill.env("LIVEBRIDGE", env!("CARGO_BIN_EXE_livebridge"));
    let output = drill.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    if let Some(lacks) = said.lines().find(|line| line.starts_with("  skipped: ")) {
        return eprintln!("SKIPPED {name}: {lacks}");
    }
    assert!(said.contains(proves), "{said}");
}

#[test]
fn a_key_is_rotated() {
    drill("key-rotation", "proved: the old key gets 401");
}

#[test]
fn a_certificate_is_rotated_while_callbacks_come() {
    drill("certificate-rotation", "proved: it presents the second one");
}

#[test]
fn a_lost_hosts_log_is_rescued() {
    drill("lost-host", "proved: run twice, replay sends nothing twice");
}

#[test]
fn an_instance_moves() {
    drill("move", "proved: 300 callbacks were answered 200, and each is in Kafka once");
}

#[test]
fn an_upgrade_under_load_turns_nobody_away() {
    drill("upgrade", "through three upgrades, none refused");
}
