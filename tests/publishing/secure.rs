//! Kafka over `SASL_SSL` against a real broker: each mechanism works, failed authentication is
//! reported, and a certificate file that was missing for a while is read when it is back.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::bridge::Bridge;
use crate::support::kafka::{Cluster, Setup, TIME_LIMIT};
use crate::support::load::{Load, Plan};
use crate::support::random::Random;
use crate::support::{self, Unavailable, consumer};

const TEST: &str = "SASL_SSL";
const USER: &str = "bridge";
const PASSWORD: &str = "s3cret-of-the-bridge";

/// An operation that only the Java admin client supports.
const SCRAM: &str = r#"
import sys
from confluent_kafka.admin import (AdminClient, ScramCredentialInfo, ScramMechanism,
                                   UserScramCredentialUpsertion)
bootstrap, user, password = sys.argv[1:]
admin = AdminClient({"bootstrap.servers": bootstrap})
# Kafka takes one change of a user at a time.
for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
    made = UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), password.encode())
    for future in admin.alter_user_scram_credentials([made]).values():
        future.result(30)
"#;

/// A broker whose second listener requires TLS and authentication.
struct Rig {
    cluster: Cluster,
    dir: TempDir,
}

/// A certificate for 127.0.0.1, and a PEM keystore of it with its key.
fn certificate(dir: &Path, name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let (certificate, store) = (dir.join(name), dir.join(format!("{name}.store")));
    fs::write(&certificate, made.cert.pem()).expect("a writable directory");
    fs::write(&store, made.signing_key.serialize_pem() + &made.cert.pem())
        .expect("a writable directory");
    (certificate.display().to_string(), store.display().to_string())
}

impl Rig {
    fn start() -> Option<Self> {
        let dir =
            TempDir::with_prefix_in("secure", env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let (_, store) = certificate(dir.path(), "kafka.pem");
        certificate(dir.path(), "another.pem");
        let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
                      unsecuredLoginStringClaim_sub=\"broker\";";
        let of = |key: &str| format!("listener.name.sasl.{key}");
        let setup = Setup::nodes(1)
            .user(USER, PASSWORD)
            .property(
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,PROXIED:PLAINTEXT",
            )
            .property("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER")
            .property(&of("scram-sha-256.sasl.jaas.config"), scram)
            .property(&of("scram-sha-512.sasl.jaas.config"), scram)
            .property(&of("oauthbearer.sasl.jaas.config"), bearer)
            .property(&of("ssl.keystore.type"), "PEM")
            .property(&of("ssl.keystore.location"), &store);
        let cluster = Cluster::start_or_skip(TEST, &setup)?;
        let made = scram_user(&cluster.bootstrap());
        support::or_skip(TEST, made)?;
        Some(Self { cluster, dir })
    }

    /// A bridge that trusts the certificate `ca`, with additional librdkafka settings.
    fn bridge(&self, instance: &str, ca: &str, more: &str) -> Bridge {
        let ca = self.dir.path().join(ca).display().to_string();
        let config = format!(
            "[kafka.client]\nsecurity.protocol = \"SASL_SSL\"\nssl.ca.location = \"{ca}\"\n\
             sasl.username = \"{USER}\"\n{more}\n"
        );
        Bridge::new(instance, &self.cluster.sasl(), instance)
            .config(&config)
            .set("KAFKA_CLIENT_SASL_PASSWORD", PASSWORD)
    }
}

fn scram_user(bootstrap: &str) -> Result<(), Unavailable> {
    let output = Command::new(consumer::python()?)
        .args(["-c", SCRAM, bootstrap, USER, PASSWORD])
        .output()
        .map_err(|error| Unavailable(format!("python: {error}")))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn every_sasl_mechanism_works_and_failures_are_reported_and_survived() {
    let Some(mut rig) = Rig::start() else { return };
    every_mechanism(&rig);
    rejects_failed_authentication(&rig);
    publishes_once_a_lost_certificate_file_is_back(&mut rig);
}

fn every_mechanism(rig: &Rig) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut random = Random::new(TEST);
    for (instance, more) in [
        ("plain", "sasl.mechanisms = \"PLAIN\""),
        ("scram-256", "sasl.mechanisms = \"SCRAM-SHA-256\""),
        ("scram-512", "sasl.mechanisms = \"SCRAM-SHA-512\""),
        // The OAUTHBEARER variant that needs no token server, and provides no security.
        (
            "bearer",
            "sasl.mechanisms = \"OAUTHBEARER\"\nsasl.oauthbearer.config = \"principal=bridge\"\n\
             enable.sasl.oauthbearer.unsecure.jwt = true",
        ),
    ] {
        let bridge = rig.bridge(instance, "kafka.pem", more);
        bridge.start();
        let load = Load::start(runtime.handle(), Plan::new(bridge.intake()), &mut random);
        load.wait_for(100, TIME_LIMIT);
        let acknowledged = load.finish(TIME_LIMIT);
        bridge.drain(TIME_LIMIT);
        assert!(!bridge.log_text().contains(PASSWORD), "{}", bridge.last_lines());
        bridge.stop();
        let verdict = acknowledged.check(&rig.cluster.bootstrap(), instance);
        let Some(verdict) = support::or_skip(TEST, verdict) else { return };
        eprintln!("{TEST}, {instance}: {verdict}");
        verdict.assert_clean();
    }
}

fn rejects_failed_authentication(rig: &Rig) {
    let scram = "sasl.mechanisms = \"SCRAM-SHA-512\"";
    let wrong = "[a password that is wrong]";
    let impostor =
        rig.bridge("impostor", "kafka.pem", scram).set("KAFKA_CLIENT_SASL_PASSWORD", wrong);
    let misled = rig.bridge("misled", "another.pem", scram);
    for (bridge, says) in [(impostor, "Authentication"), (misled, "certificate")] {
        let (code, check) = bridge.check();
        assert_ne!(code, 0, "{check}");
        assert!(check.contains("FAIL") && check.contains(says), "{check}");
        assert!(!check.contains(wrong) && !check.contains(PASSWORD), "{check}");
        // Nothing is lost: callbacks are accepted and stored.
        bridge.start();
        bridge.wait_for_error(says, TIME_LIMIT);
        bridge.assert_running();
        let up = bridge.metric("livebridge_kafka_up").expect("an answer");
        assert!(up < 0.5, "{up}");
        assert!(!bridge.log_text().contains(wrong) && !bridge.log_text().contains(PASSWORD));
    }
}

fn publishes_once_a_lost_certificate_file_is_back(rig: &mut Rig) {
    let ca = rig.dir.path().join("mounted.pem");
    let content = fs::read(rig.dir.path().join("kafka.pem")).expect("the certificate");
    fs::write(&ca, &content).expect("a writable directory");
    rig.cluster.stop(1);
    let bridge = rig.bridge("mounted", "mounted.pem", "sasl.mechanisms = \"PLAIN\"");
    bridge.start();
    bridge.wait_for_error("Kafka does not answer", TIME_LIMIT);
    fs::remove_file(&ca).expect("the file");
    bridge.wait_for_error("ssl.ca.location", TIME_LIMIT);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let load =
        Load::start(runtime.handle(), Plan::new(bridge.intake()), &mut Random::new("mounted"));
    load.wait_for(20, TIME_LIMIT);
    let acknowledged = load.finish(TIME_LIMIT);
    rig.cluster.start_again(1);
    fs::write(&ca, &content).expect("a writable directory");
    bridge.drain(TIME_LIMIT);
    bridge.stop();
    let verdict = acknowledged.check(&rig.cluster.bootstrap(), "mounted");
    let Some(verdict) = support::or_skip(TEST, verdict) else { return };
    verdict.assert_clean();
}
