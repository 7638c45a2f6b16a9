"""Who is on the other end of a node's connections: only nodes of its own cluster on its routes, and only clients that live."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.topics import Topic, everything_filter
from config.endpoint import split_endpoint
from config.principal import CLOUD_SITE, server_name
from config.settings import Identity
from tests.broker.raw_mqtt import WAIT_S, publish, subscribe
from tests.fleet import until
from tests.nats import Cluster, needs_nats, running_cluster

pytestmark = needs_nats

KEEP_ALIVE_S = 2


# --- Clients that hang ----------------------------------------------------------------------------------------------

CLIENT = """
import socket, sys, time
from broker.tls import client_context
from config.settings import Identity
from pathlib import Path
from tests.broker import raw_mqtt

fleet, name, folder, host, port, server, topic = sys.argv[1:]
folder = Path(folder)
identity = Identity(fleet, "berlin", name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
with socket.create_connection((host, int(port)), 10) as plain, client_context(identity, server).wrap_socket(plain) as sock:
    sock.sendall(raw_mqtt.connect(name, will=(topic, b"gone"), keep_alive_s=KEEP))
    assert sock.recv(4) == raw_mqtt.CONNACK
    print("in", flush=True)
    try:
        while sock.send(raw_mqtt.PINGREQ) and sock.recv(2):
            time.sleep(KEEP / 4)
    except OSError:
        pass
    print("out", flush=True)
""".replace("KEEP", str(KEEP_ALIVE_S))
"""A hub that pings, in a process of its own that can be stopped: its system keeps the connection open."""


@contextmanager
def pinging(cluster: Cluster, identity: Identity, topic: str, node: int = 0) -> Iterator[subprocess.Popen[str]]:
    host, port = split_endpoint(cluster.endpoints[node])
    server = server_name(cluster.fleet, CLOUD_SITE)
    arguments = [cluster.fleet, identity.name, str(identity.ca.parent), host, str(port), server, topic]
    command = [sys.executable, "-c", CLIENT, *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in\n"
            yield process
        finally:
            process.kill()


def test_a_client_that_hangs_is_declared_gone_and_says_nothing_more(tmp_path: Path) -> None:
    """Its system answers for it, so only the missing pings tell; and when it goes on, the hub's new session must not suffer."""
    with running_cluster(tmp_path) as cluster:
        own, lively = cluster.hub("hang-1"), cluster.hub("hang-2")
        state, other = (str(Topic.hub_state("acme", "berlin", name)) for name in ("hang-1", "hang-2"))

        async def story(hanging: subprocess.Popen[str]) -> None:
            witness = await cluster.join(cluster.service, "cloud_witness")
            witness.send(subscribe(everything_filter("acme")))
            assert (await witness.answer())[-1] == 1
            hanging.send_signal(signal.SIGSTOP)
            assert await witness.expect(1) == [(state, b"gone", False)]
            back = await cluster.join(own)
            back.send(publish(state, b"back", retain=True))
            await back.answer()
            hanging.send_signal(signal.SIGCONT)
            assert hanging.stdout is not None
            assert await asyncio.wait_for(asyncio.to_thread(hanging.stdout.readline), WAIT_S) == "out\n"
            assert await witness.expect(2) == [(state, b"gone", False), (state, b"back", False)]
            assert len(await witness.quiet()) == 2
            assert await back.quiet() == []
            for each in (back, witness):
                await each.close()

        with pinging(cluster, own, state) as hanging, pinging(cluster, lively, other):
            asyncio.run(story(hanging))


@pytest.mark.soak  # Three nodes, for a case that one of them can't have.
def test_a_hub_that_comes_back_to_another_node_is_not_there_twice(tmp_path: Path) -> None:
    """Its old session hangs at the first node, whose will would say that the hub has gone."""
    with running_cluster(tmp_path, 3) as cluster:
        own = cluster.hub("twice-1")
        state = str(Topic.hub_state("acme", "berlin", "twice-1"))

        async def story(hanging: subprocess.Popen[str]) -> None:
            witness = await cluster.join(cluster.service, "cloud_witness", 2)
            witness.send(subscribe(everything_filter("acme")))
            assert (await witness.answer())[-1] == 1
            hanging.send_signal(signal.SIGSTOP)
            back = await cluster.join(own, node=1)
            back.send(publish(state, b"back", retain=True))
            await back.answer()
            assert (await witness.expect(1))[-1] == (state, b"back", False)
            late = cluster.hub("late-1")
            topic = str(Topic.hub_state("acme", "berlin", "late-1"))
            with pinging(cluster, late, topic) as after:
                after.send_signal(signal.SIGSTOP)  # When this one is missed, the first one would have been long ago.
                assert (await witness.expect(2))[-1] == (topic, b"gone", False)
            hanging.send_signal(signal.SIGCONT)
            assert hanging.stdout is not None
            assert await asyncio.wait_for(asyncio.to_thread(hanging.stdout.readline), WAIT_S) == "out\n"
            assert len(await witness.quiet()) == 2
            assert await back.quiet() == []
            for each in (back, witness):
                await each.close()

        with pinging(cluster, own, state) as hanging:
            asyncio.run(story(hanging))


# --- Routes ---------------------------------------------------------------------------------------------------------


class AloneNode(Cluster):
    """The first of three nodes, whose others never come: it serves nobody, but waits for them."""

    def wait_until_serving(self, name: str) -> None:
        host, port = split_endpoint(self.routes[self.names.index(name)])

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((host, port)) == 0

        until(f"{name} listens to other nodes", listens)

    def certificates(self, stranger: Cluster) -> dict[str, Path]:
        """Return the certificates of who would like to be a node, and of one who is."""
        self.hub("pc-1")
        return {
            "a node": self.bundle("broker", "cloud-2") / "cluster-cert.pem",
            "a broker": self.bundle("broker", "cloud-2") / "cert.pem",
            "a hub": self.bundle("hub", "pc-1") / "cert.pem",
            "the cloud service": self.bundle("cloud", "cloud") / "cert.pem",
            "a node of another authority": stranger.bundle("broker", "cloud-2") / "cluster-cert.pem",
        }


def trusting_all(cert: Path, purpose: int) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(cert, cert.with_name(cert.name.replace("cert.pem", "key.pem")))
    return context


def knocked(endpoint: str, cert: Path) -> bytes:
    """Call a node as another one does, and return all that it says."""
    host, port = split_endpoint(endpoint)
    said = b""
    try:
        with (
            socket.create_connection((host, port), WAIT_S) as plain,
            trusting_all(cert, ssl.PROTOCOL_TLS_CLIENT).wrap_socket(plain) as sock,
        ):
            sock.sendall(b'CONNECT {"tls_required":true,"name":"X","server_id":"X","cluster":"hubline"}\r\nPING\r\n')
            while b"PONG" not in said and (part := sock.recv(4096)):
                said += part
    except (ssl.SSLError, ConnectionError):
        pass
    return said


def called(endpoint: str, cert: Path) -> bool:
    """Wait in the place of another node until one calls, and tell whether it takes us for that node."""
    host, port = split_endpoint(endpoint)
    context = trusting_all(cert, ssl.PROTOCOL_TLS_SERVER)
    with socket.create_server((host, port)) as listener:
        listener.settimeout(WAIT_S)
        plain, _ = listener.accept()
        with plain:
            plain.settimeout(WAIT_S)
            try:
                context.wrap_socket(plain, server_side=True).close()
            except (ssl.SSLError, ConnectionError):
                return False
            return True


def test_nobody_but_a_node_of_the_cluster_gets_a_route_in_either_direction(tmp_path: Path) -> None:
    """By a route everything passes, whatever its rights: who has one hears all of the fleet, and can say what he likes."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    node, stranger = AloneNode(tmp_path / "ours", 3), Cluster(tmp_path / "theirs", 3)  # Of the same names.
    certificates = node.certificates(stranger)
    try:
        node.start("cloud")
        answers = {who: knocked(node.routes[0], cert) for who, cert in certificates.items()}
        assert answers.pop("a node").endswith(b"PONG\r\n")
        assert set(answers.values()) == {b""}
        taken = {who: called(node.routes[1], cert) for who, cert in certificates.items()}
        assert [who for who, is_taken in taken.items() if is_taken] == ["a node"]
    finally:
        node.close()
