"""A desk on an SQLite file, and the API in front of it in a real server: what the tests of the API and `hubline fleet` share."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import httpx
import orjson
import structlog
from sqlalchemy import Connection, delete, func, insert, select, update

from broker.clock import unix_ms
from broker.control import Presence, RequiredAction
from cloud.api import create_app
from cloud.api_server import ApiServer
from cloud.desk import Change, Changes, Content, Listener, Setting, StaleVersionError
from cloud.fleet_schema import (
    CONNECTION_LOG,
    GROUP_MEMBERS,
    LOGS,
    PRESENCE,
    REPORTED,
    SETTINGS_DOCUMENTS,
    SETTINGS_OF_HUBS,
    TASK_TARGETS,
    TASKS,
    TOKENS,
)
from cloud.hub_key import HubKey
from cloud.schema import HUBS, reader_engine, writer_engine
from cloud.states import add_hub
from cloud.store import Store
from cloud.tokens import Tokens
from config.errors import RefusedError, SettingsError, StorageError
from config.settings import Api, CloudProcess, CloudSettings, Identity
from config.tokens import Token, digest, new_token
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, T0, batch, gap, one, readings

T = TypeVar("T")

NOW = T0 + 3_600_000


class SqliteDesk:
    """Keeps what it is asked for in the real tables, and tells of it; no machine decides anything."""

    def __init__(self, file: Path):
        self.file = file
        self._writer = ThreadPoolExecutor(1, "desk-writer")
        self._reader = ThreadPoolExecutor(1, "desk-reader")
        for pool in (self._writer, self._reader):  # Their threads belong to the desk, not to the test that asks first.
            pool.submit(int).result()
        self._changes = Changes()
        self._tasks = 0
        self.presences: dict[HubKey, Presence] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.broken: str | None = None

    def close(self) -> None:
        self._writer.shutdown()
        self._reader.shutdown()

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._in(self._reader, reader_engine, work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._in(self._writer, writer_engine, work)

    async def _in(
        self, pool: ThreadPoolExecutor, engine_of: Callable[[Path], Any], work: Callable[[Connection], T]
    ) -> T:
        if self.broken is not None:
            raise StorageError(self.file, self.broken)

        def run() -> T:
            engine = engine_of(self.file)
            try:
                with engine.connect() as connection, connection.begin():
                    return work(connection)
            finally:
                engine.dispose()

        return await asyncio.get_running_loop().run_in_executor(pool, run)

    async def create_task(
        self,
        targets: Sequence[HubKey],
        action: str,
        arguments: Mapping[str, Any],
        *,
        expires_s: float,
        skip_if_offline: bool,
        by: str,
    ) -> str:
        if action == "update-now":
            raise SettingsError("comes later", key="action", value=action)
        self._tasks += 1
        task, now_ms = f"{self._tasks:016x}", unix_ms()

        def work(connection: Connection) -> None:
            row = {
                "task": task,
                "action": action,
                "arguments": orjson.dumps(dict(arguments)).decode(),
                "created_by": by,
            }
            connection.execute(
                insert(TASKS).values(
                    **row,
                    created_ms=now_ms,
                    expires_ms=now_ms + int(expires_s * 1000),
                    skip_if_offline=int(skip_if_offline),
                )
            )
            for key in targets:
                state = {"task": task, "hub_no": add_hub(connection, *key), "state": "queued", "changed_ms": now_ms}
                connection.execute(insert(TASK_TARGETS).values(**state))

        await self.write(work)
        for key in targets:
            self._tell("task", task, {"hub": "/".join(key), "state": "queued", "action": action}, key[0])
        return task

    async def cancel_task(self, task: str, key: HubKey | None, *, by: str) -> None:
        self.calls.append(("cancel", task, key, by))
        await self.end_task(task, "cancelled", key)

    async def end_task(self, task: str, state: str, key: HubKey | None = None, message: str | None = None) -> None:
        def work(connection: Connection) -> None:
            query = update(TASK_TARGETS).where(TASK_TARGETS.c.task == task)
            if key is not None:
                query = query.where(TASK_TARGETS.c.hub_no == add_hub(connection, *key))
            connection.execute(query.values(state=state, message=message, changed_ms=unix_ms()))

        await self.write(work)
        self._tell("task", task, {"state": state}, None if key is None else key[0])

    async def check_settings(self, scope: str, name: str, content: Content) -> list[str]:
        for section, keys in content.items():
            if section not in ("logs", "mode"):
                raise SettingsError("there is no such section", key=section)
            if keys.get("level") == "loud":
                raise SettingsError("must be one of: off, debug", key=f"{section}.level", value="loud")
        poll = content.get("mode", {}).get("poll_min", 30)
        return ["mode.poll_min should be at least three heartbeats"] if poll < 30 else []

    async def put_settings(
        self, scope: str, name: str, content: Content, *, expected_version: int | None, by: str
    ) -> tuple[int, list[str]]:
        warnings = await self.check_settings(scope, name, content)

        def work(connection: Connection) -> int:
            columns = SETTINGS_DOCUMENTS.c
            newest = select(func.max(columns.version)).where(columns.scope == scope, columns.name == name)
            version: int = connection.scalar(newest) or 0
            if expected_version not in (None, version):
                raise StaleVersionError(version)
            row = {"scope": scope, "name": name, "version": version + 1, "content": orjson.dumps(content).decode()}
            connection.execute(insert(SETTINGS_DOCUMENTS).values(**row, created_ms=unix_ms(), created_by=by))
            return version + 1

        version = await self.write(work)
        self._tell("settings", f"{scope}/{name}", {"version": version}, name.partition("/")[0] if "/" in name else None)
        return version, warnings

    async def effective_settings(self, key: HubKey) -> Mapping[str, Mapping[str, Setting]]:
        return {"logs": {"level": Setting("info", "site/berlin")}, "mode": {"poll_min": Setting(30, "fleet")}}

    async def set_group(self, group: str, key: HubKey, *, member: bool, by: str) -> None:
        def work(connection: Connection) -> None:
            row = {"group_name": group, "hub_no": add_hub(connection, *key)}
            connection.execute(
                delete(GROUP_MEMBERS).where(
                    GROUP_MEMBERS.c.group_name == group, GROUP_MEMBERS.c.hub_no == row["hub_no"]
                )
            )
            if member:
                connection.execute(insert(GROUP_MEMBERS).values(**row))

        await self.write(work)

    async def pause(self, key: HubKey, *, by: str) -> None:
        if self.presences.get(key) is None:
            raise RefusedError("hub", "it was never seen: there is nothing to pause")
        self.calls.append(("pause", key, by))

    async def resume(self, key: HubKey, *, by: str) -> None:
        self.calls.append(("resume", key, by))

    async def forget(self, key: HubKey, *, by: str) -> None:
        self.calls.append(("forget", key, by))
        await self.write(lambda c: c.execute(delete(HUBS).where(HUBS.c.site == key[0], HUBS.c.hub == key[1])))

    def presence(self, key: HubKey) -> Presence | None:
        return self.presences.get(key)

    def changes(self) -> Listener:
        return self._changes.listen()

    def status(self) -> Mapping[str, object]:
        counts = {"stored_messages": 12, "stored_points": 34, "duplicates_refused": 5, "waiting": 6}
        return {"role": "cloud", "fleet": FLEET, "pid": 1, "broker": "up", "storage": "ok", **counts}

    # --- What happens in the fleet ----------------------------------------------------------------------------------

    async def set_presence(self, key: HubKey, connection: str, reason: str, text: str = "") -> None:
        presence = presence_of(connection, reason, text)
        self.presences[key] = presence
        await self.write(lambda database: put_presence(database, key, presence))
        body = {"connection": connection, "reason": reason, "text": text, "since": presence.since, "via": presence.via}
        self._tell("presence", "/".join(key), body, key[0])

    async def reload(self) -> None:
        self._changes.tell(Change("reload", "", {}))

    def _tell(self, kind: Any, key: str, body: Mapping[str, Any], site: str | None) -> None:
        self._changes.tell(Change(kind, key, body, site))


def presence_of(connection: str, reason: str, text: str = "") -> Presence:
    actions = (
        [RequiredAction("verify-connection", "admin", "Verify the connection.")] if connection == "offline" else []
    )
    return Presence(
        connection=connection,  # type: ignore[arg-type]
        since=T0,
        via="berlin-1",
        reason=reason,
        last_seen=NOW,
        icon=connection,
        text=text or f"It is {connection}: {reason}.",
        actions=actions,
        evidence={"session": 7},
    )


def put_presence(connection: Connection, key: HubKey, presence: Presence, hidden_ms: int | None = None) -> None:
    number = add_hub(connection, *key)
    connection.execute(delete(PRESENCE).where(PRESENCE.c.hub_no == number))
    row = {"hub_no": number, "connection": presence.connection, "reason": presence.reason, "via": presence.via}
    times = {"since_ms": presence.since, "last_seen_ms": presence.last_seen, "hidden_ms": hidden_ms}
    connection.execute(insert(PRESENCE).values(**row, **times, skew_ms=0, record="{}"))
    log = {"hub_no": number, "at_ms": presence.since, "connection": presence.connection, "reason": presence.reason}
    connection.execute(insert(CONNECTION_LOG).values(**log, via=presence.via, evidence='{"session": 7}'))


HUBS_MADE: tuple[tuple[HubKey, str, str], ...] = (
    (("berlin", "pc-1"), "online", "started"),
    (("berlin", "pc-2"), "offline", "lost contact"),
    (("berlin", "pc-3"), "online", "started"),
    (("munich", "lap-1"), "roaming", "roaming"),
    (("munich", "pc-1"), "offline", "stopped"),
    (("munich", "old-1"), "offline", "lost contact"),
)
HIDDEN = ("munich", "old-1")
LINES = (("debug", "woke_up"), ("info", "path_changed"), ("warning", "100%_full"), ("error", "disk_failed"))


@cache
def filled() -> bytes:
    """Return the file of a database that `fill` has made."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "cloud.db"
        fill(file)
        return file.read_bytes()


def fill(file: Path) -> None:
    """Make a database with two sites, six hubs, readings, logs, groups and settings; the last hub has none of it."""
    store = Store(file, FLEET)
    store.open()
    points = [(T0 + second * 1000, {"cpu.percent": second // 60 % 10, "host": "x"}) for second in range(0, 7200, 60)]
    store.commit(batch(*(readings(seq, points[seq * 10 - 10 : seq * 10]) for seq in range(1, 13))))
    store.commit(batch(one(1), one(1), one(4), hub_id="pc-2"))
    store.commit(batch(gap(5, 2, 2), hub_id="pc-2", kind="events"))
    store.commit(batch(one(1, epoch=OTHER_EPOCH), hub_id="pc-2"))
    store.close()
    engine = writer_engine(file)
    with engine.connect() as connection, connection.begin():
        for key, state, reason in HUBS_MADE:
            put_presence(connection, key, presence_of(state, reason), NOW if key == HIDDEN else None)
        first = add_hub(connection, "berlin", "pc-1")
        body = {"version": "1.2.0", "host": "pc-1.example", "system": "Linux", "addresses": [], "mode": "continuous"}
        said = {"hub_no": first, "epoch": EPOCH, "seq": 1, "received_ms": T0, "body": orjson.dumps(body).decode()}
        connection.execute(insert(REPORTED).values(**said))
        wanted = {"hub_no": first, "desired_version": 3, "desired_hash": "a" * 16, "desired_ms": T0}
        wanted["desired_content"] = "{}"
        told = {"reported_version": 2, "reported_hash": "b" * 16, "reported_state": "applied", "reported_ms": T0}
        connection.execute(insert(SETTINGS_OF_HUBS).values(**wanted, **told))
        for key in (("berlin", "pc-1"), ("munich", "lap-1"), HIDDEN):
            connection.execute(insert(GROUP_MEMBERS).values(group_name="laptops", hub_no=add_hub(connection, *key)))
        for number, (level, event) in enumerate(LINES * 3, 1):
            line = {"hub_no": first, "boot": EPOCH, "n": number, "ts": T0 + number, "received_ms": T0 + number}
            fields = orjson.dumps({"path": f"C:\\{number}", "evil": "\x1b[31m"}).decode()
            connection.execute(insert(LOGS).values(**line, level=level, event=event, fields=fields))
    engine.dispose()


@dataclass
class Running:
    """An API in a thread of its own."""

    url: str
    desk: SqliteDesk
    server: ApiServer
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    tokens: dict[str, str] = field(default_factory=dict)

    def client(self, token: str | None = "admin") -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {self.tokens.get(token, token)}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=20, trust_env=False)

    def run(self, work: Any) -> Any:
        """Run a coroutine in the event loop of the API."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def audited(self, **wanted: str) -> list[dict[str, Any]]:
        with self.client() as client:
            found: list[dict[str, Any]] = client.get("/audit", params={"limit": "1000", **wanted}).json()["items"]
        return found


TOKENS_MADE: tuple[tuple[str, str, str | None, int | None, int | None], ...] = (
    ("reader", "read", None, None, None),
    ("operator", "operate", None, None, None),
    ("berlin", "operate", "berlin", None, None),
    ("berlin-admin", "admin", "berlin", None, None),
    ("expired", "admin", None, T0, None),
    ("revoked", "admin", None, None, T0),
)


def settings_of(directory: Path, **api: Any) -> CloudSettings:
    pem = directory / "x.pem"
    identity = Identity(fleet=FLEET, site="-", name="cloud-1", ca=pem, cert=pem, key=pem)
    api = {"listen": "127.0.0.1:0", **api}
    return CloudSettings(identity=identity, cloud=CloudProcess(data_dir=directory), api=Api(**api))


@contextmanager
def running_api(directory: Path, admin: str | None = None, **api: Any) -> Iterator[Running]:
    """Serve the API of a filled database on a free port of loopback."""
    file = directory / "cloud.db"
    file.write_bytes(filled())
    texts = {"admin": admin or new_token()}
    engine = writer_engine(file)
    with engine.connect() as connection, connection.begin():
        for name, scope, site, expires_ms, revoked_ms in TOKENS_MADE:
            texts[name] = new_token()
            row = {"name": name, "sha256": digest(texts[name]), "scope": scope, "site": site, "created_ms": T0}
            connection.execute(insert(TOKENS).values(**row, expires_ms=expires_ms, revoked_ms=revoked_ms))
    engine.dispose()
    first = Token("admin", digest(texts["admin"]), datetime(2026, 1, 1, tzinfo=UTC))
    desk = SqliteDesk(file)
    for key, state, reason in HUBS_MADE[:3]:
        desk.presences[key] = presence_of(state, reason)
    settings = settings_of(directory, **api)
    server = ApiServer(create_app(desk, Tokens([first]), settings), settings.api)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.run()), name="api")
    told = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    thread.start()
    try:
        yield Running(server.url, desk, server, loop, thread, texts)
    finally:
        loop.call_soon_threadsafe(server.close)
        thread.join(20)
        assert not thread.is_alive()
        desk.close()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        structlog.configure(**told)
