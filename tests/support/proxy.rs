//! A TCP proxy in front of a broker that parses Kafka's framing. It closes or delays connections,
//! and triggers traps at chosen requests, so that tests can act within a transaction without
//! support in livebridge.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Kafka's names for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i16)]
#[expect(clippy::enum_variant_names, reason = "the name is Kafka's")]
pub enum Api {
    Produce = 0,
    Fetch = 1,
    ListOffsets = 2,
    Metadata = 3,
    FindCoordinator = 10,
    ApiVersions = 18,
    CreateTopics = 19,
    InitProducerId = 22,
    AddPartitionsToTxn = 24,
    EndTxn = 26,
}

impl Api {
    const ALL: [Self; 10] = [
        Self::Produce,
        Self::Fetch,
        Self::ListOffsets,
        Self::Metadata,
        Self::FindCoordinator,
        Self::ApiVersions,
        Self::CreateTopics,
        Self::InitProducerId,
        Self::AddPartitionsToTxn,
        Self::EndTxn,
    ];

    /// The name of a request, or its number if it has none here.
    fn name(number: i16) -> String {
        let named = Self::ALL.into_iter().find(|api| *api as i16 == number);
        named.map_or_else(|| format!("api {number}"), |api| format!("{api:?}"))
    }
}

/// The point on a request's way at which a trap triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The broker never receives the request.
    Before,
    /// The broker receives the request when `spring` returns, even if the client is gone by then.
    Late,
    /// The broker receives the request, and the client is killed before the response.
    Sent,
    /// The broker has responded, and the response does not arrive.
    Answered,
    /// The response has just arrived.
    Arrived,
}

/// An action at the `nth` later request of a kind.
pub struct Trap {
    pub api: Api,
    pub nth: u32,
    pub stage: Stage,
    /// Only requests of this client ID count.
    pub client: Option<String>,
    /// Only requests that name this topic count.
    pub topic: Option<String>,
    /// At [`Stage::Before`], the connection is also closed when this returns.
    pub spring: Box<dyn FnOnce() + Send>,
}

/// The state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Good,
    /// Connections are reset, and new ones closed at once.
    Refusing,
    /// Packets are dropped silently in both directions.
    Silent,
    /// Every frame takes this long, one after another.
    Slow(Duration),
    /// All connections share this bandwidth in bytes per second, in both directions together.
    Limited(u32),
}

/// A proxy for one broker.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Mutex<Option<SocketAddr>>,
    network: watch::Sender<Network>,
    trap: Mutex<Option<(Trap, mpsc::Sender<()>)>>,
    /// By the number of their API.
    requests: Mutex<BTreeMap<i16, u64>>,
    /// When a limited network has finished its current transmission.
    idle_at: Mutex<Option<tokio::time::Instant>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// A request in flight: its kind, and whether its response triggers the trap.
struct Pending {
    caught: Option<Caught>,
}

/// A trap that is about to trigger.
type Caught = (Trap, mpsc::Sender<()>);

type Answers = Arc<Mutex<HashMap<i32, Pending>>>;

impl Proxy {
    /// Listens; connections are closed until there is an upstream.
    pub fn start(runtime: &Handle) -> Self {
        let port = super::kafka::free_port();
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", port)));
        let listener = listener.expect("a port that was free just now");
        let shared = Arc::new(Shared {
            upstream: Mutex::new(None),
            network: watch::Sender::new(Network::Good),
            trap: Mutex::new(None),
            requests: Mutex::default(),
            idle_at: Mutex::new(None),
        });
        runtime.spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn set_upstream(&self, address: SocketAddr) {
        *self.shared.upstream.lock().expect("no panic under the lock") = Some(address);
    }

    pub fn set_network(&self, network: Network) {
        self.shared.network.send_replace(network);
    }

    /// Requests received so far, by their names.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        let requests = self.shared.requests.lock().expect("no panic under the lock");
        requests.iter().map(|(api, count)| (Api::name(*api), *count)).collect()
    }

    /// Sets a trap and replaces the previous one. The receiver gets a message when it triggers; its
    /// sender is dropped when the trap can no longer trigger.
    pub fn set_trap(&self, trap: Trap) -> mpsc::Receiver<()> {
        let (sprung, receiver) = mpsc::channel();
        *self.shared.trap.lock().expect("no panic under the lock") = Some((trap, sprung));
        receiver
    }

    /// Removes the trap.
    pub fn disarm(&self) {
        *self.shared.trap.lock().expect("no panic under the lock") = None;
    }
}

impl Shared {
    /// The trap, if it was set for this request.
    fn catch(&self, api: i16, client: &[u8], frame: &[u8]) -> Option<Caught> {
        *self.requests.lock().expect("no panic under the lock").entry(api).or_default() += 1;
        let mut set = self.trap.lock().expect("no panic under the lock");
        let (trap, _) = set.as_mut()?;
        let its_client = trap.client.as_ref().is_none_or(|wanted| wanted.as_bytes() == client);
        let names = |topic: &String| frame.windows(topic.len()).any(|w| w == topic.as_bytes());
        if trap.api as i16 != api || !its_client || !trap.topic.as_ref().is_none_or(names) {
            return None;
        }
        trap.nth = trap.nth.saturating_sub(1);
        if trap.nth == 0 { set.take() } else { None }
    }
}

fn spring((trap, sprung): Caught) {
    (trap.spring)();
    // The receiver may have been dropped.
    let _ = sprung.send(());
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, Arc::clone(&shared)));
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let mut network = shared.network.subscribe();
    let upstream = *shared.upstream.lock().expect("no panic under the lock");
    let Some(upstream) = upstream else { return };
    if *network.borrow_and_update() == Network::Refusing {
        return;
    }
    let Ok(broker) = TcpStream::connect(upstream).await else { return };
    // Disables Nagle's algorithm for small frames.
    let (Ok(()), Ok(())) = (client.set_nodelay(true), broker.set_nodelay(true)) else { return };
    let (client_in, client_out) = client.into_split();
    let (broker_in, broker_out) = broker.into_split();
    let answers = Answers::default();
    tokio::select! {
        () = requests(client_in, broker_out, &shared, &answers) => {}
        () = replies(broker_in, client_out, &shared, &answers) => {}
        _ = network.wait_for(|network| *network == Network::Refusing) => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    answers: &Answers,
) {
    while let Some(frame) = read_frame(&mut from).await {
        pass(shared).await;
        // Length 4, API key 2, API version 2, correlation ID 4, client ID 2 and its bytes.
        let api = i16::from_be_bytes([frame[4], frame[5]]);
        let correlation = i32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]);
        let length = usize::try_from(i16::from_be_bytes([frame[12], frame[13]])).unwrap_or(0);
        let mut caught = shared.catch(api, &frame[14..14 + length], &frame);
        let stage = caught.as_ref().map(|(trap, _)| trap.stage);
        if stage == Some(Stage::Before) {
            caught.into_iter().for_each(spring);
            return;
        }
        if stage == Some(Stage::Late) {
            tokio::task::block_in_place(|| caught.take().into_iter().for_each(spring));
        }
        let at_answer = if stage == Some(Stage::Sent) { None } else { caught.take() };
        let pending = Pending { caught: at_answer };
        answers.lock().expect("no panic under the lock").insert(correlation, pending);
        let written = transmit(shared, &mut to, &frame).await;
        caught.into_iter().for_each(spring);
        if written.is_err() {
            return;
        }
    }
}

async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
    answers: &Answers,
) {
    while let Some(frame) = read_frame(&mut from).await {
        pass(shared).await;
        let correlation = i32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]);
        let pending = answers.lock().expect("no panic under the lock").remove(&correlation);
        let mut caught = pending.and_then(|pending| pending.caught);
        if caught.as_ref().is_some_and(|(trap, _)| trap.stage == Stage::Answered) {
            caught.take().into_iter().for_each(spring);
        }
        let written = transmit(shared, &mut to, &frame).await;
        caught.into_iter().for_each(spring);
        if written.is_err() {
            return;
        }
    }
}

/// Waits according to the state of the network.
async fn pass(shared: &Shared) {
    let mut network = shared.network.subscribe();
    let now = *network.borrow_and_update();
    match now {
        Network::Slow(delay) => tokio::time::sleep(delay).await,
        _ => drop(network.wait_for(|network| *network != Network::Silent).await),
    }
}

/// Writes a frame at the network's bandwidth. Connections alternate after each block.
async fn transmit(shared: &Shared, to: &mut OwnedWriteHalf, frame: &[u8]) -> std::io::Result<()> {
    const PIECE: usize = 2 * 1024;
    for piece in frame.chunks(PIECE) {
        let network = *shared.network.borrow();
        if let Network::Limited(rate) = network {
            let takes = Duration::from_secs(piece.len() as u64) / rate;
            let until = {
                let mut idle_at = shared.idle_at.lock().expect("no panic under the lock");
                let now = tokio::time::Instant::now();
                let until = idle_at.map_or(now, |idle_at| idle_at.max(now)) + takes;
                *idle_at = Some(until);
                until
            };
            tokio::time::sleep_until(until).await;
        }
        to.write_all(piece).await?;
    }
    Ok(())
}

/// A whole frame with its length prefix; `None` at the end.
async fn read_frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let mut frame = vec![0; 4 + u32::from_be_bytes(length) as usize];
    frame[..4].copy_from_slice(&length);
    from.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}
