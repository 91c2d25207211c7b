"""Prints what livebridge publishes: pip install confluent-kafka cloudevents; python consumer.py BROKERS"""

import json
import sys
from pathlib import Path

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from confluent_kafka import Consumer

contract = json.loads((Path(__file__).parents[1] / "contract" / "asyncapi.json").read_text(encoding="utf-8"))
settings = {"group.id": "example", "auto.offset.reset": "earliest", "isolation.level": "read_committed"}
consumer = Consumer({"bootstrap.servers": sys.argv[1], **settings})
consumer.subscribe([channel["address"] for channel in contract["channels"].values()])
while True:
    message = consumer.poll(1.0)
    if message and not message.error():
        event = from_kafka_event(KafkaMessage(dict(message.headers()), message.key(), message.value()))
        print(event.get_id(), event.get_type(), event.get_subject() or "", json.dumps(event.get_data()), sep="\t", flush=True)
