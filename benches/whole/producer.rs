//! The reference for publishing: a plain idempotent producer that sends, from memory, the records
//! that livebridge made of callbacks. It has no log, no transactions and no ledger.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use livebridge::kafka::REQUEST_BYTES;
use rdkafka::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use super::{Fallible, kafka, stats};

/// Messages between two polls while sending.
const POLL_EVERY: u64 = 512;
/// The time-out for reading existing records.
const READ_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// The shortest sleep of a paced producer.
const TICK: Duration = Duration::from_micros(500);

/// What to send, and where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Order {
    /// Brokers whose push topic has the records.
    source: String,
    brokers: String,
    topic: String,
    /// The number of records to send; fewer existing ones are repeated.
    count: u64,
    /// Records per second, instead of as many as possible.
    #[arg(long)]
    rate: Option<f64>,
    /// Milliseconds that a batch waits for more.
    #[arg(long, default_value = "1")]
    linger: String,
}

/// Reads the records, reports that it is ready, waits for a line, sends, and reports the duration
/// in microseconds.
pub(crate) fn play(order: &Order) -> Fallible<()> {
    let records = kafka::read_all(&order.source, READ_MAX)?;
    if records.is_empty() {
        return Err("there are no records to send".into());
    }
    let producer: BaseProducer<Failures> = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &order.brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        // The same settings as livebridge.
        .set("partitioner", "murmur2_random")
        .set("linger.ms", &order.linger)
        .set("batch.size", REQUEST_BYTES.to_string())
        .set("queue.buffering.max.messages", "200000")
        .create_with_context(Failures::default())?;
    // One record first: the clock does not run while the producer connects and gets its producer
    // ID.
    send(&producer, &order.topic, &records[0])?;
    wait_for_reports(&producer);
    println!("ready {} {}", order.brokers, std::process::id());
    std::io::stdin().read_line(&mut String::new())?;
    let started = Instant::now();
    for (number, record) in (0..order.count).zip(records.iter().cycle()) {
        send(&producer, &order.topic, record)?;
        let due =
            order.rate.map(|rate| started + Duration::from_secs_f64(stats::real(number) / rate));
        if let Some(early) = due.and_then(|due| due.checked_duration_since(Instant::now())) {
            std::thread::sleep(early.max(TICK));
            producer.poll(Duration::ZERO);
        } else if number % POLL_EVERY == POLL_EVERY - 1 {
            producer.poll(Duration::ZERO);
        }
    }
    wait_for_reports(&producer);
    let took = started.elapsed();
    if let Some(error) = producer.context().0.lock().ok().and_then(|mut first| first.take()) {
        return Err(format!("a delivery failed: {error}").into());
    }
    println!("{}", took.as_micros());
    Ok(())
}

fn wait_for_reports(producer: &BaseProducer<Failures>) {
    while producer.in_flight_count() > 0 {
        producer.poll(POLL);
    }
}

fn send(
    producer: &BaseProducer<Failures>,
    topic: &str,
    record: &OwnedMessage,
) -> Result<(), KafkaError> {
    let mut next = BaseRecord::<[u8], [u8]> {
        topic,
        partition: None,
        payload: record.payload(),
        key: record.key(),
        timestamp: record.timestamp().to_millis(),
        headers: record.headers().cloned(),
        delivery_opaque: (),
    };
    loop {
        match producer.send(next) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                next = back;
                producer.poll(POLL);
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// The first delivery that failed.
#[derive(Default)]
struct Failures(Mutex<Option<KafkaError>>);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let (Err((error, _)), Ok(mut first)) = (result, self.0.lock()) {
            first.get_or_insert_with(|| error.clone());
        }
    }
}
