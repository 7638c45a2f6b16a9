"""SSDP is never trusted: whoever answers first, the hub ends at the connector that proves itself."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from config import provision
from connector.announcing import Announcer
from tests.fleet import Fleet, until


@contextmanager
def false_connector(directory: Path, fleet: str, site: str) -> Iterator[None]:
    """Answer for a site with a certificate of another authority, as an attacker on its network would."""
    provision.init(directory / "false", fleet)
    provision.connector(directory / "false", "evil-1", site)
    bundle = directory / "false" / "bundles" / "broker" / "evil-1"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle / "cert.pem", bundle / "key.pem")
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # Handshakes that failed.
        announcer = Announcer(fleet, site, server.sockets[0].getsockname()[1], uuid4())
        await announcer.start()
        ready.set()
        while not over.is_set():
            await asyncio.sleep(0.05)
        await announcer.stop()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        over.set()
        thread.join()


def _certificate_complaints(fleet: Fleet) -> list[str]:
    reasons = (str(line["reason"]) for line in fleet.events("pc-1", "broker_unreachable"))
    return [reason for reason in reasons if "certificate" in reason]


def test_a_false_connector_that_answers_first_costs_one_attempt(tmp_path: Path, unique_name: str) -> None:
    fleet = Fleet(tmp_path, unique_name, hubs=1)
    try:
        with false_connector(tmp_path, unique_name, "berlin"):
            fleet.start("pc-1")
            until("the hub meets the false one", lambda: _certificate_complaints(fleet))
            assert not fleet.events("pc-1", "path_taken")
            fleet.start("cloud-broker", "cloud", "site-broker", "connector")
            fleet.wait_until_flowing()
            assert fleet.status("pc-1")["path"]["connector"] == "berlin-1"  # type: ignore[index]
        fleet.assert_nothing_lost_or_doubled()
    finally:
        fleet.close()


def test_connectors_of_other_sites_are_not_even_tried(tmp_path: Path, unique_name: str) -> None:
    fleet = Fleet(tmp_path, unique_name, hubs=1)
    try:
        with false_connector(tmp_path, unique_name, "hamburg"):
            fleet.start()
            fleet.wait_until_flowing()
            assert _certificate_complaints(fleet) == []
    finally:
        fleet.close()
