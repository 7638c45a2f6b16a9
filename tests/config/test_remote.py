"""Settings from the cloud: what it may set, how documents come together, and what they come to at a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits, remote, settings
from config.errors import SettingsError
from config.settings import HubMode, HubSettings, Privileges

HEAD = """[identity]
fleet = "acme"
site = "berlin"
name = "pc-17"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"
"""


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"mode": {"kind": "polling", "poll_min": 60}, "hub": {"machine": "laptop"}},
        {"mode": {"unreachable": ["10.20.0.0/16", "192.168.1.10-192.168.1.50", "fd00:20::/48", "10.0.0.1"]}},
        {"sensors": {"cpu": {"interval_s": 5, "enabled": True}}},
        {"log": {"level": "debug"}, "logs": {"level": "info"}, "privileges": {"roam": True}},
        {"protection": {"source": "settings"}, "failover": {"outage_s": 60}, "failback": {"probe_s": 9.5}},
        {"connector": {"endpoints": ["gw:8883"]}, "cloud": {"endpoints": ["cloud:443"], "proxy": "none"}},
        {"mode": {"poll_min": None}, "log": None, "sensors": {"cpu": None, "disk": {"interval_s": None}}},
    ],
)
def test_what_may_be_set_is_accepted_whole_or_in_part(document: dict[str, Any]) -> None:
    """A document says only what differs; null takes back what was set further out."""
    assert remote.check(document) == []


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            {"identity": {"name": "x"}},
            "identity = {'name': 'x'}: can only be set in the hub's own file; the cloud may set mode",
        ),
        ({"tasks": {"allow": []}}, "tasks = {'allow': []}: can only be set in the hub's own file"),
        ({"checks": {}}, "checks = {}: can only be set in the hub's own file"),
        ({"remote": {"trial_s": 1}}, "remote = {'trial_s': 1}: can only be set in the hub's own file"),
        ({"remote": None}, "remote: can only be set in the hub's own file"),
        ({"hub": {"data_dir": "/x"}}, "hub.data_dir = '/x': can only be set in the hub's own file"),
        ({"hub": {"machine": "pc"}}, "hub.machine = 'pc': must be one of \"server\""),
        ({"nonsense": 1}, "nonsense = 1: is not a section of a hub's settings"),
        ({"mode": 5}, "mode = 5: must be a section"),
        ({"mode": {"poll_min": 0}}, "mode.poll_min = 0: must be a whole number of at least 1 and of at most 129600"),
        ({"mode": {"poll_min": 129_601}}, "mode.poll_min = 129601: must be a whole number"),
        ({"mode": {"pol_min": 5}}, "mode.pol_min = 5: is not a key here, did you mean poll_min?"),
        ({"mode": {"pol_min": None}}, "mode.pol_min: is not a key here, did you mean poll_min?"),
        ({"mode": {"unreachable": ["10.0.0.0/99"]}}, "mode.unreachable[0] = '10.0.0.0/99': is no range of addresses"),
        (
            {"mode": {"unreachable": ["10.0.0.9-10.0.0.1"]}},
            "mode.unreachable[0] = '10.0.0.9-10.0.0.1': ends before it begins",
        ),
        ({"cloud": {"endpoints": ["a:1", "x"]}}, "cloud.endpoints[1] = 'x': must be text like \"host:8883\""),
        ({"cloud": {"proxy": "ftp://u:s3cret@h:1"}}, "cloud.proxy = 'ftp://u:***@h:1': must be"),
        (
            {"sensors": {"cpu": {"intervall_s": 5}}},
            "sensors.cpu.intervall_s = 5: is not a key here, did you mean interval_s?",
        ),
        ({"sensors": {"cpu": 5}}, "sensors.cpu = 5: must be a section"),
        ({"sensors": {"thermo": {"bus": {}}}}, None),
        (
            {"sensors": {"thermo": {"bus": [1]}}},
            "sensors.thermo.bus = [1]: must be text, a number, true or false, or a list",
        ),
        ({"failover": {"outage_s": float("inf")}}, "failover.outage_s = inf: must be a finite number"),
        ({"sensors": {"thermo": {"x": float("nan")}}}, "sensors.thermo.x = nan: must be a finite number"),
        ({"failover": {"outage_s": 2**80}}, "can't be written as JSON"),
        ({"log": {"level": "x" * limits.SETTINGS_DOCUMENT_MAX_BYTES}}, "is too long"),
    ],
)
def test_what_may_not_be_set_or_is_not_valid_is_told_with_key_and_value(
    document: dict[str, Any], said: str | None
) -> None:
    """It is refused where it is written, not at a thousand hubs."""
    if said is None:
        assert remote.check(document)
        return
    with pytest.raises(SettingsError) as refused:
        remote.check(document)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_no_section_that_is_added_later_can_be_set_before_somebody_has_decided_so() -> None:
    """identity, data, tasks, checks, remote: what the machine's own people decide."""
    own = set(HubSettings.__struct_fields__) - set(remote.ALLOWED)
    assert own == {"identity", "tasks", "checks", "remote"}
    assert remote.ALLOWED["hub"] == {"machine"}
    for section, keys in remote.ALLOWED.items():
        shape = next(known.type for known in msgspec.structs.fields(HubSettings) if known.name == section)
        assert keys is None or keys <= set(shape.__struct_fields__)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (HubMode(), []),
        (HubMode(heartbeat_min=10, poll_min=29), ["mode.poll_min = 29 is below three heartbeats"]),
        (HubMode(heartbeat_min=10, poll_min=30), []),
        (HubMode(heartbeat_min=10, offline_after_min=10), ["mode.offline_after_min = 10 is not above"]),
        (HubMode(heartbeat_min=10, offline_after_min=11), []),
        (HubMode(heartbeat="off", heartbeat_min=10, poll_min=1, offline_after_min=1), []),
    ],
)
def test_intervals_that_are_hardly_meant_are_warned_of(mode: HubMode, said: list[str]) -> None:
    """Recommended: a poll interval of at least three heartbeats, and offline only after more than one."""
    found = remote.doubts_about(mode)
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))
    assert len(remote.check({"mode": msgspec.structs.asdict(mode)})) == len(said)


def test_a_sensor_that_is_not_installed_here_is_only_doubtful() -> None:
    """The hubs may have plug-ins that the cloud has not; they look again."""
    (doubt,) = remote.check({"sensors": {"cpux": {"interval_s": 5}}})
    assert doubt.startswith("sensors.cpux: there is no such sensor, did you mean cpu?")


def test_inner_documents_win_key_by_key_and_null_takes_away() -> None:
    """fleet, then site, then group, then hub."""
    fleet = {"log": {"level": "info", "format": "json"}, "sensors": {"cpu": {"interval_s": 5}}}
    site = {"log": {"level": None}, "sensors": {"cpu": {"enabled": False}, "disk": {"enabled": False}}}
    assert remote.merge(fleet, site) == {
        "log": {"format": "json"},
        "sensors": {"cpu": {"interval_s": 5, "enabled": False}, "disk": {"enabled": False}},
    }
    assert remote.merge(fleet, {"log": None, "sensors": {"cpu": None}}) == {}
    assert remote.merge({"mode": {"unreachable": ["10.0.0.0/8"]}}, {"mode": {"unreachable": []}}) == {
        "mode": {"unreachable": []}
    }
    assert fleet["log"] == {"level": "info", "format": "json"}  # Nobody's document is changed.


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
DOCUMENTS = st.dictionaries(
    st.sampled_from("abc"), st.none() | st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3), max_size=3
)


@given(document=DOCUMENTS, other=DOCUMENTS)
def test_a_hash_names_a_content_on_both_sides_of_the_wire(document: dict[str, Any], other: dict[str, Any]) -> None:
    """The cloud compares what it wants with what a hub says it has."""
    merged = remote.merge(document)
    assert remote.hash_of(document) == remote.hash_of(orjson.loads(orjson.dumps(merged)))
    assert remote.hash_of(document) == remote.hash_of(dict(reversed(document.items())))
    assert remote.merge(merged) == merged
    same = orjson.dumps(merged, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        remote.merge(other), option=orjson.OPT_SORT_KEYS
    )
    assert (remote.hash_of(document) == remote.hash_of(other)) == same
    assert remote.merge(remote.merge(document, other), {}) == remote.merge(document, other)


def test_the_hash_of_nothing_is_known() -> None:
    """It is written down, since a hub without settings from the cloud has it."""
    assert remote.hash_of({}) == remote.hash_of({"mode": {}, "log": None}) == remote.EMPTY_HASH
    assert len(remote.hash_of({"log": {"level": "info"}})) == 16


def test_a_difference_names_keys_and_hides_passwords() -> None:
    """It is shown to everybody who may read."""
    old = {"log": {"level": "info"}, "cloud": {"proxy": "http://u:one@h:1"}, "mode": {"poll_min": 5}}
    new = {"log": {"level": "info"}, "cloud": {"proxy": "http://u:two@h:1"}, "sensors": {"cpu": {"interval_s": 2}}}
    assert remote.diff(old, new) == [
        ("cloud.proxy", "http://u:***@h:1", "http://u:***@h:1"),
        ("mode.poll_min", 5, None),
        ("sensors.cpu.interval_s", None, 2),
    ]
    assert remote.diff(old, old) == []


# --- At the hub ----------------------------------------------------------------------------------------------------


def test_a_document_lies_over_the_file_and_the_environment_over_both(tmp_path: Path) -> None:
    """Who set a variable at the machine meant it; the identity is nobody's but the machine's."""
    file = tmp_path / "hub.toml"
    file.write_text(HEAD + "[failover]\noutage_s = 60\nstart_grace_s = 7\n[sensors.cpu]\ninterval_s = 3\n")
    document = {
        "failover": {"outage_s": 120, "away_grace_s": 1},
        "failback": {"probe_s": 33},
        "sensors": {"cpu": {"enabled": False}},
        "privileges": {"roam": True},
    }
    found = remote.overlaid(file, document, {"HUBLINE_FAILBACK__PROBE_S": "5"})
    assert (found.failover.outage_s, found.failover.start_grace_s, found.failover.away_grace_s) == (120.0, 7.0, 1.0)
    assert found.failback.probe_s == 5.0
    assert found.sensors == {"cpu": {"interval_s": 3, "enabled": False}}
    assert found.privileges == Privileges(roam=True)
    assert found.hub.data_dir == tmp_path / "data"
    assert remote.overlaid(file, {}, {}) == settings.load(file, HubSettings, {})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"sensors": {"cpux": {"enabled": True}}}, "settings from the cloud: sensors.cpux: there is no such sensor"),
        ({"identity": {"name": "x"}}, "identity = {'name': 'x'}: can only be set in the hub's own file"),
        ({"log": {"level": "loud"}}, "log.level = 'loud': must be one of"),
    ],
)
def test_a_hub_refuses_a_wrong_document_and_names_the_cloud(
    tmp_path: Path, document: dict[str, Any], said: str
) -> None:
    """Nobody must look for the mistake in a file that is right."""
    file = tmp_path / "hub.toml"
    file.write_text(HEAD)
    with pytest.raises(SettingsError) as refused:
        remote.overlaid(file, document, {})
    assert str(refused.value).startswith(said)


def test_a_mistake_in_the_file_is_the_files_even_under_a_document(tmp_path: Path) -> None:
    """And the other way round."""
    file = tmp_path / "hub.toml"
    file.write_text(HEAD + "[failover]\noutage_s = -1\n")
    with pytest.raises(SettingsError, match=r"hub\.toml: failover\.outage_s = -1"):
        remote.overlaid(file, {"failover": {"start_grace_s": 1}}, {})
    assert remote.overlaid(file, {"failover": {"outage_s": 1}}, {}).failover.outage_s == 1.0
