"""What is written for EMQX says the contract's rights, rule by rule: nothing of ours runs it, so its text must be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.client_ids import client_id_of
from broker.engines.emqx import Emqx, rights_file
from broker.rights import publish_filters, subscribe_filters
from config.members import Entry, Members
from config.principal import Principal
from tests.broker.certificates import FleetFiles

RULE = re.compile(r'\{allow, \{user, "(?P<who>[^"]+)"\}, (?P<how>.+?), \[(?P<topics>.*)\]\}\.')
EVERYONE = [
    Principal("acme", "berlin", "hub", "pc-1"),
    Principal("acme", "munich", "hub", "pc-3"),
    Principal("acme", "berlin", "connector", "berlin-1"),
    Principal("acme", "-", "cloud", "service"),
    Principal("acme", "-", "reader", "desk"),
]


@pytest.mark.parametrize("at", ["berlin", "-"])
def test_every_right_of_the_contract_is_one_rule_and_the_rest_is_denied(at: str) -> None:
    """A right too many lets one machine speak for another; one too few is a hub that nobody hears."""
    head, *rules, last = rights_file(EVERYONE, at).splitlines()
    assert head.startswith("%%")
    assert last == "{deny, all}."
    found: dict[tuple[str, str], set[str]] = {}
    for rule in rules:
        match = RULE.fullmatch(rule)
        assert match is not None, rule
        way = "subscribe" if match["how"] == "subscribe" else "publish"
        topic_filters = set(re.findall(r'"([^"]+)"', match["topics"]))
        found.setdefault((match["who"], way), set()).update(topic_filters)
        if match["how"] == "publish":  # Also what is to be kept for later subscribers.
            assert all(re.search(r"/(state|presence|last)(/|$)", each) for each in topic_filters)
    for principal in EVERYONE:
        assert found.get((principal.name, "publish"), set()) == set(publish_filters(principal, at))
        assert found.get((principal.name, "subscribe"), set()) == set(subscribe_filters(principal, at))


def test_its_listeners_ask_for_certificates_and_say_that_nobody_has_tried_them(tmp_path: Path) -> None:
    fleet = FleetFiles(tmp_path / "acme")
    settings = fleet.broker_settings("-", listen=("0.0.0.0:8883", "[::]:8883"))
    plan = Emqx().plan(settings, Members("acme", [Entry("hub", "berlin", "pc-1")]), tmp_path / "out")
    written = plan.files["emqx.conf"].decode()
    assert "No test of Hubline runs EMQX" in written
    assert written.count("verify = verify_peer") == written.count("fail_if_no_peer_cert = true") == 2
    assert 'bind = "[::]:8883"' in written
    assert f'path = "{tmp_path / "out" / "acl.conf"}"' in written
    assert "peer_cert_as_username = cn" in written


def test_client_ids_that_our_clients_have_pass_its_check(tmp_path: Path) -> None:
    """What EMQX compares with the certificate's name is what stands before the separator: a wrong one lets nobody in."""
    settings = FleetFiles(tmp_path / "acme").broker_settings("-")
    written = Emqx().plan(settings, Members("acme", []), tmp_path / "out").files["emqx.conf"].decode()
    separators = re.findall(
        r"str_eq\(nth\(1, tokens\(clientid, '(.)'\)\), cert_common_name\)\", result = allow", written
    )
    assert any(client_id_of("pc-17", "a1B2").split(each)[0] == "pc-17" for each in separators)
