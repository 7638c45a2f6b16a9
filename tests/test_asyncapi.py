"""docs/asyncapi.yaml says what broker/topics.py, messages.py and control.py do: channels, schemas, examples, refusals."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
import yaml

from broker import control, messages, topics
from broker.rights import Rights
from broker.topics import Topic
from config import limits
from config.errors import ProtocolError
from config.principal import CLOUD_SITE, ROLES, Principal
from tests.json_schema import complaints

FILE = Path(__file__).parent.parent / "docs" / "asyncapi.yaml"
STRUCTS = {
    name: shape
    for name, shape in {**vars(messages), **vars(control)}.items()
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct) and shape is not msgspec.Struct
}
BODIES = {"Readings": "readings", "Events": "events", "Logs": "logs", "Results": "results", "Reported": "reported"}


@functools.cache
def load() -> dict[str, Any]:
    """Return the document; a test that changes it copies it first."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return document


def resolve(ref: str) -> dict[str, Any]:
    """Return what a $ref of the document points to."""
    node: Any = load()
    for part in ref.removeprefix("#/").split("/"):
        node = node[part]
    assert isinstance(node, dict)
    return node


def target(node: dict[str, Any]) -> dict[str, Any]:
    """Return the node, or what it refers to."""
    return resolve(node["$ref"]) if "$ref" in node else node


def refs(node: Any) -> Iterator[str]:
    """Return every $ref below a node."""
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        for child in node.values():
            yield from refs(child)
    elif isinstance(node, list):
        for child in node:
            yield from refs(child)


def addresses(channel: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Return a concrete topic for every value of the channel's parameters, with these values."""
    parameters = {name: target(parameter) for name, parameter in channel["parameters"].items()}
    assert set(re.findall(r"{(\w+)}", channel["address"])) == set(parameters)
    for values in itertools.product(*(p.get("enum") or p["examples"] for p in parameters.values())):
        given = dict(zip(parameters, values, strict=True))
        yield channel["address"].format(**given), given


def examples() -> list[tuple[str, dict[str, Any], Any]]:
    """Return (message name, message, payload) of every example."""
    return [
        (name, message, example["payload"])
        for name, message in load()["components"]["messages"].items()
        for example in message["examples"]
    ]


def shape_of(message: dict[str, Any]) -> tuple[type[msgspec.Struct] | None, str | None]:
    """Return the type of a message and, for an envelope, the kind of body that its schema asks for."""
    names = [ref.rsplit("/", 1)[1] for ref in refs(message["payload"])]
    kind = next((BODIES[name] for name in names if name in BODIES), None)
    return STRUCTS.get(names[0]) if names else None, kind


def code_refuses(message: dict[str, Any], payload: Any) -> bool:
    """Tell whether the code refuses the payload of a message that it knows."""
    shape, kind = shape_of(message)
    assert shape is not None
    try:
        decoded = messages.decode(orjson.dumps(payload), shape)
        if kind is not None:
            assert isinstance(decoded, messages.Envelope)
            control.decode_body(kind, decoded)
    except ProtocolError:
        return True
    return False


def schema_refuses(message: dict[str, Any], payload: Any) -> bool:
    """Tell whether the document refuses the payload of a message."""
    return bool(complaints(payload, message["payload"], resolve))


# --- The document itself ---------------------------------------------------------------------------------------------


def test_every_reference_leads_somewhere() -> None:
    """A dead reference makes every tool that reads the document stop."""
    for ref in refs(load()):
        resolve(ref)


def test_every_part_of_the_document_is_used() -> None:
    """A message or schema that nothing refers to would tell readers of something that does not exist."""
    used = set(refs(load()))
    components = load()["components"]
    assert [
        f"#/components/{section}/{name}"
        for section in components
        for name in components[section]
        if f"#/components/{section}/{name}" not in used
    ] == []


def test_every_operation_is_of_a_role_and_pairs_with_another() -> None:
    """What one role sends on a channel, another must receive, or the document forgets somebody."""
    directions: dict[str, set[str]] = {name: set() for name in load()["channels"]}
    for name, operation in load()["operations"].items():
        (tag,) = operation["tags"]
        assert tag["name"] in ROLES, name
        assert name.startswith(tag["name"]), name
        assert operation.get("x-server", "site") in load()["servers"], name
        directions[operation["channel"]["$ref"].rsplit("/", 1)[1]].add(operation["action"])
    assert all(found == {"send", "receive"} for found in directions.values()), directions


def test_sessions_are_as_the_limits_say() -> None:
    """The keep alive in the document is the one that clients use."""
    session = load()["components"]["serverBindings"]["session"]["mqtt"]
    assert session == {"cleanSession": True, "keepAlive": limits.KEEP_ALIVE_S, "bindingVersion": "0.2.0"}


# --- Channels and broker/topics.py -----------------------------------------------------------------------------------


def test_every_channel_is_a_topic_that_the_code_builds_and_parses() -> None:
    """Somebody who builds a subscriber from the document gets our topics, and none besides."""
    for name, channel in load()["channels"].items():
        for address, given in addresses(channel):
            topic = Topic.parse(address)
            assert str(topic) == address, name
            assert (topic.fleet, topic.site) == (given["fleet"], given["site"])
            assert (topic.owner, topic.name) == (
                ("hub", given["hub"]) if "hub" in given else ("connector", given["connector"])
            )
            assert topic.leaf == given.get("kind", given.get("sensor"))


def test_every_topic_of_the_code_is_a_channel() -> None:
    """A topic that the code has and the document lacks is a hole in the contract."""
    documented = {
        (topic.owner, topic.channel, topic.leaf if "kind" in given else None)
        for channel in load()["channels"].values()
        for address, given in addresses(channel)
        for topic in [Topic.parse(address)]
    }
    kinds = {"up": topics.UP_KINDS, "down": topics.DOWN_KINDS}
    built = {("hub", channel, kind) for channel in topics.HUB_CHANNELS for kind in kinds.get(channel, (None,))}
    assert documented == built | {("connector", "state", None)}


def test_every_kind_has_a_message_of_its_name() -> None:
    """The kind in a topic is how a receiver chooses the type."""
    for name, channel in load()["channels"].items():
        if "kind" in channel["parameters"]:
            kinds = channel["parameters"]["kind"]["enum"]
            assert channel["messages"] == {kind: {"$ref": f"#/components/messages/{kind}"} for kind in kinds}, name


@pytest.mark.parametrize(
    "text", ["hl2/acme/berlin/hub/pc-17/state", "hl1/acme/berlin/hub/pc-17/up", "hl1/acme/berlin/connector/b/poll"]
)
def test_what_no_channel_matches_is_no_topic(text: str) -> None:
    """Both sides refuse the same strangers."""
    patterns = [re.sub(r"{\w+}", "[^/]+", channel["address"]) for channel in load()["channels"].values()]
    assert not any(re.fullmatch(pattern, text) for pattern in patterns)
    with pytest.raises(ProtocolError):
        Topic.parse(text)


# --- Operations and broker/rights.py ---------------------------------------------------------------------------------

HOLDERS = {
    "hub": Principal("acme", "berlin", "hub", "pc-17"),
    "connector": Principal("acme", "berlin", "connector", "berlin-1"),
    "cloud": Principal("acme", CLOUD_SITE, "cloud", "ingest-1"),
    "reader": Principal("acme", CLOUD_SITE, "reader", "grafana"),
}
BROKER_SITES = {"site": "berlin", "cloud": CLOUD_SITE}


def documented_rights() -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """Return the operations by role, action, broker and channel."""
    return {
        (
            operation["tags"][0]["name"],
            operation["action"],
            server,
            operation["channel"]["$ref"].rsplit("/", 1)[1],
        ): operation
        for operation in load()["operations"].values()
        for server in ([operation["x-server"]] if "x-server" in operation else BROKER_SITES)
    }


def test_each_role_may_do_what_its_operations_say_and_nothing_else() -> None:
    """The rights come from the certificate; a right that is not documented is one that nobody has judged."""
    documented = documented_rights()
    at_one_broker = [
        (role, server)
        for role in HOLDERS
        for server in BROKER_SITES
        if role in ("hub", "connector") or server == "cloud"
    ]
    for (role, server), action, (name, channel) in itertools.product(
        at_one_broker, ("send", "receive"), load()["channels"].items()
    ):
        rights = Rights(HOLDERS[role], BROKER_SITES[server])
        operation = documented.get((role, action, server, name))
        for address, _ in addresses(channel):
            allowed = rights.may_publish(address) if action == "send" else rights.may_subscribe(address)
            assert allowed == (operation is not None), (role, action, server, address)
            if action == "send" and operation is not None:
                retain = target(operation["bindings"])["mqtt"]["retain"]
                assert rights.may_publish(address, retain=retain), (role, server, address)
    assert {key[0] for key in documented} == set(HOLDERS)


# --- Schemas, broker/messages.py and broker/control.py ---------------------------------------------------------------


def normal(schema: Any) -> Any:
    """Return a schema without prose and without the spellings in which msgspec and draft 7 differ."""
    if isinstance(schema, list):
        return [normal(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema and {"type": "null"} in schema["anyOf"]:  # Optional: left out rather than null.
        (rest,) = [part for part in schema["anyOf"] if part != {"type": "null"}]
        return normal(rest)
    if "prefixItems" in schema:
        schema = {**schema, "items": schema["prefixItems"], "additionalItems": False}
        del schema["prefixItems"]
    prose = ("description", "title", "default", "properties")  # The properties' names are no keywords.
    plain = {key: normal(value) for key, value in schema.items() if key not in prose}
    if "properties" in schema:
        plain["properties"] = {name: normal(value) for name, value in schema["properties"].items()}
    if "pattern" in schema:
        plain["pattern"] = schema["pattern"].replace(r"\Z", "$")
    for key in ("enum", "required"):
        if key in schema:
            plain[key] = sorted(schema[key])
    return plain


def test_every_schema_is_the_type_of_the_code() -> None:
    """Fields, types, bounds and what is required: what one side sends, the other must not refuse."""
    _, generated = msgspec.json.schema_components(STRUCTS.values(), ref_template="#/components/schemas/{name}")
    written = load()["components"]["schemas"]
    assert {name: normal(schema) for name, schema in written.items() if "x-status" not in schema} == {
        name: normal(schema) for name, schema in generated.items()
    }
    assert not [name for name, schema in written.items() if "x-status" in schema and name in STRUCTS]


def test_limits_are_those_of_the_code() -> None:
    """The limits are part of the contract; readers size their buffers by them."""
    assert load()["x-limits"] == {name: getattr(limits, name.upper()) for name in load()["x-limits"]}
    schemas = load()["components"]["schemas"]
    assert schemas["Readings"]["properties"]["points"]["maxItems"] == limits.POINTS_MAX
    assert schemas["Events"]["properties"]["events"]["maxItems"] == limits.EVENTS_MAX
    assert schemas["Ack"]["properties"]["ranges"]["maxItems"] == limits.ACK_RANGES_MAX
    assert schemas["Logs"]["properties"]["records"]["maxItems"] == limits.EVENTS_MAX
    assert schemas["Results"]["properties"]["results"]["maxItems"] == limits.EVENTS_MAX
    assert {schemas[name]["properties"]["addresses"]["maxItems"] for name in ("HubState", "Reported")} == {
        limits.ADDRESSES_MAX
    }
    values = schemas["Point"]["properties"]["values"]
    assert values["maxProperties"] == limits.VALUES_MAX
    assert f"{{1,{limits.VALUE_NAME_MAX}}}$" in values["propertyNames"]["pattern"]
    assert {"type": "string", "maxLength": limits.VALUE_TEXT_MAX} in values["additionalProperties"]["anyOf"]


# --- Examples --------------------------------------------------------------------------------------------------------


def test_every_example_fits_its_schema() -> None:
    """People copy examples before they read schemas."""
    assert {name: complaints(payload, message["payload"], resolve) for name, message, payload in examples()} == {
        name: [] for name, _, _ in examples()
    }


def test_every_example_decodes_and_encodes_back_to_itself() -> None:
    """The code reads what the document shows and would send the same."""
    for name, message, payload in examples():
        shape, kind = shape_of(message)
        if shape is None:
            assert message["x-status"] == "reserved", name
            continue
        decoded = messages.decode(orjson.dumps(payload), shape)
        assert orjson.loads(messages.encode(decoded)) == payload, name
        if isinstance(decoded, messages.Envelope):
            body = control.decode_body(name, decoded)
            assert kind == (name if body is not None else None), (
                f"{name}: the code and the document differ about its body"
            )
            assert body is None or orjson.loads(messages.encode(body)) == payload["body"], name
            again = messages.encode_envelope(decoded.epoch, decoded.seq, decoded.sent, orjson.dumps(decoded.body))
            assert orjson.loads(again) == payload, name


COUNTER_EXAMPLES: dict[str, tuple[str, str, Any]] = {
    "seq 0": ("readings", "seq", 0),
    "an epoch that is none": ("readings", "epoch", "9F2C"),
    "no body": ("readings", "body", ...),
    "a body that is no object": ("logs", "body", []),
    "no points": ("readings", "body.points", []),
    "1001 points": ("readings", "body.points", [{"ts": 1, "values": {"a": 1}}] * 1001),
    "a point without values": ("readings", "body.points.0.values", {}),
    "1001 values": ("readings", "body.points.0.values", {f"v{number}": 1 for number in range(1001)}),
    "a name with a slash": ("readings", "body.points.0.values", {"a/b": 1}),
    "a name with a line end": ("readings", "body.points.0.values", {"a\n": 1}),
    "a name of 129 characters": ("readings", "body.points.0.values", {"a" * 129: 1}),
    "a value that is null": ("readings", "body.points.0.values", {"a": None}),
    "a value that is a list": ("readings", "body.points.0.values", {"a": [1]}),
    "a text of 4097 characters": ("readings", "body.points.0.values", {"a": "x" * 4097}),
    "a time before 1970": ("readings", "body.points.0.ts", -1),
    "an event without a name": ("events", "body.events.0.event", ...),
    "1001 events": ("events", "body.events", [{"event": "gap"}] * 1001),
    "a range of three": ("ack", "ranges.0", [1, 2, 3]),
    "a range from 0": ("ack", "ranges.0", [0, 2]),
    "1001 ranges": ("ack", "ranges", [[1, 1]] * 1001),
    "online as text": ("hubState", "online", "true"),
    "a mode that there is not": ("hubState", "mode", "asleep"),
    "a negative session": ("connectorState", "session", -1),
    "an upstream that there is not": ("connectorState", "upstream", "sideways"),
    "a last value without its count": ("last", "count", ...),
    "a site that is neither up nor down": ("connectorState", "site", "left"),
    "65 addresses": ("hubState", "addresses", ["::1"] * 65),
    "a host of 257 characters": ("hubState", "host", "x" * 257),
    "no log lines": ("logs", "body.records", []),
    "1001 log lines": ("logs", "body.records", [{"n": 1, "ts": 1, "level": "info", "event": "x"}] * 1001),
    "a log level that there is not": ("logs", "body.records.0.level", "fatal"),
    "a boot that is none": ("logs", "body.boot", "yesterday"),
    "no results": ("results", "body.results", []),
    "a task's end that there is not": ("results", "body.results.0.state", "lost"),
    "more than all": ("results", "body.results.1.progress", 101),
    "a report without its system": ("reported", "body.system", ...),
    "half a protection": ("reported", "body.protection.scan", ...),
    "a privilege that is no yes or no": ("reported", "body.privileges.roam", "yes"),
    "a heartbeat of nobody": ("heartbeat", "epoch", ...),
    "a poll with a hash that is none": ("poll", "settings", "3F9B"),
    "a task without its id": ("task", "id", ...),
    "an action with a path": ("task", "action", "../run"),
    "an argument that is a list": ("task", "arguments", {"a": [1]}),
    "settings without sections": ("settings", "settings", {"level": "info"}),
    "a seventh connection": ("presence", "connection", "unknown"),
    "an action for nobody": ("presence", "actions", [{"id": "wait", "who": "", "text": "Wait."}]),
}


def changed(payload: Any, place: str, value: Any) -> Any:
    """Return a copy of a payload with another value at a dotted place, or (...) without it."""
    content = copy.deepcopy(payload)
    *parents, leaf = [int(part) if part.isdigit() else part for part in place.split(".")]
    node = functools.reduce(lambda part, key: part[key], parents, content)
    if value is ...:
        del node[leaf]
    else:
        node[leaf] = value
    return content


@pytest.mark.parametrize("case", COUNTER_EXAMPLES)
def test_what_the_contract_refuses_is_refused_by_both(case: str) -> None:
    """A document that allows what the code refuses makes other people's programs fail in production."""
    name, place, value = COUNTER_EXAMPLES[case]
    message = load()["components"]["messages"][name]
    payload = changed(message["examples"][0]["payload"], place, value)
    assert schema_refuses(message, payload)
    assert code_refuses(message, payload)


def places(node: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Return every place in a payload that has a fixed name or number, dotted, with what is there."""
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in parts:
        if "." not in str(key):
            yield ".".join((*prefix, str(key))), child
            yield from places(child, (*prefix, str(key)))


REPLACEMENTS: tuple[Any, ...] = (
    ...,
    True,
    0,
    -1,
    2**53,
    2**53 + 1,
    0.5,
    "",
    "ok",
    "x" * 5000,
    "0123456789abcdef",
    "0123456789abcdef\n",
    [],
    [[]],
    {},
    {"a": 1},
)


def test_document_and_code_agree_about_every_small_change_of_every_example() -> None:
    """The table above holds what came to mind; this is everything else nearby."""
    compared = refused = 0
    for name, message, payload in examples():
        if shape_of(message)[0] is None:
            continue
        for (place, _), value in itertools.product(list(places(payload)), REPLACEMENTS):
            attempt = changed(payload, place, value)
            verdict = schema_refuses(message, attempt)
            assert verdict == code_refuses(message, attempt), (
                f"{name} with {place} = {value!r:.40}: the document refuses: {verdict}"
            )
            compared, refused = compared + 1, refused + verdict
    assert 0 < refused < compared
