"""Prints the contents of Kafka topics: an independent consumer for the tests.

Reads every partition from its beginning to the end it has when reading starts, and prints one JSON
line per message. Bytes (key, value, headers) are printed as text with one character per byte
(Latin-1), so nothing is lost and JSON payloads stay readable. With --fields a line is an array of
just the named things: topic, partition, offset, timestamp, key, value, or else a header's name.
"""

import argparse
import sys
import time
from json.encoder import encode_basestring_ascii as quoted

from confluent_kafka import OFFSET_BEGINNING, Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

# Without a JSON encoder, which takes three times as long for a million messages.
PLACE = {
    "topic": lambda message: quoted(message.topic()),
    "partition": lambda message: str(message.partition()),
    "offset": lambda message: str(message.offset()),
    "timestamp": lambda message: str(message.timestamp()[1]),
    "key": lambda message: text(message.key()),
    "value": lambda message: text(message.value()),
}


def text(data):
    return "null" if data is None else quoted(data.decode("latin-1"))


def headers(message):
    return ",".join(f"[{quoted(name)},{text(value)}]" for name, value in message.headers() or [])


def whole(message):
    place = ",".join(f'"{name}":{read(message)}' for name, read in PLACE.items())
    return f'{{{place},"headers":[{headers(message)}]}}'


def selected(fields):
    """An array of these fields; the first header of a name counts."""
    names = [field for field in fields if field not in PLACE]

    def line(message):
        found = {}
        if names:
            for name, value in message.headers() or []:
                if name in names:
                    found.setdefault(name, value)
        values = (PLACE[field](message) if field in PLACE else text(found.get(field)) for field in fields)
        return f"[{','.join(values)}]"

    return line


def partitions(consumer, names):
    """The partitions of the named topics; a name that ends in '*' is a prefix."""
    topics = consumer.list_topics(timeout=30).topics
    chosen = set()
    for name in names:
        if name.endswith("*"):
            chosen.update(topic for topic in topics if topic.startswith(name[:-1]))
        elif name in topics:
            chosen.add(name)
        else:
            sys.exit(f"there is no topic {name}")
    return [TopicPartition(topic, id) for topic in sorted(chosen) for id in sorted(topics[topic].partitions)]


def ends(bootstrap, parts, isolation):
    """The current end of each partition: after the last message visible at that isolation level."""
    level = getattr(IsolationLevel, isolation.upper())
    admin = AdminClient({"bootstrap.servers": bootstrap})
    asked = admin.list_offsets({part: OffsetSpec.latest() for part in parts}, isolation_level=level, request_timeout=30)
    return {(part.topic, part.partition): found.result().offset for part, found in asked.items()}


def read(consumer, parts, end, line, timeout):
    open_parts = {part for part, offset in end.items() if offset > 0}
    consumer.assign([TopicPartition(*part, OFFSET_BEGINNING) for part in sorted(open_parts)])
    heard = time.monotonic()
    while open_parts:
        lines = []
        for message in consumer.consume(10_000, timeout=0.2):
            part = (message.topic(), message.partition())
            offset = message.offset()
            if message.error() is None:
                if offset < end[part]:
                    lines.append(line(message))
                if offset >= end[part] - 1:
                    open_parts.discard(part)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                # The last offsets may be transaction markers, which are not messages.
                if offset >= end[part]:
                    open_parts.discard(part)
            else:
                raise KafkaException(message.error())
            heard = time.monotonic()
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
        if time.monotonic() - heard > timeout:
            sys.exit(f"nothing heard for {timeout} s of {sorted(open_parts)}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--bootstrap", required=True)
    arguments.add_argument("--isolation", default="read_committed", choices=["read_committed", "read_uncommitted"])
    arguments.add_argument("--fields", help="comma-separated; a line is an array of these")
    arguments.add_argument("--timeout", type=float, default=30, help="seconds without a message")
    arguments.add_argument("topics", nargs="+", help="a name, or the beginning of names and a *")
    given = arguments.parse_args()
    consumer = Consumer(
        {
            "bootstrap.servers": given.bootstrap,
            "group.id": "livebridge-tests-witness",
            "isolation.level": given.isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "check.crcs": True,
            "fetch.wait.max.ms": 50,
            "fetch.queue.backoff.ms": 10,
            "reconnect.backoff.max.ms": 500,
        }
    )
    parts = partitions(consumer, given.topics)
    if parts:
        line = selected(given.fields.split(",")) if given.fields else whole
        read(consumer, parts, ends(given.bootstrap, parts, given.isolation), line, given.timeout)
    consumer.close()


if __name__ == "__main__":
    main()
