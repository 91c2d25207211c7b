//! A TCP proxy to Kafka that a test enables when it needs it.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

/// A TCP proxy to Kafka. Until it is opened, it closes every connection at once.
pub(crate) struct KafkaGate {
    pub(crate) address: SocketAddr,
    open: Arc<AtomicBool>,
    connections: Arc<AtomicU32>,
}

impl KafkaGate {
    pub(crate) fn to(brokers: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&open);
        let connections = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for inside in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::Relaxed);
                if !opened.load(Ordering::Relaxed) {
                    continue;
                }
                let outside = TcpStream::connect(&brokers).unwrap();
                for (mut from, mut to) in
                    [(inside.try_clone().unwrap(), outside.try_clone().unwrap()), (outside, inside)]
                {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { address, open, connections }
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }
}
