"""Checks the contract: documents against their meta-schemas, samples against the events' schemas.

With an argument it checks the Kafka records in that file instead, one a line as consume.py prints them.
Prints one line for each thing that is wrong, and how much was looked at.
"""

import json
import sys
from pathlib import Path

from jsonschema import Draft7Validator, Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).parents[3]
CONTRACT = ROOT / "deploy" / "contract"
# Payloads that are not events according to INDEX.md: they never reach a consumer.
REFUSED = ("064_bom", "065_duplicate_keys", "081_json_array_body")
wrong = []


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def complain(what, errors):
    wrong.extend(f"{what}: {'/'.join(map(str, error.absolute_path))}: {error.message:.300}" for error in errors)


def check_documents(asyncapi):
    # Published by the AsyncAPI initiative under Apache-2.0.
    meta = Draft7Validator(load(Path(__file__).with_name("asyncapi-3.0.0.json")))
    complain("asyncapi.json", meta.iter_errors(asyncapi))
    if meta.is_valid({**asyncapi, "channels": []}):
        wrong.append("the meta-schema of AsyncAPI takes anything")
    openapi = load(CONTRACT / "openapi.json")
    base = (CONTRACT / "openapi.json").as_uri()
    complain("openapi.json", OpenAPIV31SpecValidator(openapi, base_uri=base).iter_errors())
    if OpenAPIV31SpecValidator({**openapi, "paths": []}, base_uri=base).is_valid():
        wrong.append("the meta-schema of OpenAPI takes anything")


def spoiled(event, schema):
    """Copies of the event with one error each, of every kind."""
    yield "event_type", {**event, "event_type": {}}
    for name in schema.get("required", []):
        yield f"no {name}", {key: value for key, value in event.items() if key != name}
    for name, value in event.items():
        if schema["properties"].get(name, {}).keys() - {"description"}:
            yield name, {**event, name: "spoiled" if isinstance(value, (dict, list)) else {"spoiled": value}}


def validators(asyncapi, schemas):
    """Creates validators for references."""
    resources = {f"schemas/{name}": Resource.from_contents(schema) for name, schema in schemas.items()}
    resources["asyncapi.json"] = Resource(asyncapi, DRAFT202012)
    registry = Registry().with_resources(resources.items())

    def validator(reference):
        return Draft202012Validator({"$ref": reference}, registry=registry, format_checker=FormatChecker())

    return validator


def check_records(asyncapi, validator, path):
    """Records of a broker match the document's description of their topic."""
    message = {}
    for channel in asyncapi["channels"].values():
        (reference,) = (message["$ref"] for message in channel["messages"].values())
        message[channel["address"]] = reference.removeprefix("#/components/messages/")
    key = "asyncapi.json#/components/messageBindings/keyed/kafka/key"
    topics = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        name = message[record["topic"]]
        topics.add(name)
        # Bytes are printed as Latin-1.
        text = {part: value and value.encode("latin-1").decode("utf-8") for part, value in record["headers"]}
        value = json.loads(record["value"].encode("latin-1"))
        complain(f"headers of {name}", validator(f"asyncapi.json#/components/messages/{name}/headers").iter_errors(text))
        complain(f"key of {name}", validator(key).iter_errors(record["key"]))
        schema = asyncapi["components"]["messages"][name]["payload"]["schema"]["$ref"]
        complain(f"value of {name}", validator(schema).iter_errors(value))
    return len(topics)


def check_events(asyncapi, schemas, validator):
    """Every payload, sample and message example is valid, and every corrupted one is not."""
    meta = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    for name, schema in schemas.items():
        complain(name, meta.iter_errors(schema))
    by_type = {code: name for name, schema in schemas.items() for code in types(schema)}
    paths = [*(ROOT / "tests" / "payloads").glob("*.json"), *(ROOT / "src" / "samples").glob("*.json")]
    looked = [0, 0]
    for path in sorted(path for path in paths if path.stem not in REFUSED):
        event = load(path)
        name = by_type.get(event.get("event_type"), "other.json")
        check = validator(f"schemas/{name}")
        looked[0] += 1
        complain(f"{path.name} by {name}", check.iter_errors(event))
        known = schemas[name]["properties"]
        if name != "other.json":
            wrong.extend(f"{path.name}: {name} does not know {member}" for member in event if member not in known)
        for how, worse in spoiled(event, schemas[name]):
            looked[1] += 1
            if check.is_valid(worse):
                wrong.append(f"{path.name} is valid by {name} though {how} is spoiled")
    for name, message in asyncapi["components"]["messages"].items():
        for example in message.get("examples", []):
            looked[0] += 1
            headers = validator(f"asyncapi.json#/components/messages/{name}/headers")
            complain(f"example of {name}", headers.iter_errors(example["headers"]))
            for header in example["headers"]:
                rest = {key: value for key, value in example["headers"].items() if key != header}
                if header != "ce_subject" and headers.is_valid(rest):
                    wrong.append(f"the headers of {name} are valid without {header}")
            complain(f"example of {name}", validator(message["payload"]["schema"]["$ref"]).iter_errors(example["payload"]))
    return looked


def types(schema):
    """The event types with this schema."""
    return schema.get("properties", {}).get("event_type", {}).get("enum", [])


def main():
    asyncapi = load(CONTRACT / "asyncapi.json")
    schemas = {path.name: load(path) for path in (CONTRACT / "schemas").iterdir()}
    validator = validators(asyncapi, schemas)
    if len(sys.argv) > 1:
        looked = f"{check_records(asyncapi, validator, Path(sys.argv[1]))} topics"
    else:
        check_documents(asyncapi)
        samples, spoils = check_events(asyncapi, schemas, validator)
        looked = f"{samples} samples, {spoils} spoiled ones"
    print(*wrong, looked, sep="\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
