"""A site whose nats-server is a leaf node of the cloud's: messages cross both ways, and hubs go around it when it fails."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from broker.tls import client_context
from broker.topics import hub_filter
from config.bundles import toml_string
from config.ports import free_ports
from config.principal import CLOUD_SITE, server_name
from config.settings import ReaderSettings, load
from tests.broker import raw_mqtt
from tests.end_to_end.test_engine_bridge import RELAY
from tests.fleet import QUICK, WAIT_S, Fleet, until
from tests.nats import needs_nats

pytestmark = needs_nats
SHORT = {
    **QUICK,
    "HUBLINE_CONNECTOR__KEEP_ALIVE_S": "3",
    "HUBLINE_HUB__KEEP_ALIVE_S": "5",
    "HUBLINE_FAILOVER__OUTAGE_S": "2",
    "HUBLINE_FAILBACK__PROBE_S": "0.5",
    "HUBLINE_FAILBACK__STABLE_S": "0.5",
    "HUBLINE_FAILBACK__JITTER_S": "0.5",
}


class LeafFleet(Fleet):
    """A fleet of two nats-servers: the site's is a leaf node of the cloud's, over a relay of which only the site knows."""

    def __init__(self, directory: Path, fleet: str, hubs: int):
        super().__init__(directory, fleet, hubs, SHORT)
        at_cloud, at_site, leaf, way, mqtt_way = (f"127.0.0.1:{port}" for port in free_ports(5))
        self._ways = ((way, leaf), (mqtt_way, f"127.0.0.1:{self.cloud_port}"))
        self.relays = [self._relay(*ways) for ways in self._ways]
        connector_toml = self.bundle("connector", "berlin-1") / "connector.toml"
        self._give("cloud-broker", BROKER__ENGINE='"nats"', NATS__LISTEN=f'"{at_cloud}"', NATS__LEAF_LISTEN=f'"{leaf}"')
        self._give("cloud", CLOUD__INTAKE='"jetstream"', CLOUD__NATS=f'["{at_cloud}"]')
        self._give("connector", CONNECTOR__BRIDGE='"engine"', CLOUD__ENDPOINTS=f'["{mqtt_way}"]')
        self._give(
            "site-broker",
            BROKER__ENGINE='"nats"',
            BROKER__BRIDGE=toml_string(str(connector_toml)),
            CONNECTOR__BRIDGE='"engine"',
            NATS__LISTEN=f'"{at_site}"',
            NATS__LEAF_REMOTES=f'["{way}"]',
        )

    def _give(self, name: str, **settings: str) -> None:
        self.roles[name][2].update({f"HUBLINE_{key}": value for key, value in settings.items()})

    def _relay(self, way: str, onward: str) -> subprocess.Popen[bytes]:
        ports = [endpoint.rpartition(":")[2] for endpoint in (way, onward)]
        relay = subprocess.Popen([sys.executable, "-c", RELAY, *ports, "127.0.0.1"], stdout=subprocess.PIPE)
        assert relay.stdout is not None
        relay.stdout.readline()
        return relay

    def cut(self) -> None:
        """Cut the leaf off; the connector's own session stays."""
        self._end(self.relays.pop(0))

    def mend(self) -> None:
        self.relays.insert(0, self._relay(*self._ways[0]))

    def kill(self, *names: str) -> None:
        """As a power cut does: also the engine of a broker."""
        engines = [each for name in names for each in psutil.Process(self.running[name].pid).children(recursive=True)]
        super().kill(*names)
        psutil.wait_procs(engines, WAIT_S)

    def close(self) -> None:
        super().close()
        for relay in self.relays:
            self._end(relay)

    @staticmethod
    def _end(relay: subprocess.Popen[bytes]) -> None:
        relay.kill()
        relay.communicate()

    def upstream(self) -> object:
        return self.status("connector").get("upstream")

    def retained_states(self) -> list[str]:
        """Return the topics of hubs' states that a newcomer at the cloud broker gets as retained."""
        return sorted(asyncio.run(self._retained_states()))

    async def _retained_states(self) -> list[str]:
        settings = load(self.bundle("reader", "viewer") / "reader.toml", ReaderSettings)
        context = client_context(settings.identity, server_name(self.fleet, CLOUD_SITE))
        newcomer = await raw_mqtt.connected(f"127.0.0.1:{self.cloud_port}", context)
        newcomer.send(raw_mqtt.connect("viewer"))
        assert await newcomer.packet() == raw_mqtt.CONNACK
        newcomer.send(raw_mqtt.subscribe(hub_filter(self.fleet, "+", "+", "state")))
        assert (await newcomer.answer())[-1] in (0, 1)
        got = await newcomer.expect(len(self.hubs))
        await newcomer.close()
        return [topic for topic, _, retained in got if retained]

    def wait_for_path(self, kind: str) -> None:
        until(f"all hubs are {kind}", lambda: all(self.path(hub) == kind for hub in self.hubs))


@contextmanager
def leafed(directory: Path, fleet: str, hubs: int) -> Iterator[LeafFleet]:
    this = LeafFleet(directory, fleet, hubs)
    try:
        yield this
    finally:
        this.close()


def test_hubs_live_behind_a_leaf_node_and_go_around_it_when_it_fails(tmp_path: Path, unique_name: str) -> None:
    """One story, since it begins with a fleet: up over the leaf, states over the connector, cut, around it, and back."""
    with leafed(tmp_path, unique_name, hubs=2) as site:
        site.start("cloud-broker", "cloud", "site-broker", "connector")
        until("there is a way up", lambda: site.upstream() == "up")
        site.start(*site.hubs)
        site.wait_until_flowing()
        assert {site.path(hub) for hub in site.hubs} == {"connector"}
        assert site.retained_states() == [f"hl1/{unique_name}/berlin/hub/{hub}/state" for hub in site.hubs]

        site.cut()
        until("the connector sees it", lambda: site.upstream() == "down")
        site.wait_for_path("direct")
        site.wait_until_flowing()
        site.mend()
        site.wait_for_path("connector")
        site.wait_until_flowing()
        assert site.upstream() == "up"
        assert "to_cloud" not in str(site.status("connector")["counters"]).replace("beside_to_cloud", "")
        site.assert_nothing_lost_or_doubled()


@pytest.mark.soak
def test_a_silent_wan_and_the_death_of_either_broker_cost_nothing(tmp_path: Path, unique_name: str) -> None:
    """Nobody says that the leaf is lost then: nodes and connector have to find out by themselves."""
    with leafed(tmp_path, unique_name, hubs=2) as site:
        site.start()
        site.wait_until_flowing()

        site.kill("cloud-broker")
        until("the connector sees it", lambda: site.upstream() == "down")
        site.start("cloud-broker")
        until("the connector sees it", lambda: site.upstream() == "up")
        site.wait_until_flowing()

        site.kill("site-broker")
        site.start("site-broker")
        site.wait_until_flowing()
        site.wait_for_path("connector")
        assert len(site.retained_states()) == 2

        for relay in site.relays:
            relay.send_signal(signal.SIGSTOP)
        site.wait_for_path("direct")
        assert site.upstream() == "down"
        site.wait_until_flowing()
        for relay in site.relays:
            relay.send_signal(signal.SIGCONT)
        site.wait_for_path("connector")
        site.wait_until_flowing()
        site.assert_nothing_lost_or_doubled()
