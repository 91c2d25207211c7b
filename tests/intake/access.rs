//! Access control of the intake: TLS, allowed networks, trusted proxies and the shared secret.
//! Rejected clients must not delay accepted ones.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use livebridge::intake::{Access, Networks, Tls};
use livebridge::secret::Secret;
use tokio_rustls::rustls::ProtocolVersion;

use crate::support::intake::{TestBed, assert_accepted, assert_rejected, push};
use crate::support::tls::{Identity, VERSIONS};
use crate::support::wire::{Answer, Wire, connect_from, post};
use crate::support::{TIME_LIMIT, wait_until, wire};

fn networks(texts: &[&str]) -> Networks {
    Networks::parse(texts.iter().copied()).unwrap()
}

/// A POST of a new callback with additional header lines.
fn post_with(lines: &str) -> String {
    post("/callback", &push()).replacen("Host: t\r\n", &format!("Host: t\r\n{lines}"), 1)
}

/// The response to a request on a connection that begins with the bytes `start`.
fn ask(bed: &TestBed, start: impl AsRef<[u8]>, request: &str) -> Option<Answer> {
    let mut wire = Wire::connect(bed.address);
    wire.send([start.as_ref(), request.as_bytes()].concat());
    wire.answer()
}

mod by_tls {
    use super::*;

    fn bed(dir: &tempfile::TempDir) -> (TestBed, Identity) {
        let identity = Identity::write(dir.path(), 2100);
        let tls = Some(Tls::load(&identity.certificate, &identity.key).unwrap());
        (TestBed::behind(Access { tls, ..Access::default() }, |_, _| {}), identity)
    }

    #[test]
    fn callbacks_are_accepted_over_tls_1_2_and_1_3_with_keep_alive() {
        let dir = tempfile::tempdir().unwrap();
        let (bed, identity) = bed(&dir);
        for (version, expected) in
            VERSIONS.into_iter().zip([ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3])
        {
            let mut wire = identity.connect(bed.address, &[version], &[]).unwrap();
            assert_eq!(wire.version(), Some(expected));
            for _ in 0..3 {
                assert_eq!(wire.exchange(post("/callback", &push())), Some(200));
            }
            assert_eq!(wire.exchange(post("/elsewhere", &push())), Some(404));
        }
        assert_eq!(bed.stored().len(), 6);
    }

    #[test]
    fn alpn_selects_http_1_1_and_rejects_clients_that_offer_only_http_2() {
        let dir = tempfile::tempdir().unwrap();
        let (bed, identity) = bed(&dir);
        let both = identity.connect(bed.address, &VERSIONS, &["h2", "http/1.1"]).unwrap();
        assert_eq!(both.protocol(), Some(&b"http/1.1"[..]));
        assert!(identity.connect(bed.address, &VERSIONS, &["h2"]).is_err());
    }

    #[test]
    fn plain_http_and_garbage_get_no_response() {
        let dir = tempfile::tempdir().unwrap();
        let (bed, identity) = bed(&dir);
        let answer = wire::exchange(bed.address, post("/callback", &push()));
        assert_eq!(answer, None, "plain HTTP gets no answer");
        for garbage in
            [&b"\x16\x03\x01\xff\xff"[..], b"\x16\x03\x01\0\x05hello", b"\x80\x2e\x01\0\x02"]
        {
            let mut wire = Wire::connect(bed.address);
            wire.send(garbage);
            wire.finish();
            assert!(wire.answer().is_none());
        }
        let mut wire = identity.connect(bed.address, &VERSIONS, &[]).unwrap();
        assert_eq!(wire.exchange(post("/callback", &push())), Some(200));
        assert_eq!(bed.stored().len(), 1);
    }

    #[test]
    fn a_stalled_handshake_delays_no_other_and_is_evicted_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::write(dir.path(), 2100);
        let tls = Some(Tls::load(&identity.certificate, &identity.key).unwrap());
        let access = Access { tls, ..Access::default() };
        let bed = TestBed::behind(access, |config, _| config.max_connections = 8);
        let stuck: Vec<Wire> = (0..32)
            .map(|number| {
                let mut wire = Wire::connect(bed.address);
                if number % 2 == 0 {
                    wire.send(b"\x16\x03\x01\x02\0\x01");
                }
                wire
            })
            .collect();
        let started = Instant::now();
        let mut wire = identity.connect(bed.address, &VERSIONS, &[]).unwrap();
        assert_eq!(wire.exchange(post("/callback", &push())), Some(200));
        assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
        drop(stuck);
    }

    #[test]
    fn each_of_8_clients_that_send_5_mib_reads_the_413() {
        // All of it must be read within the 5 s for which the intake reads on, on a busy machine, too.
        const CLIENTS: usize = 8;
        let dir = tempfile::tempdir().unwrap();
        let (bed, identity) = bed(&dir);
        let body = " ".repeat(5 << 20);
        let request = post("/callback", &body);
        let ask = || identity.connect(bed.address, &VERSIONS, &[]).ok()?.exchange(&request);
        let statuses = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect::<Vec<_>>()
        });
        let read = statuses.iter().filter(|status| **status == Some(413)).count();
        assert_eq!(read, CLIENTS, "{statuses:?}");
    }

    #[test]
    fn a_chain_expires_with_its_earliest_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::write(dir.path(), 2100);
        let tls = Tls::load(&identity.certificate, &identity.key).unwrap();
        let since_epoch = tls.expires().duration_since(std::time::UNIX_EPOCH).unwrap();
        // 2100-12-31T00:00:00Z
        assert_eq!(since_epoch.as_secs(), 4_133_894_400);
        let chain = std::fs::read_to_string(&identity.certificate).unwrap();
        let other = tempfile::tempdir().unwrap();
        let sooner = Identity::write(other.path(), 2030);
        let sooner = std::fs::read_to_string(&sooner.certificate).unwrap();
        std::fs::write(&identity.certificate, chain + &sooner).unwrap();
        let tls = Tls::load(&identity.certificate, &identity.key).unwrap();
        let since_epoch = tls.expires().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since_epoch.as_secs(), 1_924_905_600);
        let shown = format!("{tls:?}");
        assert!(shown.starts_with("Tls { certificate: "), "{shown}");
    }
}

mod from_networks {
    use super::*;

    #[test]
    fn outside_the_allowed_ones_get_403_for_callbacks_and_200_for_health_checks() {
        let allow = networks(&["192.0.2.0/24", "::1"]);
        let bed = TestBed::behind(Access { allow, ..Access::default() }, |_, _| {});
        let answer = ask(&bed, "", &post_with("X-Forwarded-For: 192.0.2.1\r\n")).unwrap();
        assert_rejected(&answer, 403, "access.allow");
        assert!(answer.closes());
        assert_eq!(wire::get(bed.address, "/readyz").status, 200);
        assert!(bed.stored().is_empty());

        let allow = networks(&["127.0.0.0/8"]);
        let bed = TestBed::behind(Access { allow, ..Access::default() }, |_, _| {});
        bed.assert_accepts_callbacks();
    }

    #[test]
    fn behind_a_trusted_proxy_come_from_x_forwarded_for() {
        let access = Access {
            allow: networks(&["192.0.2.0/24"]),
            trusted_proxies: networks(&["127.0.0.1"]),
            ..Access::default()
        };
        let bed = TestBed::behind(access, |_, _| {});
        assert_accepted(&bed.send(post_with("X-Forwarded-For: 192.0.2.7\r\n")));
        assert_accepted(&bed.send(post_with("X-Forwarded-For: 198.51.100.1, 192.0.2.7\r\n")));
        for lines in [
            "",
            "X-Forwarded-For: 198.51.100.1\r\n",
            "X-Forwarded-For: 192.0.2.7, 198.51.100.1\r\n",
            "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: 198.51.100.1\r\n",
            "X-Forwarded-For: 192.0.2.7, unknown\r\n",
            "X-Real-IP: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\n",
        ] {
            assert_rejected(&bed.send(post_with(lines)), 403, "access.allow");
        }
        assert_eq!(bed.stored().len(), 2);
        // A client that is not a trusted proxy is identified by its own address.
        let elsewhere = Access {
            allow: networks(&["192.0.2.0/24"]),
            trusted_proxies: networks(&["127.0.0.2"]),
            ..Access::default()
        };
        let bed = TestBed::behind(elsewhere, |_, _| {});
        let answer = ask(&bed, "", &post_with("X-Forwarded-For: 192.0.2.7\r\n")).unwrap();
        assert_rejected(&answer, 403, "access.allow");
    }

    #[test]
    fn behind_a_trusted_proxy_come_from_the_proxy_protocol() {
        let access = Access {
            allow: networks(&["192.0.2.0/24", "127.0.0.1"]),
            trusted_proxies: networks(&["127.0.0.1"]),
            proxy_protocol: true,
            ..Access::default()
        };
        let bed = TestBed::behind(access, |_, _| {});
        let request = post("/callback", &push());
        assert_accepted(&ask(&bed, "PROXY TCP4 192.0.2.7 10.0.0.1 5 80\r\n", &request).unwrap());
        // The proxy's own health check.
        let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
        assert_accepted(&ask(&bed, local, &post("/callback", &push())).unwrap());
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\0\x05\0\x50";
        assert_accepted(&ask(&bed, v2, &post("/callback", &push())).unwrap());
        assert_eq!(bed.stored().len(), 3);
        for start in ["PROXY nonsense\r\n", ""] {
            assert_eq!(ask(&bed, start, &request), None, "{start:?}");
        }
        // A client outside the trusted proxies can forge that header.
        let forged = post_with("X-Forwarded-For: 192.0.2.7\r\n");
        let unknown = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";
        let elsewhere = b"PROXY TCP4 198.51.100.1 10.0.0.1 5 80\r\n";
        for start in [&b"PROXY UNKNOWN\r\n"[..], unknown, elsewhere] {
            assert_rejected(&ask(&bed, start, &forged).unwrap(), 403, "access.allow");
            let check = "GET /readyz HTTP/1.1\r\n\r\n";
            assert_eq!(ask(&bed, start, check).unwrap().status, 200);
        }
        assert_eq!(bed.stored().len(), 3);

        // From a client that is not a trusted proxy, the PROXY header is a malformed request.
        let access = Access {
            trusted_proxies: networks(&["10.0.0.1"]),
            proxy_protocol: true,
            ..Access::default()
        };
        let bed = TestBed::behind(access, |_, _| {});
        let answer = ask(&bed, "PROXY TCP4 192.0.2.7 10.0.0.1 5 80\r\n", &request);
        assert_ne!(answer.map(|answer| answer.status), Some(200));
        bed.assert_accepts_callbacks();
    }

    #[test]
    fn removed_by_a_reload_close_their_connections_after_one_response() {
        let here = || Access { allow: networks(&["127.0.0.1"]), ..Access::default() };
        let bed = TestBed::behind(here(), |_, _| {});
        let mut held: Vec<Wire> = (0..2).map(|_| Wire::connect(bed.address)).collect();
        for wire in &mut held {
            wire.send(post("/callback", &push()));
            let answer = wire.answer().unwrap();
            assert_accepted(&answer);
            assert_eq!(answer.header("connection"), None);
        }
        bed.set_access(here());
        held[0].send(post("/callback", &push()));
        let answer = held[0].answer().unwrap();
        assert_accepted(&answer);
        assert_eq!(answer.header("connection"), Some("close"));
        bed.set_access(Access { allow: networks(&["192.0.2.0/24"]), ..Access::default() });
        held[1].send(post("/callback", &push()));
        let answer = held[1].answer().unwrap();
        assert_rejected(&answer, 403, "access.allow");
        assert_eq!(answer.header("connection"), Some("close"));
    }

    #[test]
    fn connections_per_address_are_limited() {
        let bed = TestBed::with(|config, _| config.max_connections_per_address = 3);
        let mut held: Vec<Wire> = (0..3).map(|_| Wire::connect(bed.address)).collect();
        for wire in &mut held {
            wire.send(post("/callback", &push()));
            assert_accepted(&wire.answer().unwrap());
        }
        let mut fourth = Wire::connect(bed.address);
        fourth.send(post("/callback", &push()));
        assert_eq!(fourth.answer(), None);
        // Other addresses are not affected.
        let other = connect_from(Ipv4Addr::new(127, 0, 0, 9), bed.address).unwrap();
        let mut other = Wire::over(other);
        other.send(post("/callback", &push()));
        assert_accepted(&other.answer().unwrap());
        held.truncate(2);
        let is_answered = || wire::exchange(bed.address, post("/callback", &push())).is_some();
        wait_until(TIME_LIMIT, is_answered, || "its slot is not released");
    }
}

#[test]
fn callbacks_without_the_shared_secret_header_are_rejected() {
    let secret = Secret::new("open sesame");
    let bed = TestBed::behind(Access { secret, ..Access::default() }, |_, _| {});
    assert_accepted(&bed.send(post_with("X-Livebridge-Secret: open sesame\r\n")));
    assert_accepted(&bed.send(post_with("x-livebridge-secret:open sesame\r\n")));
    for lines in [
        "",
        "X-Livebridge-Secret: \r\n",
        "X-Livebridge-Secret: open sesam\r\n",
        "X-Livebridge-Secret: open sesame!\r\n",
        "X-Livebridge-Secret: Open sesame\r\n",
        "X-Livebridge-Secret: x\r\nX-Livebridge-Secret: open sesame\r\n",
    ] {
        let answer = bed.send(post_with(lines));
        assert_rejected(&answer, 403, "X-Livebridge-Secret");
        assert!(!answer.body.contains("sesame"));
    }
    assert_eq!(bed.stored().len(), 2);
}
