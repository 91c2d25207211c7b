//! The operator drills pass. `deploy/drills/drill all` also runs the long ones.

use std::process::Command;

use crate::support::skip;

/// Runs a drill; it prints what it verified, or the missing requirement.
fn drill(name: &str, proves: &str) {
    let mut drill = Command::new("bash");
    drill.args([concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/drills/drill"), name]);
    drill.env("LIVEBRIDGE", env!("CARGO_BIN_EXE_livebridge"));
    let output = drill.output().unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output_text}{}", String::from_utf8_lossy(&output.stderr));
    if let Some(lacks) = output_text.lines().find(|line| line.starts_with("  skipped: ")) {
        return skip::skip(name, &lacks.trim());
    }
    assert!(output_text.contains(proves), "{output_text}");
}

#[test]
fn a_key_is_rotated() {
    drill("key-rotation", "proved: the old key gets 401");
}

#[test]
fn a_certificate_is_rotated_under_load() {
    drill("certificate-rotation", "proved: it presents the second one");
}

#[test]
fn the_log_of_a_lost_host_is_replayed() {
    drill("lost-host", "proved: run twice, replay publishes nothing twice");
}

#[test]
fn an_instance_moves_to_another_host() {
    drill("move", "proved: 300 callbacks were answered 200, and each is in Kafka once");
}

#[test]
fn what_was_lost_during_an_absence_is_recovered() {
    drill("away", "events are recovered, and the gap is no longer reported");
}

#[test]
fn an_upgrade_under_load_rejects_no_callback() {
    drill("upgrade", "through three upgrades, none rejected");
}
