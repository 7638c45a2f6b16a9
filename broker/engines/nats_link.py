"""Looks whether a site's leaf node is connected to the cloud, and tells the connector, over and over: nothing of it is retained.

While it can't look it says nothing: whoever hears nothing for some seconds takes the bridge for lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from broker.engines.nats_rights import Permissions, subject_of
from broker.engines.site_bridge import Notice, notification_topic
from config import limits, log

if TYPE_CHECKING:
    from nats.aio.client import Client


class _Leaf(Struct, frozen=True):
    id: int
    is_spoke: bool = False


class _Leafs(Struct, frozen=True):
    leafs: list[_Leaf] = []


class _Server(Struct, frozen=True):
    id: str


class _Told(Struct, frozen=True):
    """What a node answers about its leaf connections."""

    server: _Server
    data: _Leafs | None = None


class Link:
    """The leaf connection of a site's node, as its connector hears of it."""

    def __init__(self, connector_id: str):
        self._subject = subject_of(notification_topic(connector_id))
        self._newest: asyncio.Queue[Notice] = asyncio.Queue(1)
        self._log = log.get(__name__)

    @property
    def rights(self) -> Permissions:
        """Return what is needed to tell of it, and nothing else."""
        return Permissions((self._subject,), (), ("STANDARD",))

    async def look(self, client: Client) -> None:
        """Look, in the system's account, until cancelled."""
        from nats.errors import Error

        while True:
            try:
                answer = await client.request("$SYS.REQ.SERVER.PING.LEAFZ", b"{}", limits.NATS_REQUEST_S)
                self._found(notice_of(answer.data))
            except (Error, TimeoutError, msgspec.DecodeError) as exc:
                self._log.warning("leaf_not_checked", reason=str(exc) or type(exc).__name__)
            await asyncio.sleep(limits.NATS_LEAF_LOOK_S)

    async def tell(self, client: Client) -> None:
        """Tell, in the fleet's account, what each look has found, until cancelled."""
        from nats.errors import Error

        while True:
            notice = await self._newest.get()
            try:
                await client.publish(self._subject, notice.encode())
                await client.flush(int(limits.NATS_REQUEST_S))
            except (Error, TimeoutError, OSError) as exc:
                self._log.debug("leaf_not_told", reason=str(exc) or type(exc).__name__)

    def _found(self, notice: Notice) -> None:
        if self._newest.full():
            self._newest.get_nowait()
        self._newest.put_nowait(notice)


def notice_of(answer: bytes) -> Notice:
    """Return what a node's answer says of its connection to the cloud. Raises msgspec.DecodeError.

    A node lists a connection that the cloud has accepted. Its number begins anew with each start of the node, whose id changes.
    """
    told = msgspec.json.decode(answer, type=_Told)
    up = [leaf.id for leaf in told.data.leafs if leaf.is_spoke] if told.data else []
    return Notice(bool(up), f"{told.server.id[-8:]}-{max(up, default=0)}")
