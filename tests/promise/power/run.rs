//! One history: consecutive processes on one directory, and the callbacks sent to each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::load::{Callback, Client, Sent};
use super::site::{Bridge, Options, Site};

/// The history so far.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) site: Site,
    pub(crate) sent: Vec<Sent>,
    connections: u32,
    answered: usize,
}

impl Run {
    pub(crate) fn new(site: Site) -> Self {
        Self { site, sent: Vec::new(), connections: 0, answered: 0 }
    }

    /// Starts a process, which must not exit.
    pub(crate) fn start(&self, options: Options<'_>) -> Bridge {
        self.site.start(options).expect("livebridge starts")
    }

    /// Sends `count` callbacks of about `bytes` on each of `connections`, and waits for all
    /// responses.
    pub(crate) fn load(&mut self, bridge: &Bridge, connections: u32, count: u32, bytes: u32) {
        let answered = &AtomicUsize::new(0);
        let clients = self.connect(bridge, connections);
        thread::scope(|scope| {
            let send = |(number, client)| {
                scope.spawn(move || send(client, number, count, bytes, answered))
            };
            let clients: Vec<_> = clients.into_iter().map(send).collect();
            self.sent.extend(clients.into_iter().map(|client| client.join().expect("a client")));
        });
        let answered = answered.load(Ordering::Relaxed);
        assert_eq!(answered, connections as usize * count as usize, "every callback is answered");
        self.answered += answered;
    }

    /// The same without a limit until there were `answers` responses; then kills the process.
    pub(crate) fn load_and_kill(
        &mut self,
        bridge: Bridge,
        connections: u32,
        bytes: u32,
        answers: usize,
    ) {
        let answered = &AtomicUsize::new(0);
        let clients = self.connect(&bridge, connections);
        thread::scope(|scope| {
            let send = |(number, client)| {
                scope.spawn(move || send(client, number, u32::MAX, bytes, answered))
            };
            let clients: Vec<_> = clients.into_iter().map(send).collect();
            while answered.load(Ordering::Relaxed) < answers
                && clients.iter().any(|client| !client.is_finished())
            {
                thread::sleep(Duration::from_millis(1));
            }
            self.site.kill(bridge);
            self.sent.extend(clients.into_iter().map(|client| client.join().expect("a client")));
        });
        self.answered += answered.load(Ordering::Relaxed);
    }

    /// The number of answered callbacks; after a kill possibly one less per connection.
    pub(crate) fn answered(&self) -> usize {
        self.answered
    }

    pub(crate) fn stop(&mut self, bridge: Bridge) {
        self.site.stop(bridge);
    }

    /// Stops a process without Kafka, and kills it when it only waits for Kafka.
    pub(crate) fn stop_unpublished(&mut self, bridge: Bridge) {
        bridge.terminate();
        thread::sleep(Duration::from_millis(300));
        self.site.kill(bridge);
    }

    pub(crate) fn kill(&mut self, bridge: Bridge) {
        self.site.kill(bridge);
    }

    /// New connections with their numbers. All connect before any sends, so that none is too late
    /// for a process that is killed after a number of responses.
    fn connect(&mut self, bridge: &Bridge, connections: u32) -> Vec<(u32, Client)> {
        let first = self.connections;
        self.connections += connections;
        let client = |number| (number, Client::connect(bridge.process(), bridge.address()));
        (first..self.connections).map(client).collect()
    }
}

/// Sends callbacks sequentially on a separate connection.
fn send(
    mut client: Client,
    connection: u32,
    count: u32,
    bytes: u32,
    answered: &AtomicUsize,
) -> Sent {
    for number in 0..count {
        // Between two thirds of the size and all of it.
        let bytes = bytes - number % 7 * (bytes / 20);
        if client.send(Callback { connection, number, bytes }).is_err() {
            break;
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
    client.finish()
}
