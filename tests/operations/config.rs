//! The configuration: defaults, every key from file and environment, and error messages that name
//! the cause and contain no secrets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use livebridge::callback::UnsignedPolicy;
use livebridge::config::{Config, ConfigError, ConfigLayers};
use livebridge::event::EventType;
use livebridge::kafka::{Delivery, settings};
use livebridge::secret::redact;

use crate::support::{process, temp_file};

/// The smallest valid configuration.
const LEAST: &str = "[callback]\nkeys = [\"k\"]\n";

fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variables =
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_parts(file.parse().unwrap(), variables)
}

fn file(text: &str) -> Config {
    load(text, &[]).unwrap()
}

/// The message of the error, which contains none of the secrets of these tests.
#[track_caller]
fn rejection(file: &str, environment: &[(&str, &str)]) -> String {
    let error = load(file, environment).expect_err("a rejection");
    let (message, debug) = (error.to_string(), format!("{error:?}"));
    for secret in ["s3cret", "3735"] {
        assert!(!message.contains(secret) && !debug.contains(secret), "{message} {debug}");
    }
    message
}

/// Checks that the message about `file` has all of `parts`.
#[track_caller]
fn assert_rejects(file: &str, parts: &[&str]) {
    let message = rejection(file, &[]);
    assert!(parts.iter().all(|part| message.contains(part)), "no {parts:?} in {message}");
}

/// Checks that the message about the variable has all of `parts`.
#[track_caller]
fn assert_rejects_variable(name: &str, value: &str, parts: &[&str]) {
    let message = rejection(LEAST, &[(name, value)]);
    assert!(parts.iter().all(|part| message.contains(part)), "no {parts:?} in {message}");
}

/// The debug output of all parts of `config`, which must contain no secret.
fn shown(config: &Config) -> String {
    format!("{config:?}")
}

/// The name of this machine.
fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim_end().to_owned()
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = file(LEAST);
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:8080");
    assert_eq!(config.http.path, "/callback");
    assert_eq!(config.http.max_body, 256 * 1024);
    assert_eq!(config.http.max_connections, 4096);
    assert_eq!(config.http.deadline, Duration::from_secs(5));
    assert_eq!(config.http.drain, Duration::ZERO);
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(config.verifier.keys.len(), 1);
    assert!(config.files.is_empty());
    assert_eq!(config.verifier.leeway, Duration::from_mins(20));
    assert_eq!(config.verifier.unsigned, UnsignedPolicy::Rejected);
    assert_eq!(config.wal.dir, Path::new("data"));
    assert_eq!(config.wal.limits.max_bytes, 10 << 30);
    assert_eq!(config.wal.limits.min_free_bytes, 1 << 30);
    assert_eq!(config.kafka.brokers, "localhost:9092");
    assert_eq!(config.kafka.instance, host());
    assert_eq!(config.kafka.delivery, Delivery::ExactlyOnce);
    assert!(config.kafka.create_topics);
    assert_eq!((config.kafka.partitions, config.kafka.replication), (6, 1));
    assert!(config.kafka.client.is_empty());
    assert_eq!(config.topics.of(Some(EventType(1))), "live.push");
    assert_eq!(config.topics.of(None), "live.other");
    assert_eq!(config.topics.dead_letter(), "live.dead-letter");
    assert_eq!(config.topics.ledger(), "live.ledger");
    assert_eq!(config.dedup.window, Duration::from_hours(1));
}

#[test]
fn without_keys_serve_does_not_start_and_says_what_to_do() {
    let message = rejection("", &[]);
    assert!(message.starts_with("callback.keys: is empty"), "{message}");
    assert!(message.contains("CallbackKey") && message.contains("unsigned"), "{message}");
    for keys in ["[]", "[\"\"]", "[\" \", \"\\t\"]"] {
        let text = format!("[callback]\nkeys = {keys}\nunsigned = [\"relay\"]");
        assert!(rejection(&text, &[]).starts_with("callback.keys: is empty"), "{keys}");
    }
    assert!(load("[callback]\nunsigned = [\"all\"]", &[]).is_ok());
}

/// The directory of the certificates for these tests.
const TLS: &str = "target/tmp/config-tls";

/// Creates a certificate with its key, and a second key, once: tests in parallel use the same files.
fn certificate() {
    static CREATED: Once = Once::new();
    CREATED.call_once(|| {
        fs::create_dir_all(TLS).unwrap();
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let write = |name: &str, text: String| fs::write(Path::new(TLS).join(name), text).unwrap();
        write("a.pem", pair.cert.pem());
        write("a.key", pair.signing_key.serialize_pem());
        write("b.key", rcgen::KeyPair::generate().unwrap().serialize_pem());
    });
}

/// Every key: its path, a value for the file, the same value for the environment, another value for
/// the file, and how the value is printed.
#[rustfmt::skip]
const KEYS: [(&str, &str, &str, &str, &str, &str); 35] = [
    ("http", "listen", "\"127.0.0.1:81\"", "127.0.0.1:81", "\"[::1]:82\"", "listen: 127.0.0.1:81"),
    ("http", "path", "\"/cb/\"", "/cb/", "\"/other\"", "path: \"/cb\""),
    ("http", "max_body", "\"64KiB\"", "64KiB", "2048", "max_body: 65536"),
    ("http", "max_connections", "7", "7", "8", "max_connections: 7"),
    ("http", "max_connections_per_address", "3", "3", "4", "max_connections_per_address: 3"),
    ("http", "keep_alive", "\"2m\"", "2m", "\"3m\"", "keep_alive: 120s"),
    ("http", "deadline", "\"1500ms\"", "1500ms", "\"2s\"", "deadline: 1.5s"),
    ("http", "drain", "\"10s\"", "10s", "\"2s\"", "drain: 10s"),
    ("tls", "certificate", "\"target/tmp/config-tls/a.pem\"", "target/tmp/config-tls/a.pem", "\"/nowhere\"", "certificate: \"target/tmp/config-tls/a.pem\""),
    ("tls", "private_key", "\"target/tmp/config-tls/a.key\"", "target/tmp/config-tls/a.key", "\"/nowhere\"", "certificate: \"target/tmp/config-tls/a.pem\""),
    ("access", "allow", "[\"10.0.0.0/8\", \"::1\"]", "10.0.0.0/8, ::1", "[\"1.2.3.4\"]", "allow: Networks([10.0.0.0/8, ::1/128])"),
    ("access", "trusted_proxies", "[\"10.0.0.1\"]", "10.0.0.1", "[]", "trusted_proxies: Networks([10.0.0.1/32])"),
    ("access", "proxy_protocol", "true", "true", "false", "proxy_protocol: true"),
    ("access", "secret", "\"word\"", "word", "\"other\"", "secret: Some(Secret(..))"),
    ("admin", "listen", "\"0.0.0.0:83\"", "0.0.0.0:83", "\"0.0.0.0:84\"", "listen: 0.0.0.0:83"),
    ("admin", "token", "\"word\"", "word", "\"other\"", "token: Some(Secret(..))"),
    ("callback", "keys", "[\"a\", \"b\"]", "a, b,", "[\"c\"]", "keys: [CallbackKey(key-1, ..), CallbackKey(key-2, ..)]"),
    ("callback", "keys_file", "\".gitignore\"", ".gitignore", "\"/nowhere\"", "CallbackKey(key-2, ..)"),
    ("callback", "expiry_leeway", "\"0s\"", "0s", "\"1h\"", "leeway: 0ns"),
    ("callback", "unsigned", "[314, \"quality\"]", "314,quality", "[1]", "unsigned: Types([EventType(314), EventType(343)])"),
    ("callback", "omit", "[\"t\", \"sign\"]", "t, sign", "[\"a\"]", "omit: [\"t\", \"sign\"]"),
    ("wal", "dir", "\"/var/log\"", "/var/log", "\"x\"", "dir: \"/var/log\""),
    ("wal", "max_bytes", "\"1GB\"", "1GB", "5", "max_bytes: 1000000000"),
    ("wal", "min_free_bytes", "0", "0", "\"5MiB\"", "min_free_bytes: 0"),
    ("kafka", "brokers", "\"a:1,b:2\"", "a:1,b:2", "\"c:3\"", "brokers: \"a:1,b:2\""),
    ("kafka", "instance", "\"me\"", "me", "\"you\"", "instance: \"me\""),
    ("kafka", "topic_prefix", "\"tv\"", "tv", "\"radio\"", "other: \"tv.other\""),
    ("kafka", "delivery", "\"at-least-once\"", "at-least-once", "\"exactly-once\"", "delivery: AtLeastOnce"),
    ("kafka", "create_topics", "false", "false", "true", "create_topics: false"),
    ("kafka", "partitions", "12", "12", "24", "partitions: 12"),
    ("kafka", "replication", "3", "3", "5", "replication: 3"),
    ("dedup", "window", "\"2h 30m\"", "2h 30m", "\"3h\"", "window: 9000s"),
    ("dedup", "max_ids", "5000", "5000", "6000", "max_ids: 5000"),
    ("log", "level", "\"warn\"", "warn", "\"error\"", "level: \"warn\""),
    ("log", "format", "\"json\"", "json", "\"text\"", "format: Json"),
];

#[test]
fn every_key_can_be_set_by_file_and_by_environment_which_has_priority() {
    certificate();
    let plain = shown(&file(LEAST));
    for (section, key, value, variable, other, expected) in KEYS {
        // Keys that these keys require.
        let least = match (section, key) {
            ("callback", "keys") => String::new(),
            ("tls", "certificate") => format!("{LEAST}[tls]\nprivate_key = \"{TLS}/a.key\""),
            ("tls", "private_key") => format!("{LEAST}[tls]\ncertificate = \"{TLS}/a.pem\""),
            ("access", "proxy_protocol") => {
                format!("{LEAST}[access]\ntrusted_proxies = [\"::1\"]")
            }
            _ => LEAST.to_owned(),
        };
        let table = |value: &str| {
            let mut table: toml::Table = least.parse().unwrap();
            let line: toml::Table = format!("{key} = {value}").parse().unwrap();
            let section = table.entry(section).or_insert(toml::Table::new().into());
            section.as_table_mut().unwrap().extend(line);
            toml::to_string(&table).unwrap()
        };
        let name = format!("LIVEBRIDGE_{}_{}", section.to_uppercase(), key.to_uppercase());
        let by_file = shown(&file(&table(value)));
        assert!(!plain.contains(expected), "{section}.{key}: {expected} is no default");
        assert!(by_file.contains(expected), "{section}.{key}: {by_file}");
        let by_environment = shown(&load(&least, &[(&name, variable)]).unwrap());
        assert_eq!(by_environment, by_file, "{name}");
        let by_both = shown(&load(&table(other), &[(&name, variable)]).unwrap());
        assert_eq!(by_both, by_file, "{name} wins");
    }
}

#[test]
fn every_key_is_in_the_table_above() {
    // The error message for an unknown key lists all keys.
    for section in ["http", "tls", "access", "admin", "callback", "wal", "kafka", "dedup", "log"] {
        let message = rejection(&format!("[{section}]\nx = 1"), &[]);
        let (_, listed) = message.split_once("it has ").unwrap();
        let listed: Vec<&str> = listed.split(", ").collect();
        let known: Vec<&str> =
            KEYS.iter().filter(|(s, ..)| *s == section).map(|(_, key, ..)| *key).collect();
        assert_eq!(listed, known, "{message}");
    }
}

mod an_unknown {
    use super::*;

    #[test]
    fn key_or_section_in_the_file_is_rejected_with_a_suggestion() {
        for (text, says) in [
            ("[http]\nlissten = \"a\"", "[http] has no key lissten; did you mean listen?"),
            ("[callback]\nkey = \"s3cret\"", "[callback] has no key key; did you mean keys?"),
            ("[dedup]\nmax-ids = 5", "[dedup] has no key max-ids; did you mean max_ids?"),
            ("[kafka]\nclients = {}", "[kafka] has no key clients; did you mean client?"),
            ("[admin]\nmax_bytes = 5", "has no key max_bytes; did you mean max_bytes in [wal]?"),
            ("[kafka]\n\"acks\" = 1", "[kafka] has no key acks; it has brokers, instance, "),
            ("[wal.more]\na = 1", "[wal] has no key more; it has dir, max_bytes, "),
            ("[htttp]\nlisten = \"a\"", "there is no section [htttp]; did you mean [http]?"),
            ("[x]", "there is no section [x]; there are http, tls, access, "),
            ("brokers = \"a\"", "brokers stands in no section; did you mean brokers in [kafka]?"),
        ] {
            let least = if text.contains("[callback]") { "" } else { LEAST };
            assert_rejects(&format!("{text}\n{least}"), &[says]);
        }
    }

    #[test]
    fn key_in_the_file_is_rejected_with_its_line() {
        for (text, line) in [
            ("# first\n\n[http]\n# more\nlissten = 1\n", 5),
            ("[http]\npath = \"\"\"\n/\n\"\"\"\npaht = 1", 5),
            ("http.lissten = 1", 1),
            ("\n\n[htp]", 3),
        ] {
            let path = temp_file(text);
            let message = Config::load(Some(path.path())).unwrap_err().to_string();
            let place = format!("{}:{line}: ", path.path().display());
            assert!(message.starts_with(&place), "{message}");
        }
    }

    #[test]
    fn variable_is_rejected_by_name() {
        for name in [
            "LIVEBRIDGE_HTTP_LISTN", "LIVEBRIDGE_HTTP_", "LIVEBRIDGE_CALLBACK_KEY",
            "LIVEBRIDGE_WAL_MAXBYTES", "LIVEBRIDGE_KAFKA_CLIENT", "LIVEBRIDGE_KAKFA_BROKERS",
            "LIVEBRIDGE_KEYS", "LIVEBRIDGE_HTTP", "LIVEBRIDGE_HTTP_PORT",
            "LIVEBRIDGE_HTTP_REPORT_ONLY",
            // Not quite what Kubernetes sets.
            "LIVEBRIDGE_HTTP_PORT_HTTP_TCP", "LIVEBRIDGE_HTTP_PORT_8080_QUIC",
            "LIVEBRIDGE_HTTP_PORT_8080_TCP_NAME", "LIVEBRIDGE_HTTP_8080_TCP",
            "LIVEBRIDGE_HTP_LISTEN",
        ] {
            assert_rejects_variable(name, "s3cret", &[name]);
        }
        for (name, says) in [
            ("LIVEBRIDGE_HTTP_LISTN", "did you mean LIVEBRIDGE_HTTP_LISTEN?"),
            ("LIVEBRIDGE_KAKFA_BROKERS", "did you mean LIVEBRIDGE_KAFKA_BROKERS?"),
            ("LIVEBRIDGE_ADMIN_MAX_BODY", "did you mean LIVEBRIDGE_HTTP_MAX_BODY?"),
            ("LIVEBRIDGE_HTTP_X", "it has listen, path, max_body, "),
        ] {
            assert_rejects_variable(name, "", &[says]);
        }
    }

    #[test]
    fn variable_of_another_program_is_ignored() {
        for name in [
            "PATH", "livebridge_http_listen", "MY_LIVEBRIDGE_HTTP_LISTEN",
            // Variables that other parts of livebridge read.
            "LIVEBRIDGE_CONFIG", "LIVEBRIDGE_SEND_KEY",
            // Variables of tests and benches.
            "LIVEBRIDGE_TEST_FACTOR", "LIVEBRIDGE_SEED", "LIVEBRIDGE_REQUIRE_KAFKA",
            "LIVEBRIDGE_BENCH_RATE",
            // Variables set by a shell or an image.
            "LIVEBRIDGE_VERSION", "LIVEBRIDGE_HOME", "LIVEBRIDGE_INSTALL_PATH",
            "LIVEBRIDGE_DATA_DIR",
            // Kubernetes sets these in every pod when services are named livebridge,
            // livebridge-http and livebridge-kafka.
            "LIVEBRIDGE_SERVICE_HOST", "LIVEBRIDGE_SERVICE_PORT", "LIVEBRIDGE_SERVICE_PORT_INTAKE",
            "LIVEBRIDGE_PORT", "LIVEBRIDGE_PORT_8080_TCP", "LIVEBRIDGE_PORT_8080_TCP_ADDR",
            "LIVEBRIDGE_PORT_8080_TCP_PROTO", "LIVEBRIDGE_HTTP_PORT_8080_TCP_PORT",
            "LIVEBRIDGE_KAFKA_UI_SERVICE_PORT_WEB", "LIVEBRIDGE_HTTP_SERVICE_HOST",
            "LIVEBRIDGE_HTTP_PORT", "LIVEBRIDGE_KAFKA_PORT_9092_TCP",
        ] {
            let mut config = load(LEAST, &[(name, "tcp://10.0.0.1:8080")]).unwrap();
            config.notes.clear();
            assert_eq!(shown(&config), shown(&file(LEAST)), "{name}");
        }
    }

    #[test]
    fn variable_that_is_ignored_is_noted_unless_kubernetes_sets_it() {
        let notes = |name| load(LEAST, &[(name, "tcp://10.0.0.1:8080")]).unwrap().notes;
        for name in ["LIVEBRIDGE_BROKER_URL", "LIVEBRIDGE_VERSION"] {
            let note = format!("ignored, because they are no settings: {name}");
            assert_eq!(notes(name), [note]);
        }
        for name in [
            "LIVEBRIDGE_CONFIG",
            "LIVEBRIDGE_SEND_KEY",
            "LIVEBRIDGE_PORT",
            "LIVEBRIDGE_PORT_80_TCP",
            "LIVEBRIDGE_DEFAULT_PORT",
            "LIVEBRIDGE_DEFAULT_SERVICE_HOST",
            "LIVEBRIDGE_DEFAULT_HTTP_SERVICE_PORT",
            "LIVEBRIDGE_DEFAULT_HTTP_PORT_80_TCP_ADDR",
        ] {
            assert_eq!(notes(name), Vec::<String>::new(), "{name}");
        }
        let many: Vec<String> = (10..30).map(|n| format!("LIVEBRIDGE_X{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
        let [note] = &load(LEAST, &many).unwrap().notes[..] else { panic!("one note") };
        assert!(note.ends_with("LIVEBRIDGE_X16, LIVEBRIDGE_X17 and 12 more"), "{note}");
    }
}

mod a_default_of_the_environment {
    use super::*;

    const DEFAULT: (&str, &str) = ("LIVEBRIDGE_DEFAULT_WAL_DIR", "/image");

    fn dir(text: &str, environment: &[(&str, &str)]) -> String {
        let config = load(&format!("{LEAST}{text}"), environment).unwrap();
        assert_eq!(config.notes, Vec::<String>::new());
        config.wal.dir.display().to_string()
    }

    #[test]
    fn is_below_the_file_and_the_other_variables_in_any_order() {
        let file = "[wal]\ndir = \"/file\"\n";
        let variable = ("LIVEBRIDGE_WAL_DIR", "/variable");
        assert_eq!(dir("", &[DEFAULT]), "/image");
        assert_eq!(dir("[wal]\nmax_bytes = \"1GiB\"\n", &[DEFAULT]), "/image");
        assert_eq!(dir(file, &[DEFAULT]), "/file");
        assert_eq!(dir("", &[DEFAULT, variable]), "/variable");
        assert_eq!(dir("", &[variable, DEFAULT]), "/variable");
    }

    #[test]
    fn is_shown_as_the_source_of_its_value() {
        let mut command = process::livebridge(&["config"]);
        command.env("LIVEBRIDGE_CALLBACK_KEYS", "k").env(DEFAULT.0, DEFAULT.1);
        let shown = process::run(&mut command);
        let line = shown.stdout.lines().find(|line| line.starts_with("dir = \"/image\""));
        assert!(line.unwrap().ends_with("# LIVEBRIDGE_DEFAULT_WAL_DIR"), "{shown:?}");
    }

    #[test]
    fn is_rejected_by_name_when_it_is_the_default_of_no_key_or_wrong() {
        for (name, value) in [
            ("LIVEBRIDGE_DEFAULT_WAL_DIRR", "/s3cret"),
            ("LIVEBRIDGE_DEFAULT_NOTHING", "s3cret"),
            ("LIVEBRIDGE_DEFAULT_CONFIG", "s3cret"),
            ("LIVEBRIDGE_DEFAULT_HTTP_MAX_CONNECTIONS", "s3cret"),
            ("LIVEBRIDGE_DEFAULT_KAFKA_CLIENT_SASL_PASSWORD", "s3cret"),
        ] {
            assert_rejects_variable(name, value, &[&format!("variable {name}: ")]);
        }
    }
}

#[test]
fn a_variable_that_takes_precedence_over_a_line_of_the_file_is_noted_without_its_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("livebridge.toml");
    fs::write(&path, "[callback]\nkeys = [\"s3cret\"]\n[wal]\ndir = \"data\"\n").unwrap();
    let mut command = process::livebridge(&["check", "--offline", "--config"]);
    command.arg(&path).current_dir(&dir);
    command.env("LIVEBRIDGE_WAL_DIR", "other").env("LIVEBRIDGE_CALLBACK_KEYS", "s3cret2");
    let checked = process::run(&mut command);
    for (key, variable, line) in
        [("wal.dir", "LIVEBRIDGE_WAL_DIR", 4), ("callback.keys", "LIVEBRIDGE_CALLBACK_KEYS", 2)]
    {
        let note = format!("{key}: {variable} takes precedence over {}:{line}", path.display());
        assert!(checked.stdout.contains(&note), "{note}: {checked:?}");
    }
    assert!(!checked.stdout.contains("s3cret"), "{checked:?}");
}

mod a_bad_value {
    use super::*;

    #[test]
    fn is_rejected_with_the_name_of_its_key() {
        for (key, value) in [
            ("http.listen", "\"8080 \\u0001\""),
            ("http.listen", "\"example.com:8080\""),
            ("http.listen", "8080"),
            ("http.path", "\"callback\""),
            ("http.path", "\"\""),
            ("http.path", "\"/callback?a=b\""),
            ("http.path", "\"/call back\""),
            ("http.path", "5"),
            ("http.max_body", "0"),
            ("http.max_body", "1023"),
            ("http.max_body", "\"513KiB\""),
            ("http.max_body", "\"huge\""),
            ("http.max_body", "-1"),
            ("http.max_connections", "0"),
            ("http.max_connections", "-1"),
            ("http.max_connections", "\"many\""),
            ("http.deadline", "\"0s\""),
            ("http.deadline", "\"16s\""),
            ("http.deadline", "5"),
            ("http.deadline", "\"5\""),
            ("http.drain", "\"11m\""),
            ("admin.listen", "\"\""),
            ("callback.keys_file", "5"),
            ("callback.expiry_leeway", "\"-1s\""),
            ("callback.unsigned", "[\"pull\"]"),
            ("callback.unsigned", "[\"ALL\"]"),
            ("callback.unsigned", "[1.5]"),
            ("callback.unsigned", "\"all\""),
            ("wal.dir", "5"),
            ("wal.max_bytes", "\"10 elephants\""),
            ("wal.min_free_bytes", "true"),
            ("kafka.brokers", "\"\""),
            ("kafka.brokers", "[\"a:1\"]"),
            ("kafka.brokers", "\"\\\"a:1\\\"\""),
            ("kafka.instance", "\" \""),
            ("kafka.instance", "\"a.replay-b\""),
            ("kafka.topic_prefix", "5"),
            ("kafka.delivery", "\"exactly_once\""),
            ("kafka.create_topics", "\"yes\""),
            ("kafka.partitions", "0"),
            ("kafka.replication", "-3"),
            ("kafka.partitions", "99999999999"),
            ("dedup.window", "\"1s\""),
            ("dedup.max_ids", "999"),
            ("log.level", "\"\""),
            ("log.level", "\"loud\""),
            ("log.level", "\"inof,livebridge=debug\""),
            ("log.level", "\"livebridge=loud\""),
            ("log.level", "3"),
            ("log.format", "\"xml\""),
        ] {
            let (section, name) = key.split_once('.').unwrap();
            let start = if section == "callback" { "" } else { &format!("[{section}]") };
            let text = format!("{LEAST}{start}\n{name} = {value}");
            assert_rejects(&text, &[key]);
        }
    }

    #[test]
    fn begins_just_beyond_a_limit() {
        for text in [
            "[http]\nmax_body = \"1KiB\"",
            "[http]\nmax_body = \"512KiB\"",
            "[http]\nmax_connections = 1",
            "[http]\nmax_connections_per_address = 1",
            "[http]\nkeep_alive = \"1s\"",
            "[http]\nkeep_alive = \"1h\"",
            "[http]\ndeadline = \"15s\"",
            "[http]\ndrain = \"10m\"",
            "[kafka]\npartitions = 1",
            "[kafka]\nreplication = 1",
            "[dedup]\nwindow = \"10s\"",
            "[dedup]\nmax_ids = 1000",
        ] {
            let accepted = load(&format!("{LEAST}{text}"), &[]);
            assert!(accepted.is_ok(), "{text}: {accepted:?}");
        }
    }

    #[test]
    fn of_a_topic_is_rejected() {
        for text in [
            "topic_prefix = \"a b\"", "topic_prefix = \"中\"", "topics = { push = \"\" }",
            "topics = { push = \"a/b\" }", "topics = { other = \"..\" }",
            "topics = { 5x = \"a\" }", "topics = { pull = \"a\" }",
        ] {
            let message = rejection(&format!("{LEAST}[kafka]\n{text}"), &[]);
            assert!(message.starts_with("kafka.topic"), "{text}: {message}");
        }
    }

    #[test]
    fn is_rejected_with_its_line_itself_and_what_the_key_takes() {
        for (section, key, value, says) in [
            ("wal", "max_bytes", r#""10 bits""#, r#"is not a size such as "10GiB" or "500MB""#),
            ("http", "keep_alive", "75", r#"must be text in quotes, such as "1m 15s""#),
            ("http", "max_body", r#""5MiB""#, "must be 1 KiB to 512 KiB"),
            ("http", "path", r#""callback""#, r#"must begin with a slash, as in "/callback""#),
            (
                "http",
                "max_connections",
                r#""9""#,
                "must be a whole number without quotes, such as 4096",
            ),
            (
                "kafka",
                "brokers",
                r#"["a:1", "b:1"]"#,
                r#"must be text in quotes, such as "localhost:9092"; join several by commas"#,
            ),
            ("kafka", "create_topics", r#""yes""#, "must be true or false, without quotes"),
            ("log", "format", r#""xml""#, "must be one of `auto`, `text`, `json`"),
            ("access", "allow", "[5]", "must be a list in brackets, such as [\"one\", \"two\"]"),
        ] {
            let path = temp_file(format!("{LEAST}[{section}]\n{key} = {value}\n"));
            let shown = process::run(process::livebridge(&["check", "--config"]).arg(path.path()));
            let file = path.path().display();
            let line = format!("livebridge: {file}:4: {section}.{key}: {value} {says}\n");
            assert_eq!((shown.stderr, shown.code), (line, Some(64)));
        }
        assert_rejects(&format!("{LEAST}unsigned = [1, \"pull\"]"), &["\"pull\" is no event type"]);
    }

    #[test]
    fn of_a_variable_is_rejected_with_the_variables_name() {
        for (name, value) in [
            ("LIVEBRIDGE_HTTP_MAX_CONNECTIONS", "s3cret"),
            ("LIVEBRIDGE_KAFKA_PARTITIONS", ""),
            ("LIVEBRIDGE_KAFKA_PARTITIONS", "1.0"),
            ("LIVEBRIDGE_KAFKA_CREATE_TOPICS", "s3cret"),
            ("LIVEBRIDGE_KAFKA_CREATE_TOPICS", "TRUE"),
        ] {
            assert_rejects_variable(name, value, &[name]);
        }
        for (name, value) in [
            ("LIVEBRIDGE_WAL_MAX_BYTES", "10 GiBB"),
            ("LIVEBRIDGE_HTTP_MAX_BODY", ""),
            ("LIVEBRIDGE_WAL_MIN_FREE_BYTES", "-1"),
        ] {
            assert_rejects_variable(name, value, &[name, "such as \"10GiB\""]);
        }
        assert_rejects_variable(
            "LIVEBRIDGE_HTTP_DRAIN",
            "5",
            &["LIVEBRIDGE_HTTP_DRAIN", "\"30s\""],
        );
        assert_rejects_variable("LIVEBRIDGE_LOG_FORMAT", "xml", &["LIVEBRIDGE_LOG_FORMAT"]);
        let padded = [("LIVEBRIDGE_WAL_MAX_BYTES", "10 GiB "), ("LIVEBRIDGE_HTTP_DRAIN", " 5s ")];
        let config = load(LEAST, &padded).unwrap();
        assert_eq!(config.wal.limits.max_bytes, 10 * 1024 * 1024 * 1024);
        assert_eq!(config.http.drain, Duration::from_secs(5));
        let message = rejection("http = 5", &[("LIVEBRIDGE_HTTP_LISTEN", "127.0.0.1:1")]);
        assert!(message.contains("LIVEBRIDGE_HTTP_LISTEN"), "{message}");
    }
}

#[test]
fn a_variable_that_is_not_utf_8_is_rejected_and_not_ignored() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let value = OsStr::from_bytes(b"/data/\xff");
    let mut command = process::livebridge(&["config"]);
    command.env("LIVEBRIDGE_CALLBACK_KEYS", "k").env("SOMEBODY_ELSES", value);
    assert_eq!(process::run(&mut command).code, Some(0));
    let rejected = process::run(command.env("LIVEBRIDGE_WAL_DIR", value));
    assert_eq!(rejected.code, Some(64), "{rejected:?}");
    assert!(rejected.stderr.contains("LIVEBRIDGE_WAL_DIR: is not UTF-8"), "{rejected:?}");
}

mod what_is_in_effect {
    use super::*;

    fn config(arguments: &[&str], environment: &[(&str, &str)]) -> process::Finished {
        let mut command = process::livebridge(&[&["config"], arguments].concat());
        process::run(command.envs(environment.iter().copied()))
    }

    const FILE: &str = "[http]\npath = \"/cb\"\n\n[callback]\nkeys = [\"s3cret\", \"s3cret2\"]\n\
        [kafka.client]\n\"sasl.username\" = \"me\"\nsasl.password = \"s3cret\"\n\
        ssl.key.location = \"/key.pem\"\n\"ssl.key.pem\" = \"s3cret\"\n";

    #[test]
    fn is_printed_with_the_source_of_each_value_and_without_secrets() {
        let path = temp_file(FILE);
        let path = path.path().to_str().unwrap();
        let environment = [
            ("LIVEBRIDGE_KAFKA_BROKERS", "a:1,b:2"),
            ("LIVEBRIDGE_KAFKA_CLIENT_SASL_PASSWORD", "s3cret"),
            ("LIVEBRIDGE_KAFKA_TOPICS_AUDIO_MODERATION", "nsfw"),
        ];
        let shown = config(&["--config", path], &environment);
        assert_eq!(shown.code, Some(0), "{shown:?}");
        assert!(!shown.stdout.contains("s3cret"), "{}", shown.stdout);
        let variable = "LIVEBRIDGE_KAFKA_CLIENT_SASL_PASSWORD";
        for (setting, source) in [
            ("listen = \"0.0.0.0:8080\"", "default"),
            ("path = \"/cb\"", &format!("{path}:2")),
            ("max_body = \"256KiB\"", "default"),
            ("keys = [\"(hidden)\", \"(hidden)\"]", &format!("{path}:5")),
            ("# keys_file is not set", "default"),
            ("max_bytes = \"10GiB\"", "default"),
            ("brokers = \"a:1,b:2\"", "LIVEBRIDGE_KAFKA_BROKERS"),
            (&format!("instance = \"{}\"", host()), "default"),
            ("\"sasl.username\" = \"me\"", &format!("{path}:7")),
            ("\"sasl.password\" = \"(hidden)\"", variable),
            ("\"ssl.key.location\" = \"/key.pem\"", &format!("{path}:9")),
            ("\"ssl.key.pem\" = \"(hidden)\"", &format!("{path}:10")),
            ("audio-moderation = \"nsfw\"", "LIVEBRIDGE_KAFKA_TOPICS_AUDIO_MODERATION"),
            ("window = \"1h\"", "default"),
        ] {
            let line = shown.stdout.lines().find(|line| line.starts_with(setting));
            let line = line.unwrap_or_else(|| panic!("no {setting} in {}", shown.stdout));
            assert_eq!(line[setting.len()..].trim(), format!("# {source}"), "{line}");
        }
    }

    #[test]
    fn is_itself_a_valid_configuration() {
        let defaults = config(&[], &[("LIVEBRIDGE_CALLBACK_KEYS", "k")]);
        assert_eq!(defaults.code, Some(0), "{defaults:?}");
        assert_eq!(shown(&file(&defaults.stdout)), shown(&file(LEAST)));
        for (section, key, ..) in KEYS {
            let (_, behind) = defaults.stdout.split_once(&format!("[{section}]\n")).unwrap();
            let own = behind.split("\n[").next().unwrap();
            assert!(own.contains(&format!("{key} ")), "{section}.{key} in {own}");
        }
    }

    #[test]
    fn can_be_printed_as_json() {
        let shown = config(&["--json"], &[("LIVEBRIDGE_CALLBACK_KEYS", "s3cret,b")]);
        let json: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(
            json["callback.keys"],
            serde_json::json!({"value": ["(hidden)", "(hidden)"], "source": "LIVEBRIDGE_CALLBACK_KEYS"})
        );
        assert_eq!(json["kafka.partitions"], serde_json::json!({"value": 6, "source": "default"}));
        assert_eq!(json["callback.keys_file"]["value"], serde_json::Value::Null);
    }

    #[test]
    fn is_printed_before_it_is_rejected() {
        let rejected = config(&[], &[("LIVEBRIDGE_HTTP_PATH", "callback")]);
        assert_eq!(rejected.code, Some(64), "{rejected:?}");
        assert!(rejected.stdout.contains("path = \"callback\""), "{rejected:?}");
        assert!(rejected.stderr.contains("http.path"), "{rejected:?}");
    }
}

mod a_secret {
    use super::*;

    #[test]
    fn is_masked_in_every_text_as_soon_as_it_is_read() {
        let text = "[access]\nsecret = [\"MaskedInList\"]\n[admin]\ntoken = { a = \"MaskedInTable\" }\n\
            [callback]\nkeys = [\"new MaskedKey\"]\n[kafka.client]\nsasl.password = \"mp7\"\n\
            ssl.key.password = 20264711\nunknown.long = \"Masked 8\"\nunknown.short = \"Shown77\"\n";
        let _ = ConfigLayers::from_parts(text.parse().unwrap(), std::iter::empty())
            .unwrap()
            .settings()
            .0;
        for (text, masked) in [
            ("MaskedInList", "(hidden)"),
            ("MaskedInTable", "(hidden)"),
            ("the new key is MaskedKey", "the new key is (hidden)"),
            ("mp7", "(hidden)"),
            ("20264711", "(hidden)"),
            ("Masked 8", "(hidden)"),
            ("Shown77", "Shown77"),
        ] {
            assert_eq!(redact(text), masked);
        }
    }

    #[test]
    fn is_not_printed_when_it_has_the_wrong_type() {
        for text in [
            "[callback]\nkeys = \"s3cret\"",
            "[callback]\nkeys = [[\"s3cret\"]]",
            "[callback]\nkeys = [\"a\", { s3cret = 1 }]",
            "[callback]\nkeys = { s3cret = 1 }",
            "[callback]\nkeys = [53, 3735928559]",
            "[callback]\nkeys = 3735928559",
        ] {
            assert_rejects(text, &["callback.keys", "list"]);
        }
        for text in [
            "[kafka.client]\n\"sasl.password\" = [\"s3cret\"]",
            "[kafka.client]\n\"sasl.password\" = { a = [\"s3cret\"] }",
            "[kafka]\nclient = \"s3cret\"",
            "[kafka]\nclient = [\"s3cret\"]",
        ] {
            assert_rejects(&format!("{LEAST}{text}"), &["kafka.client"]);
        }
    }

    #[test]
    fn is_not_printed_when_it_replaces_a_table() {
        for section in
            ["http", "tls", "access", "admin", "callback", "wal", "kafka", "dedup", "log"]
        {
            for value in ["\"s3cret\"", "[\"s3cret\"]"] {
                let says = format!("[{section}] must be a table");
                assert_rejects(&format!("{section} = {value}"), &[&says]);
            }
        }
    }

    #[test]
    fn before_a_broker_is_not_printed() {
        for text in [
            "[kafka]\nbrokers = \"me:s3cret-pass@kafka:9092\"",
            "[kafka]\nbrokers = \"SASL_SSL://me:s3cret-p,ss@kafka:9092,me:s3cret-pass@b:1\"",
            "[kafka.client]\nbootstrap.servers = \"me:s3cret-pass@kafka:9092\"",
        ] {
            let path = temp_file(format!("{LEAST}{text}"));
            for json in [&[][..], &["--json"]] {
                let mut command = process::livebridge(&["config", "--config"]);
                let shown = process::run(command.arg(path.path()).args(json));
                assert_eq!(shown.code, Some(64), "{shown:?}");
                let output = shown.stdout + &shown.stderr;
                assert!(output.contains("(hidden)@") && !output.contains("s3cret"), "{output}");
            }
        }
        let list = "[kafka]\nbrokers = [\"me:s3cret-pass@kafka:9092\"]";
        assert_rejects(&format!("{LEAST}{list}"), &["kafka.brokers: must be text"]);
    }

    #[test]
    fn in_the_path_is_not_printed() {
        let list = "[http]\npath = [\"/callback/s3cret\"]";
        assert_rejects(&format!("{LEAST}{list}"), &["http.path: must be text"]);
        for (path, shown) in [
            ("/callback/s3cret", "/callback/(hidden)"),
            ("/a/b/s3cret/", "/a/(hidden)"),
            ("/callback/", "/callback/"),
            ("/callback", "/callback"),
        ] {
            let config = file(&format!("{LEAST}[http]\npath = \"{path}\""));
            let settings = config.settings.to_json();
            assert_eq!(settings["http.path"]["value"], shown);
            assert!(!settings.to_string().contains("s3cret"));
        }
    }

    #[test]
    fn is_not_printed_when_the_file_is_not_toml() {
        for line in [
            "keys = [\"s3cret]",
            "keys = [\"s3cret\"",
            "keys = s3cret",
            "keys = 's3cret\"",
            "keys: [\"s3cret\"]",
            "keys = [\"s3cret\" \"s3cret\"]",
            "keys = [\"s3cret\"] s3cret",
            "keys = [\"s3cret\\q\"]",
            "keys = [\"s3cret\"]\nkeys = [\"s3cret\"]",
        ] {
            let path = temp_file(format!("\n[callback]\n{line}\n"));
            let error = Config::load(Some(path.path())).unwrap_err();
            let message = error.to_string();
            let place = format!("{}:", path.path().display());
            assert!(message.starts_with(&place), "{message}");
            let number: u32 =
                message[place.len()..].split([':', ' ']).next().unwrap().parse().unwrap();
            assert!((3..=5).contains(&number), "the line is named: {message}");
            assert!(!message.contains("s3cret"), "{message}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn is_not_printed_by_the_debug_format() {
        let config = load(
            "[callback]\nkeys = [\"s3cret\"]\n[kafka.client]\n\"sasl.password\" = \"s3cret\"",
            &[("LIVEBRIDGE_KAFKA_CLIENT_SSL_KEY_PASSWORD", "s3cret")],
        )
        .unwrap();
        for text in [format!("{config:?}"), format!("{config:#?}"), format!("{:?}", config.kafka)] {
            assert!(!text.contains("s3cret"), "{text}");
            assert!(text.contains("sasl.password"), "the names are worth showing: {text}");
        }
        // Equal values are printed alike, wherever they come from.
        assert_eq!(format!("{:?}", config.settings), "Settings { .. }");
        let variable = ("LIVEBRIDGE_ADMIN_TOKEN".to_owned(), "s3cret".to_owned());
        let layers = ConfigLayers::from_parts(toml::Table::new(), [variable].into_iter()).unwrap();
        let layers = format!("{layers:?}");
        assert!(layers.contains("LIVEBRIDGE_ADMIN_TOKEN"), "{layers}");
        assert!(!layers.contains("s3cret"), "{layers}");
    }
}

mod access {
    use super::*;

    #[test]
    fn that_is_invalid_is_rejected() {
        for (text, says) in [
            ("[access]\nallow = [\"10.0.0.0/33\"]", "access.allow: \"10.0.0.0/33\" is neither"),
            ("[access]\ntrusted_proxies = [\"lb\"]", "access.trusted_proxies: \"lb\" is neither"),
            ("[access]\nproxy_protocol = true", "access.proxy_protocol: applies only to"),
            ("[access]\nsecret = \" \"", "access.secret: is empty"),
            ("[admin]\ntoken = \"\"", "admin.token: is empty"),
            ("[tls]\ncertificate = \"a.pem\"", "tls.private_key: is not set"),
            ("[tls]\nprivate_key = \"a.key\"", "tls.certificate: is not set"),
        ] {
            let message = rejection(&format!("{LEAST}{text}"), &[]);
            assert!(message.starts_with(says), "{message}");
        }
    }

    #[test]
    fn secrets_are_in_no_message() {
        for text in ["[access]\nsecret = ", "[admin]\ntoken = "] {
            for value in ["37359285", "[\"s3cret\"]", "{ s3cret = 1 }"] {
                assert_rejects(&format!("{LEAST}{text}{value}"), &["must be text"]);
            }
        }
    }

    #[test]
    fn a_private_key_without_line_breaks_is_in_no_message() {
        certificate();
        let key = fs::read_to_string(format!("{TLS}/a.key")).unwrap();
        let bytes = key.lines().nth(1).unwrap();
        for text in [key.replace('\n', " "), key.replace('\n', ""), key.replacen('\n', "", 1)] {
            let damaged = temp_file(text);
            let path = damaged.path().display();
            let error = load(
                &format!("{LEAST}[tls]\ncertificate = \"{TLS}/a.pem\"\nprivate_key = \"{path}\""),
                &[],
            )
            .expect_err("a rejection");
            let output_text = format!("{error} {error:?}");
            assert!(error.to_string().contains("are the ends of its lines lost?"), "{output_text}");
            assert!(!output_text.contains(&bytes[..16]), "{output_text}");
            // Also as numbers.
            let numbers = format!("{:?}", &bytes.as_bytes()[..8]);
            assert!(!output_text.contains(numbers.trim_matches(['[', ']'])), "{output_text}");
        }
    }

    #[test]
    fn certificate_and_key_must_exist_and_match() {
        certificate();
        let not_pem = "Cargo.toml".to_owned();
        let (pem, key, other) =
            (format!("{TLS}/a.pem"), format!("{TLS}/a.key"), format!("{TLS}/b.key"));
        for (certificate, secret, says) in [
            (&"/nowhere".to_owned(), &key, "tls: cannot read a certificate from /nowhere"),
            (&not_pem, &key, "tls: cannot read a certificate from Cargo.toml"),
            (&key, &key, "tls: cannot read a certificate from"),
            (&pem, &not_pem, "tls: cannot read a private key from Cargo.toml"),
            (&pem, &pem, "tls: cannot read a private key from"),
            (&pem, &other, "cannot be used together"),
        ] {
            let text =
                format!("{LEAST}[tls]\ncertificate = {certificate:?}\nprivate_key = {secret:?}");
            assert_rejects(&text, &[says]);
        }
    }
}

#[test]
fn every_file_that_is_read_is_listed() {
    certificate();
    let dir = tempfile::tempdir().unwrap();
    let (path, keys) = (dir.path().join("livebridge.toml"), dir.path().join("keys"));
    fs::write(&keys, "k").unwrap();
    let (certificate, key) = (format!("{TLS}/a.pem"), format!("{TLS}/a.key"));
    let tls = format!("[tls]\ncertificate = \"{certificate}\"\nprivate_key = \"{key}\"\n");
    let callback = format!("[callback]\nkeys_file = \"{}\"\n", keys.display());
    fs::write(&path, tls + &callback).unwrap();
    let expected = [&keys, Path::new(&certificate), Path::new(&key), &path];
    assert_eq!(Config::load(Some(&path)).unwrap().files, expected);
}

/// The names of the files that only livebridge should be able to read, each with its key, when
/// `text` is in the file `configuration`.
fn secret_files(text: &str) -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("configuration");
    fs::write(&path, text).unwrap();
    let settings = ConfigLayers::read(Some(&path)).unwrap().settings();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    settings.secret_files().into_iter().map(|(path, key)| (name(&path), key)).collect()
}

#[test]
fn files_that_contain_secrets_are_known_by_the_first_key_that_makes_them_secret() {
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|&(file, key)| (file.to_owned(), key.to_owned())).collect()
    };
    let harmless = "[tls]\ncertificate = \"/tls.pem\"\n[kafka.client]\nssl.ca.location = \"/ca\"\n";
    assert_eq!(secret_files(harmless), []);
    let named = "[callback]\nkeys_file = \"/keys\"\n[tls]\nprivate_key = \"/tls.key\"\n\
        [kafka.client]\nssl.key.location = \"/a.key\"\nssl.keystore.location = \"/store\"\n";
    let expected = [
        ("a.key", "kafka.client.ssl.key.location"),
        ("keys", "callback.keys_file"),
        ("store", "kafka.client.ssl.keystore.location"),
        ("tls.key", "tls.private_key"),
    ];
    assert_eq!(secret_files(named), owned(&expected));
    let inside = "[http]\npath = \"/a\"\n[callback]\nkeys = [\"k\"]\n\
        [kafka.client]\nsasl.password = \"p\"\n";
    assert_eq!(secret_files(inside), owned(&[("configuration", "callback.keys")]));
    let path = "[kafka.client]\nssl.key.pem = \"/looks/like/a/path\"\n";
    assert_eq!(secret_files(path), owned(&[("configuration", "kafka.client.ssl.key.pem")]));
}

#[test]
fn an_empty_variable_does_not_open_the_intake() {
    for empty in ["", " ", ","] {
        assert_rejects_variable(
            "LIVEBRIDGE_ACCESS_ALLOW",
            empty,
            &["LIVEBRIDGE_ACCESS_ALLOW: is empty", "leave the variable out"],
        );
    }
}

mod keys_of_a_file {
    use super::*;

    #[test]
    fn are_one_per_line_and_add_to_those_of_the_configuration() {
        let path = temp_file("first\r\n\n  second \n\t\nthird");
        let text = format!("[callback]\nkeys_file = \"{}\"\n", path.path().display());
        let config = file(&text);
        let signs =
            |config: &Config| config.verifier.keys.iter().map(|key| key.sign("1")).collect();
        let expected = |keys: &[&str]| -> Vec<[u8; 16]> {
            let quoted: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
            signs(&file(&format!("[callback]\nkeys = [{}]", quoted.join(","))))
        };
        let found: Vec<[u8; 16]> = signs(&config);
        assert_eq!(found, expected(&["first", "second", "third"]));
        let found: Vec<[u8; 16]> = signs(&file(&format!("{text}keys = [\"own\"]")));
        assert_eq!(found, expected(&["own", "first", "second", "third"]));
    }

    #[test]
    fn are_named_by_their_prefix_or_else_by_their_position() {
        let path = temp_file("2026-11\tthe-first\n\n  old.one   the-second \nthird");
        let keys = "keys = [\"own\", \"\", \"a_name its-key\"]";
        let text = format!("[callback]\nkeys_file = \"{}\"\n{keys}", path.path().display());
        let names: Vec<String> =
            file(&text).verifier.keys.iter().map(|key| key.name().to_owned()).collect();
        assert_eq!(names, ["key-1", "a_name", "2026-11", "old.one", "key-5"]);
        let by_environment = load("", &[("LIVEBRIDGE_CALLBACK_KEYS", "new abcd, old efgh,ijk")]);
        let shown = shown(&by_environment.unwrap());
        assert!(shown.contains("[CallbackKey(new, ..), CallbackKey(old, ..), CallbackKey(key-3"));
    }

    #[test]
    fn that_are_ambiguous_are_rejected_and_not_printed() {
        for (keys, says) in [
            ("[\"a s3cret s3cret\"]", "entry 1 has more than a name and a key"),
            ("[\"b\", \"s3cret/a long-s3cret\"]", "entry 2 has a name that is not made of"),
            (
                "[\"s3cret_s3cret_s3cret_s3cret_s3cre s3cret_s3cret_s3cret_s3cret_s3cret\"]",
                "entry 1 has a name that is not made of",
            ),
            ("[\"a s3cret\", \"a s3cret2\"]", "entry 2 has the name of one before it"),
            ("[\"key-2 s3cret\", \"s3cret2\"]", "entry 2 has the name of one before it"),
            ("[\"a s3cret\", \"b cd\", \"d s3cret\"]", "entry 3 is the same key as one before it"),
        ] {
            assert_rejects(&format!("[callback]\nkeys = {keys}"), &["callback.keys: ", says]);
        }
    }

    #[test]
    fn are_never_mistaken_for_their_names() {
        let file_of_keys = temp_file("");
        let path = file_of_keys.path();
        let text = format!("[callback]\nkeys_file = \"{}\"\n", path.display());
        for (name, key) in [
            ("new", "s3cretS3CRET"),
            ("production-2026.11_b", "s3cretS3CRETs3cretS3CRET"),
            ("abc", "s3cr"),
            ("abcdefghijklmnopqrstuvwxyz-01234", "s3cretS3CRETs3cretS3CRETs3cretS3C"),
        ] {
            fs::write(path, format!("\nfirst another-key\n{name} {key}\n")).unwrap();
            assert_eq!(file(&text).verifier.keys[1].name(), name);
            // With name and key swapped, the metrics would print the key.
            fs::write(path, format!("\nfirst another-key\n{key} {name}\n")).unwrap();
            let message = rejection(&text, &[]);
            let line = format!("callback.keys_file: line 3 of {} has a name", path.display());
            assert!(message.starts_with(&line), "{message}");
            assert!(message.contains("write the name first"), "{message}");
            assert!(!message.contains(key) && !message.contains(name), "{message}");
        }
        // If both have the same length, both orders are possible.
        let message = rejection("", &[("LIVEBRIDGE_CALLBACK_KEYS", "good a-key, s3cret letter")]);
        assert!(message.contains("entry 2 has a name that is not shorter"), "{message}");
        assert!(!message.contains("letter"), "{message}");
    }

    #[test]
    fn in_an_empty_or_missing_file_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let text = format!("[callback]\nkeys_file = \"{}\"\n", path.display());
        assert_rejects(&text, &["callback.keys_file", &*path.to_string_lossy()]);
        fs::write(&path, "\n \n").unwrap();
        assert!(rejection(&text, &[]).starts_with("callback.keys: is empty"));
    }
}

#[test]
fn a_byte_order_mark_is_ignored_in_key_files_and_configuration() {
    let keys = temp_file("\u{feff}secret\n");
    let text = format!("\u{feff}[callback]\nkeys_file = \"{}\"\n", keys.path().display());
    let path = temp_file(text);
    let config = Config::load(Some(path.path())).unwrap();
    let plain = file("[callback]\nkeys = [\"secret\"]");
    assert_eq!(config.verifier.keys[0].sign("1"), plain.verifier.keys[0].sign("1"));
}

#[test]
fn keys_that_the_console_cannot_produce_are_warned_about_and_not_printed() {
    for (key, says) in [
        ("\\\"s3cret\\\"", "entry 1 is in quotes"),
        ("'s3cret'", "entry 1 is in quotes"),
        ("${s3cret}", "entry 1 looks like a variable"),
        ("$(s3cret)", "entry 1 looks like a variable"),
        ("s3crets3crets3crets3crets3crets3cret", "entry 1 has more than the 32"),
    ] {
        let config = file(&format!("[callback]\nkeys = [\"{key}\"]"));
        let [note] = &config.notes[..] else { panic!("{key}: one note, not {:?}", config.notes) };
        assert!(note.contains(says) && !note.contains("s3cret"), "{note}");
    }
    let fits = "s".repeat(32);
    assert_eq!(file(&format!("[callback]\nkeys = [\"{fits}\"]")).notes, Vec::<String>::new());
}

#[test]
fn short_forms_of_addresses_are_accepted() {
    for (text, address) in
        [("8080", "0.0.0.0:8080"), (":8080", "0.0.0.0:8080"), ("localhost:8080", "127.0.0.1:8080")]
    {
        let config = file(&format!("{LEAST}[http]\nlisten = \"{text}\""));
        assert_eq!(config.http.listen.to_string(), address);
        let config =
            load(LEAST, &[("LIVEBRIDGE_HTTP_LISTEN", "80"), ("LIVEBRIDGE_ADMIN_LISTEN", text)])
                .unwrap();
        assert_eq!(config.admin.listen.to_string(), address);
    }
    let text = format!("{LEAST}[http]\nlisten = \"example.com:80\"");
    assert_rejects(&text, &["http.listen", "\"127.0.0.1:8080\""]);
}

#[test]
fn unsigned_types_are_numbers_names_or_all() {
    let unsigned = |text: &str| file(&format!("{LEAST}unsigned = {text}")).verifier.unsigned;
    let types =
        |codes: &[i64]| UnsignedPolicy::Types(codes.iter().copied().map(EventType).collect());
    assert_eq!(unsigned("[]"), UnsignedPolicy::Rejected);
    assert_eq!(unsigned("[314, 315]"), types(&[314, 315]));
    assert_eq!(unsigned("[\"314\", \"audio-moderation\", 999, 0]"), types(&[314, 315, 999, 0]));
    assert_eq!(unsigned("[\"all\"]"), UnsignedPolicy::All);
    assert_eq!(unsigned("[314, \"all\", \"push\"]"), UnsignedPolicy::All);
}

mod kafka {
    use super::*;

    fn client(text: &str, environment: &[(&str, &str)]) -> BTreeMap<String, String> {
        load(&format!("{LEAST}[kafka.client]\n{text}"), environment).unwrap().kafka.client
    }

    #[test]
    fn settings_reach_librdkafka_as_text() {
        let settings = client(
            "\"sasl.username\" = \"me\"\n\"queue.buffering.max.kbytes\" = 65536\n\
             \"socket.keepalive.enable\" = true\n\"partitioner\" = \"consistent\"",
            &[("LIVEBRIDGE_KAFKA_CLIENT_SASL_PASSWORD", "p")],
        );
        let expected = [
            ("partitioner", "consistent"),
            ("queue.buffering.max.kbytes", "65536"),
            ("sasl.password", "p"),
            ("sasl.username", "me"),
            ("socket.keepalive.enable", "true"),
        ];
        assert_eq!(settings, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn settings_need_no_quotes_around_their_names() {
        // Unquoted dots denote nested tables in TOML.
        let settings = client(
            "security.protocol = \"SASL_PLAINTEXT\"\nsasl.mechanisms = \"PLAIN\"\n\
             sasl.username = \"me\"\nsasl.password = \"no\"\nssl.ca.location = \"/ca\"",
            &[("LIVEBRIDGE_KAFKA_CLIENT_SASL_PASSWORD", "p")],
        );
        let expected = [
            ("sasl.mechanisms", "PLAIN"),
            ("sasl.password", "p"),
            ("sasl.username", "me"),
            ("security.protocol", "SASL_PLAINTEXT"),
            ("ssl.ca.location", "/ca"),
        ];
        assert_eq!(settings, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn a_variable_takes_precedence_over_every_spelling_of_a_name_and_is_noted() {
        for (written, setting, variable) in [
            ("\"ssl.ca.location\"", "ssl.ca.location", "SSL_CA_LOCATION"),
            ("ssl.ca.location", "ssl.ca.location", "SSL_CA_LOCATION"),
            ("sasl.mechanism", "sasl.mechanisms", "SASL_MECHANISMS"),
            ("queue.buffering.max.ms", "linger.ms", "LINGER_MS"),
        ] {
            let path = temp_file(format!("{LEAST}[kafka.client]\n{written} = \"1\"\n"));
            let variable = format!("LIVEBRIDGE_KAFKA_CLIENT_{variable}");
            let mut command = process::livebridge(&["config", "--json", "--config"]);
            let shown = process::run(command.arg(path.path()).env(&variable, "2"));
            let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
            let client: Vec<_> = shown
                .as_object()
                .unwrap()
                .iter()
                .filter(|(key, _)| key.contains("client"))
                .collect();
            let expected = serde_json::json!({"value": "2", "source": variable});
            assert_eq!(client, [(&format!("kafka.client.{setting}"), &expected)], "{written}");
            let mut command = process::livebridge(&["check", "--offline", "--config"]);
            let checked = process::run(command.arg(path.path()).env(&variable, "2"));
            let note = format!("kafka.client.{setting}: {variable} takes precedence over");
            let line = format!("{note} {}:4", path.path().display());
            assert!(checked.code == Some(64) || checked.stdout.contains(&line), "{checked:?}");
        }
    }

    #[test]
    fn two_spellings_of_a_name_are_rejected() {
        for (text, says) in [
            (
                "[kafka.client]\n\"ssl.ca.location\" = \"/a\"\nssl.ca.location = \"/b\"",
                "ssl.ca.location",
            ),
            ("[kafka.client]\nlinger.ms = 5\nqueue.buffering.max.ms = 6", "queue.buffering.max.ms"),
            ("[kafka.topics]\n1 = \"a\"\npush = \"b\"", "as 1"),
        ] {
            assert_rejects(&format!("{LEAST}{text}"), &["twice", says]);
        }
        for [one, other] in [
            ["LIVEBRIDGE_KAFKA_TOPICS_1", "LIVEBRIDGE_KAFKA_TOPICS_PUSH"],
            ["LIVEBRIDGE_KAFKA_CLIENT_SASL_MECHANISM", "LIVEBRIDGE_KAFKA_CLIENT_SASL_MECHANISMS"],
            ["LIVEBRIDGE_LOG_LEVEL", "LIVEBRIDGE_log_level"],
        ] {
            let message = rejection(LEAST, &[(one, "s3cret"), (other, "s3cret")]);
            assert!(message.contains(one) && message.contains(other), "{message}");
        }
    }

    #[test]
    fn a_variable_for_a_topic_takes_precedence_however_the_event_type_is_written() {
        for (written, variable) in [("push", "1"), ("1", "PUSH"), ("push", "PUSH"), ("01", "1")] {
            let text = format!("{LEAST}[kafka.topics]\n{written} = \"from-file\"");
            let name = format!("LIVEBRIDGE_KAFKA_TOPICS_{variable}");
            let config = load(&text, &[(&name, "from-env")]).unwrap();
            assert_eq!(config.topics.of(Some(EventType(1))), "from-env", "{written} {variable}");
            assert!(!config.settings.to_json().to_string().contains("from-file"), "{written}");
        }
    }

    #[test]
    fn settings_that_guarantees_depend_on_are_rejected_under_every_alias() {
        // Some settings have two names with the same effect.
        for name in ["acks", "request.required.acks", "bootstrap.servers", "metadata.broker.list"] {
            assert!(settings::reserved().any(|reserved| reserved == name), "{name}");
        }
        // Some names contain underscores, which variables use in place of dots.
        let plain = settings::reserved().filter(|name| !name.contains('_'));
        let variables = plain.map(|name| {
            (name, format!("LIVEBRIDGE_KAFKA_CLIENT_{}", name.to_uppercase().replace('.', "_")))
        });
        for (name, variable) in variables {
            for text in [format!("\"{name}\" = 1"), format!("{name} = 1")] {
                assert_rejects(
                    &format!("{LEAST}[kafka.client]\n{text}"),
                    &["kafka.client: ", name],
                );
            }
            assert_rejects_variable(&variable, "1", &[name]);
        }
    }

    #[test]
    fn settings_are_rejected_outside_the_bounds_that_guarantees_need() {
        for (setting, says) in [
            ("\"partitioner\" = \"random\"", "partitioner must be one of murmur2_random, "),
            (
                "\"message.max.bytes\" = 5000",
                "message.max.bytes must be a whole number from 1000000 ",
            ),
            ("\"queue.buffering.max.kbytes\" = 1", "queue.buffering.max.kbytes must be "),
            ("\"queue.buffering.max.messages\" = 1", "queue.buffering.max.messages must be "),
            ("\"linger.ms\" = 900000", "linger.ms must be "),
            ("\"queue.buffering.max.ms\" = 900000", "queue.buffering.max.ms must be "),
            ("\"request.timeout.ms\" = 1", "request.timeout.ms must be "),
            ("\"socket.timeout.ms\" = 300000", "socket.timeout.ms must be "),
            (
                "\"enable.gapless.guarantee\" = true",
                "enable.gapless.guarantee is set by livebridge",
            ),
            ("\"max.in.flight\" = 5", "max.in.flight is set by livebridge"),
            ("\"retries\" = 0", "retries is set by livebridge"),
            ("\"test.mock.num.brokers\" = 1", "test.mock.num.brokers is set by livebridge"),
        ] {
            let says = format!("kafka.client: {says}");
            assert_rejects(&format!("{LEAST}[kafka.client]\n{setting}"), &[&says]);
        }
        for setting in
            ["\"partitioner\" = \"murmur2\"", "\"linger.ms\" = 500", "\"batch.size\" = 65536"]
        {
            client(setting, &[]);
        }
    }

    #[test]
    fn settings_that_weaken_security_are_accepted_with_a_warning() {
        let text =
            format!("{LEAST}[kafka.client]\n\"enable.ssl.certificate.verification\" = false");
        let [note] = &file(&text).notes[..] else { panic!("one note") };
        assert!(
            note.contains("enable.ssl.certificate.verification") && note.contains("pose as Kafka")
        );
        assert_eq!(file(LEAST).notes, Vec::<String>::new());
    }

    #[test]
    fn unknown_settings_are_rejected_with_a_suggestion_and_without_their_value() {
        for (name, says) in [
            ("sasl.passwrod", "did you mean sasl.password?"),
            ("SASL.PASSWORD", "did you mean sasl.password?"),
            ("Sasl.Password", "did you mean sasl.password?"),
            ("sasl.pasword", "did you mean sasl.password?"),
            ("sasl.jaas.config", "in its place: sasl.username and sasl.password"),
            ("ssl.truststore.password", "in its place: ssl.ca.location (PEM)"),
            ("ssl.key.pasword", "did you mean ssl.key.password?"),
            ("something.else.entirely", "librdkafka has no setting something.else.entirely"),
        ] {
            for text in [format!("\"{name}\" = \"s3cret\""), format!("{name} = \"s3cret\"")] {
                assert_rejects(&format!("{LEAST}[kafka.client]\n{text}"), &[says, name]);
            }
            let variable =
                format!("LIVEBRIDGE_KAFKA_CLIENT_{}", name.to_uppercase().replace('.', "_"));
            let known = name.to_lowercase() == "sasl.password";
            if !known {
                assert_rejects_variable(&variable, "s3cret", &[says]);
            }
        }
    }

    #[test]
    fn values_that_librdkafka_rejects_are_printed_only_when_not_secret() {
        for (text, says) in [
            ("security.protocol = \"s3cur3\"", "s3cur3"),
            (
                "sasl.mechanisms = \"PLAIN\"\nsecurity.protocol = \"sasl_plaintext\"\nsasl.password = \"s3cret\"",
                "sasl.username",
            ),
            ("sasl.oauthbearer.method = \"oidc\"", "OAuth/OIDC"),
            ("ssl.key.pem = \"s3cret\"\nsecurity.protocol = \"ssl\"", "ssl.key.pem"),
            ("ssl.ca.pem = \"s3cret\"\nsecurity.protocol = \"ssl\"", "ssl.ca.pem"),
        ] {
            let parts = ["kafka.client: librdkafka rejects", says];
            assert_rejects(&format!("{LEAST}[kafka.client]\n{text}"), &parts);
        }
    }

    #[test]
    fn files_named_by_settings_must_exist_and_have_the_right_kind() {
        let garbage = temp_file("no certificate");
        let garbage = garbage.path().to_str().unwrap();
        for setting in [
            "ssl.ca.location", "ssl.certificate.location", "ssl.key.location",
            "ssl.keystore.location",
        ] {
            for path in ["/nowhere/file.pem", garbage] {
                let text = format!("security.protocol = \"SSL\"\n{setting} = \"{path}\"");
                let text = format!("{LEAST}[kafka.client]\n{text}");
                assert_rejects(&text, &["kafka.client: ", setting]);
            }
        }
    }

    #[test]
    fn replication_can_be_left_to_the_brokers() {
        assert_eq!(file(&format!("{LEAST}[kafka]\nreplication = -1")).kafka.replication, -1);
        for replication in ["0", "-2"] {
            let text = format!("{LEAST}[kafka]\nreplication = {replication}");
            assert_rejects(&text, &["-1 for the brokers' default"]);
        }
    }

    #[test]
    fn topics_can_be_named_type_by_type() {
        let config = load(
            &format!("{LEAST}[kafka]\ntopic_prefix = \"tv\"\n[kafka.topics]\npush = \"on-air\"\n317 = \"nsfw\"\n4711 = \"new\"\nother = \"rest\""),
            &[
                ("LIVEBRIDGE_KAFKA_TOPICS_PUSH", "from-the-environment"),
                ("LIVEBRIDGE_KAFKA_TOPICS_AUDIO_MODERATION", "nsfw"),
            ],
        )
        .unwrap();
        let of = |code: i64| config.topics.of(Some(EventType(code)));
        assert_eq!((of(0), of(1)), ("tv.interrupt", "from-the-environment"));
        assert_eq!((of(315), of(317)), ("nsfw", "nsfw"));
        assert_eq!((of(4711), of(4712)), ("new", "rest"));
        assert_eq!(config.topics.of(None), "rest");
        assert_eq!(
            (config.topics.dead_letter(), config.topics.ledger()),
            ("tv.dead-letter", "tv.ledger")
        );
        let all = config.topics.all();
        assert_eq!(all.iter().filter(|name| **name == "nsfw").count(), 1, "each once");
        assert_eq!(all.len(), 18 + 1 + 1 + 1 - 1, "types, the new one, other, dead letters");
    }

    #[test]
    fn events_cannot_be_sent_to_the_ledger() {
        for text in ["push = \"live.ledger\"", "other = \"live.ledger\""] {
            let parts = ["kafka.topics: ", "live.ledger"];
            assert_rejects(&format!("{LEAST}[kafka.topics]\n{text}"), &parts);
        }
    }
}

#[test]
fn an_invalid_configuration_is_reported_in_one_line_with_exit_code_64() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("livebridge.toml");
    let config = path.to_str().unwrap();
    for (text, says) in
        [("[http]\nlissten = \"a\"", "lissten"), ("", "callback.keys"), ("[http", "is not TOML")]
    {
        fs::write(&path, text).unwrap();
        for command in ["serve", "check"] {
            let finished = process::run(&mut process::livebridge(&[command, "--config", config]));
            assert_eq!(finished.code, Some(64), "{command}: {finished:?}");
            assert!(finished.stderr.starts_with("livebridge: "), "{finished:?}");
            assert!(finished.stderr.contains(says), "{finished:?}");
        }
    }
    fs::remove_file(&path).unwrap();
    let finished = process::run(&mut process::livebridge(&["serve", "--config", config]));
    assert_eq!(finished.code, Some(64));
    assert!(finished.stderr.contains(config), "{finished:?}");
    // The path can also be set by a variable; an invalid variable has the same exit code.
    for (name, value, says) in
        [("LIVEBRIDGE_CONFIG", config, config), ("LIVEBRIDGE_HTTP_LISTN", "a", "HTTP_LISTN")]
    {
        let finished = process::run(process::livebridge(&["serve"]).env(name, value));
        assert_eq!(finished.code, Some(64));
        assert!(finished.stderr.contains(says), "{finished:?}");
    }
}

#[test]
fn every_key_is_in_the_sample_configuration() {
    let text = fs::read_to_string("deploy/livebridge.toml").unwrap();
    for (section, key, ..) in KEYS {
        let (_, behind) = text.split_once(&format!("\n[{section}]\n")).unwrap();
        let own = behind.split("\n[").next().unwrap();
        let there = [format!("\n{key} = "), format!("\n# {key} = ")];
        assert!(there.iter().any(|line| own.contains(line)), "{section}.{key}");
    }
}

#[test]
fn values_that_defeat_each_other_are_noted() {
    let cases = [
        ("[wal]\nmax_bytes = \"16MiB\"", "wal.max_bytes: below 64.0 MiB"),
        ("[dedup]\nwindow = \"15m\"\n[callback]\nexpiry_leeway = \"5m\"", "dedup.window: "),
        ("[callback]\nexpiry_leeway = \"2h\"", "later than dedup.window, 1h, are published again"),
    ];
    for (text, says) in cases {
        let environment = [("LIVEBRIDGE_CALLBACK_KEYS", "a-key-of-the-console")];
        let notes = load(text, &environment).unwrap().notes;
        assert!(notes.len() == 1 && notes[0].contains(says), "{text}: {notes:?}");
    }
}
