"""The service with a real broker, real TLS and a real database: hubs get their acknowledgements, whatever happens to the rest."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from broker import client
from broker.client import Session, SessionOptions
from broker.clock import unix_ms
from broker.messages import Ack, ConnectorState, HubState, Last, decode, encode
from broker.ranges import Ranges
from broker.server import Server
from broker.tls import client_context
from broker.topics import Topic, hub_filter
from cloud.queries import Archive
from cloud.service import Service
from config.errors import SettingsError
from config.principal import CLOUD_SITE, server_name
from config.settings import Api, BrokerSettings, CloudProcess, CloudSettings
from tests.broker.certificates import FleetFiles
from tests.cloud.stored import content_of, duplicates_of, query
from tests.cloud.wire import EPOCH, FLEET, SITE, T0, one, payload, readings, topic

DEADLINE_S = 30.0


async def until(true: Callable[[], object]) -> None:
    """Wait for something to become true, with a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)


@dataclass
class Client:
    """A session of some role, and everything that it has received."""

    session: Session
    received: list[client.Received] = field(default_factory=list)
    opened: bool = False
    ended: bool = False

    def acknowledged(self) -> Ranges:
        """Return what the cloud has acknowledged."""
        acks = [decode(got.payload, Ack) for got in self.received if Topic.parse(got.topic).leaf == "ack"]
        return Ranges(part for ack in acks for part in ack.ranges)


@dataclass
class World:
    """The files of a fleet, with a cloud broker and a cloud service that may come and go."""

    files: FleetFiles
    folder: Path
    broker_settings: BrokerSettings
    endpoint: str = ""

    @property
    def database(self) -> Path:
        return self.folder / "cloud.db"

    def settings(self) -> CloudSettings:
        """Return the settings of the cloud service."""
        process = CloudProcess(self.endpoint, database=f"sqlite:///{self.database}", data_dir=self.folder / "data")
        return CloudSettings(self.files.identity("cloud", "cloud-1", CLOUD_SITE), process, api=Api(enabled=False))

    def status(self) -> dict[str, object]:
        """Return what the status file says."""
        try:
            status: dict[str, object] = json.loads((self.folder / "data" / "status.json").read_bytes())
        except FileNotFoundError:
            return {}
        return status

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[None]:
        """Run the cloud broker; the second time on the same port."""
        server = Server(self.broker_settings)
        await server.start()
        self.endpoint = server.listen[0]
        process = self.broker_settings.broker
        process = type(process)(**{**_fields(process), "listen": [self.endpoint]})
        self.broker_settings = BrokerSettings(self.broker_settings.identity, process)
        try:
            yield
        finally:
            await server.stop()

    @asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        """Run the cloud service, and stop it cleanly."""
        stop = asyncio.Event()
        running = asyncio.create_task(Service(self.settings()).run(stop))
        try:
            await until(lambda: running.done() or self.status().get("broker") == "up")
            yield
        finally:
            stop.set()
            await asyncio.wait_for(running, DEADLINE_S)

    @asynccontextmanager
    async def connected(self, role: str = "hub", name: str = "pc-1", site: str = SITE) -> AsyncIterator[Client]:
        """Open a session at the cloud broker; a hub subscribes to its acknowledgements."""
        identity = self.files.identity(role, name, site)  # type: ignore[arg-type]
        options = SessionOptions(self.endpoint, name, client_context(identity, server_name(FLEET, CLOUD_SITE)))

        def report(event: client.SessionEvent) -> None:
            match event:
                case client.Received():
                    this.received.append(event)
                case client.Opened():
                    this.opened = True
                case _:
                    this.ended = True

        this = Client(Session(options, report))
        this.session.open()
        await until(lambda: this.opened)
        if role == "hub":
            this.session.subscribe([(hub_filter(FLEET, site, name, "down"), 1)])
        try:
            yield this
        finally:
            await this.session.close()


def _fields(struct: object) -> dict[str, object]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}  # type: ignore[attr-defined]


@pytest.fixture
def world(tmp_path: Path) -> World:
    files = FleetFiles(tmp_path / "fleet")
    return World(files, tmp_path, files.broker_settings(CLOUD_SITE))


def run(story: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a story to its end."""
    asyncio.run(asyncio.wait_for(story(), 4 * DEADLINE_S))


async def sent_until_acknowledged(hub_client: Client, contents: dict[int, bytes]) -> None:
    """Send messages as a hub does: again and again until each is acknowledged."""
    async with asyncio.timeout(DEADLINE_S):
        while missing := [seq for seq in contents if seq not in hub_client.acknowledged()]:
            for seq in missing:
                hub_client.session.publish(topic("pc-1"), contents[seq])
            await asyncio.wait_for(_any_news(hub_client), 2.0)


async def _any_news(hub_client: Client) -> None:
    before = len(hub_client.received)
    for _ in range(100):
        if len(hub_client.received) > before:
            return
        await asyncio.sleep(0.01)


def test_a_wrong_clock_does_not_keep_the_newest_value_in_the_future(world: World) -> None:
    """Its readings get the time that they were made at, and the original is kept."""

    async def story() -> None:
        async with (
            world.broker(),
            world.service(),
            world.connected() as pc,
            world.connected("reader", "eve", "-") as eve,
        ):
            eve.session.subscribe([(hub_filter(FLEET, "+", "+", "last"), 0)])
            ahead = unix_ms() + 3_600_000
            await sent_until_acknowledged(pc, {1: readings(1, [(ahead, {"counter": 1})], sent=ahead)})
            await until(lambda: eve.received)
            last = decode(eve.received[-1].payload, Last)
            assert abs(ahead - 3_600_000 - last.ts) < 60_000
        with Archive(world.database) as archive:
            [reading] = archive.readings(archive.hub_named("pc-1"))
        assert reading.ts + reading.skew_ms == ahead

    run(story)


def test_hub_is_acknowledged_subscribers_see_newest_values_and_the_status_counts(world: World) -> None:
    """The whole way of a measurement through the cloud."""

    async def story() -> None:
        async with (
            world.broker(),
            world.service(),
            world.connected() as pc,
            world.connected("reader", "eve", "-") as eve,
        ):
            eve.session.subscribe([(hub_filter(FLEET, "+", "+", "last"), 0)])
            await sent_until_acknowledged(pc, {seq: one(seq, seq, sent=unix_ms()) for seq in range(1, 201)})
            assert list(pc.acknowledged()) == [(1, 200)]
            await until(lambda: any(decode(got.payload, Last) == Last(T0 + 200_000, 200, 200) for got in eve.received))
            await until(lambda: world.status()["stored_messages"] == 200)
        status = world.status()
        assert status["role"] == "cloud"
        assert status["storage"] == "ok"
        assert (status["stored_points"], status["quarantined"], status["broker"]) == (200, 0, "down")
        assert {got.topic for got in eve.received} == {str(Topic.last(FLEET, SITE, "pc-1", "counter"))}
        assert content_of(world.database).coverage == {(SITE, "pc-1", EPOCH): [(1, 200)]}

    run(story)


def test_bad_messages_are_set_aside_and_everybody_else_goes_on(world: World) -> None:
    """One hub gone mad: wrong types, too many points, rubbish; an unknown kind is none of these."""
    bad = payload({"points": [{"ts": T0, "values": {"x": 1}}] * 1001}, 2)

    async def story() -> None:
        async with world.broker(), world.service(), world.connected() as pc:
            pc.session.publish(topic("pc-1"), b"\xff\x00 rubbish")
            pc.session.publish(topic("pc-1"), payload({}, 0))
            pc.session.publish(topic("pc-1", "tomorrow"), payload({"x": 1}, 3))
            await sent_until_acknowledged(pc, {1: one(1), 2: bad, 3: one(3), 4: one(4)})
            await until(lambda: world.status()["quarantined"] == 3)
            assert world.status()["unknown_kinds"] == 1
        reasons = query(world.database, "SELECT reason FROM quarantine ORDER BY refused_no")
        assert len(reasons) == 3
        assert content_of(world.database).coverage == {(SITE, "pc-1", EPOCH): [(1, 4)]}

    run(story)


def test_states_of_hubs_and_connectors_are_known(world: World) -> None:
    """Retained states come at every subscription; presence builds on what is kept of them."""

    async def story() -> None:
        async with world.broker(), world.connected() as pc, world.connected("connector", "c-1") as connector:
            birth = HubState(online=True, epoch=EPOCH, session=17, via="direct", version="1.2.0", ts=T0)
            pc.session.publish(str(Topic.hub_state(FLEET, SITE, "pc-1")), encode(birth), retain=True)
            state = ConnectorState(online=True, session=5, upstream="up", since=T0, ts=T0)
            connector.session.publish(str(Topic.connector_state(FLEET, SITE, "c-1")), encode(state), retain=True)
            async with world.service():
                sql = "SELECT (SELECT session FROM hubs), (SELECT session FROM connectors)"
                await until(lambda: query(world.database, sql) == [(17, 5)])

    run(story)


def test_locked_database_delays_acknowledgements_and_loses_nothing(world: World) -> None:
    """A lock that outlasts the waiting: no acknowledgement, then all of them, without a restart."""

    async def story() -> None:
        async with world.broker(), world.service(), world.connected() as pc:
            await sent_until_acknowledged(pc, {1: one(1)})
            said.clear()
            other = sqlite3.connect(world.database, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            for seq in range(2, 50):
                pc.session.publish(topic("pc-1"), one(seq))
            await until(lambda: "locked" in str(world.status()["storage"]))
            assert list(pc.acknowledged()) == [(1, 1)]
            other.close()
            await until(lambda: list(pc.acknowledged()) == [(1, 49)])
            await until(lambda: world.status()["storage"] == "ok")
        assert duplicates_of(world.database) == 0

    with structlog.testing.capture_logs() as said:
        run(story)
    of_storage = [entry for entry in said if entry["event"].startswith("storage_") and entry["log_level"] != "debug"]
    assert [(entry["event"], entry["log_level"]) for entry in of_storage] == [
        ("storage_failed", "warning"),
        ("storage_recovered", "info"),
    ]
    assert of_storage[1]["failed_s"] > 0


def test_broker_that_restarts_is_found_again_and_gets_the_newest_values_back(world: World) -> None:
    """Brokers keep nothing: whoever subscribes after a restart must still see every sensor."""

    async def story() -> None:
        async with world.broker():
            service = world.service()
            await service.__aenter__()
            async with world.connected() as pc:
                await sent_until_acknowledged(pc, {1: one(1, 42)})
        try:
            await until(lambda: world.status()["broker"] == "down")
            async with world.broker():
                await until(lambda: world.status()["broker"] == "up")
                async with world.connected("reader", "eve", "-") as eve, world.connected() as pc:
                    eve.session.subscribe([(hub_filter(FLEET, "+", "+", "last"), 0)])
                    await until(lambda: [decode(got.payload, Last).value for got in eve.received] == [42])
                    await sent_until_acknowledged(pc, {1: one(1, 42), 2: one(2)})
        finally:
            await service.__aexit__(None, None, None)
        assert content_of(world.database).coverage == {(SITE, "pc-1", EPOCH): [(1, 2)]}
        assert duplicates_of(world.database) >= 1

    run(story)


def test_service_that_was_away_goes_on_where_it_was(world: World) -> None:
    """What was stored is refused and acknowledged again; what was not, is stored."""

    async def story() -> None:
        async with world.broker(), world.connected() as pc:
            async with world.service():
                await sent_until_acknowledged(pc, {seq: one(seq) for seq in range(1, 6)})
            pc.received.clear()
            async with world.service():
                assert world.status()["stored_messages"] == 5
                await sent_until_acknowledged(pc, {seq: one(seq) for seq in range(4, 9)})
        assert content_of(world.database).coverage == {(SITE, "pc-1", EPOCH): [(1, 8)]}

    run(story)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": "postgresql+psycopg://x/y"}, "must be a URL like"),
        ({"database": "sqlite:///:memory:"}, "must be sqlite:///FILE"),
    ],
)
def test_service_says_what_it_can_not_run_with(world: World, change: dict[str, str], said: str) -> None:
    """One line at the start, not a loop of failures."""

    async def story() -> None:
        settings = world.settings()
        process = CloudProcess("127.0.0.1:1", database=change["database"], data_dir=settings.cloud.data_dir)
        Service(CloudSettings(settings.identity, process))

    with pytest.raises(SettingsError, match=said):
        run(story)


def test_service_does_not_start_with_another_fleets_database(world: World) -> None:
    """Two fleets in one database would mix hubs of the same name."""

    async def story() -> None:
        world.endpoint = "127.0.0.1:1"
        service = Service(world.settings())
        await service.run(stopped())
        connection = sqlite3.connect(world.database)
        connection.execute("UPDATE meta SET value = 'other' WHERE name = 'fleet'")
        connection.commit()
        connection.close()
        await Service(world.settings()).run(stopped())

    with pytest.raises(SettingsError, match="holds the fleet other"):
        run(story)


def stopped() -> asyncio.Event:
    """Return an event that is set already."""
    event = asyncio.Event()
    event.set()
    return event
