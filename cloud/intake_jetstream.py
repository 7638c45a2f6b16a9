"""What comes in from the stream of a NATS cluster, shared with other workers: acknowledged there after the commit, not before.

As much is asked for as one worker may have at the same time, so nothing is fetched in vain. What a worker that dies had
is sent to another one. A message that can't be read is stored aside and acknowledged like any other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Final

import orjson

from broker.backoff import Backoff
from broker.clock import unix_ms
from broker.process import cancelled
from broker.runner import monotonic_s
from broker.tls import client_context
from cloud.ingest import Arrived, Connected, Disconnected
from cloud.stream_watch import StreamWatch
from config import limits, log
from config.errors import HublineError, SettingsError, TransportError
from config.principal import CLOUD_SITE, server_name
from config.settings import CloudSettings

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

_log: Final = log.get(__name__)

_ACK: Final = b"+ACK"
_PROGRESS: Final = b"+WPI"
_NOTHING: Final = ("404", "408")
"""The server's words for a request that has met no message in its time; any other word is no answer to it."""
_NAK: Final = b'-NAK {"delay":%d}' % int(limits.JETSTREAM_GIVE_BACK_S * 1e9)


@dataclass(slots=True)
class _Held:
    """A message that is not settled yet: where the stream waits for word of it, and since when."""

    reply: str
    size_bytes: int
    told_at: float


class JetStreamIntake:
    """An `Intake` from the stream HUBLINE_UP; a receipt is a message's number there. Raises SettingsError like MqttIntake."""

    def __init__(self, settings: CloudSettings, report: Callable[[Arrived | Connected | Disconnected], None]):
        self.reason: str | None = None
        self.dropped = 0
        try:
            import nats.js.errors  # noqa: F401
        except ImportError as exc:
            problem = "intake = \"jetstream\" needs nats-py: pip install 'hubline[nats]'"
            raise SettingsError(problem, key="cloud.intake") from exc
        self._identity: Final = settings.identity
        self._random: Final = SystemRandom()
        nodes = list(settings.cloud.nats)
        self._endpoints: Final = deque(self._random.sample(nodes, len(nodes)))  # So workers spread over the nodes.
        self._report: Final = report
        client_context(self._identity, server_name(self._identity.fleet, CLOUD_SITE))  # As in MqttIntake.
        self._client: Client | None = None
        self._failures = 0
        self._prepared = False
        self._watch: Final = StreamWatch()
        self._requests = 0
        self._held: Final[dict[int, _Held]] = {}
        self._held_bytes = 0
        self._out: Final[deque[tuple[str, bytes]]] = deque()
        self._out_there: Final = asyncio.Event()
        self._room: Final = asyncio.Event()

    @property
    def open(self) -> bool:
        """Tell whether there is a connection to one of the nodes."""
        return self._client is not None

    @property
    def waiting(self) -> int:
        """Return how many messages are not settled."""
        return len(self._held)

    async def run(self) -> None:
        """Keep a connection with any of the nodes, for ever."""
        backoff = Backoff(self._random, max_s=limits.INTAKE_RETRY_MAX_S)
        while True:
            endpoint = self._endpoints[0]
            opened_at = monotonic_s()
            try:
                reason = await self._one_connection(endpoint)
            except HublineError as exc:
                reason = str(exc)
            backoff.lived(monotonic_s() - opened_at)
            self._failures += 1
            write = _log.debug if reason == self.reason else _log.warning
            self.reason = reason
            write("stream_unreachable", endpoint=endpoint, reason=reason, failures=self._failures)
            self._endpoints.rotate(-1)
            await asyncio.sleep(backoff.next_s())

    async def close(self) -> None:
        """Send what is to be sent, and disconnect."""
        client = self._client
        if client is not None:
            try:
                async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
                    await self._flushed(client)
            except (TimeoutError, OSError, TransportError):
                pass  # It was not acknowledged, and comes again.
            await _left(client)
            self._client = None

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send a message to whoever has subscribed now (`qos` and `retain` are not for this way)."""
        from broker.engines.nats_stream import subject_of

        self._send(subject_of(topic), payload)

    def settle(self, receipts: Sequence[int]) -> None:
        """Tell the stream that messages are done with."""
        self._answer(receipts, _ACK)

    def give_back(self, receipts: Sequence[int]) -> None:
        """Let messages come again after a while, to us or to another worker."""
        self._answer(receipts, _NAK)

    # --- One connection -----------------------------------------------------------------------------------------------

    async def _one_connection(self, endpoint: str) -> str:
        """Work with one node and return why that has ended."""
        import nats.errors

        from broker.engines.nats_client import connected

        lost = asyncio.Event()

        async def on_lost() -> None:
            lost.set()

        client = await connected([endpoint], self._identity, on_lost=on_lost)
        try:
            if not self._prepared:
                await self._prepare(client)
            self._client, self.reason = client, None
            _log.info("stream_connected", endpoint=endpoint, failures=self._failures)
            self._failures = 0
            self._report(Connected())
            tasks = (lost.wait(), self._pull(client), self._speak(client), self._look(client))
            work = [asyncio.create_task(each) for each in tasks]
            try:
                await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                ended = [task.exception() for task in work if task.done()]
            finally:
                await cancelled(work)
            failure = next((exc for exc in ended if exc is not None), None)
            if failure is not None and not isinstance(failure, (nats.errors.Error, OSError, TransportError)):
                raise failure
            return "the connection was closed" if failure is None else str(failure) or type(failure).__name__
        except (nats.errors.Error, OSError) as exc:
            raise TransportError(endpoint, str(exc) or type(exc).__name__) from exc
        finally:
            was_open, self._client = self._client is not None, None
            await _left(client)
            self._out.clear()
            if was_open:
                self._report(Disconnected())

    async def _prepare(self, client: Client) -> None:
        """Make the stream and the consumer of all workers, if they are not there yet or on fewer nodes than they could be.

        What is there is left as it is otherwise, and never taken from a node: another worker may know of more of them. That is
        asked once, and again only when nobody answers for long: a node says nothing while the cluster has no leader.
        """
        from nats.js.errors import NotFoundError

        from broker.engines.nats_stream import CONSUMER, STREAM, ensure_stream

        stream = client.jetstream()
        wanted = limits.JETSTREAM_REPLICAS if len(self._endpoints) >= limits.JETSTREAM_REPLICAS else 1
        try:
            there = (await stream.consumer_info(STREAM, CONSUMER)).config.num_replicas or 1
        except NotFoundError:
            there = 0
        if there < wanted:
            await ensure_stream(stream, self._identity.fleet, wanted)
            if there:
                _log.info("stream_replicated", replicas=wanted, before=there)
        self._prepared = True

    async def _pull(self, client: Client) -> None:
        """Ask for as much as there is room for, again and again."""
        from broker.engines.nats_stream import CONSUMER, STREAM

        loop, inbox = asyncio.get_running_loop(), client.new_inbox()
        over = asyncio.Event()
        wanted, current = 0, ""
        answered = False

        def take(message: Msg) -> None:
            nonlocal wanted, answered
            is_word = message.headers is not None and not message.reply  # Of the server, about our request.
            answered = answered or not is_word or (message.headers or {}).get("Status") in _NOTHING
            if message.subject == current:
                wanted -= not is_word
                if is_word or wanted == 0:
                    over.set()
            if not is_word:
                self._take(message)

        async def hand_over(message: Msg) -> None:
            loop.call_soon(take, message)  # A fault of ours must end the process; nats-py would swallow it.

        await client.subscribe(f"{inbox}.*", cb=hand_over)
        silent_at: float | None = None
        while True:
            await self._wait_for_room()
            self._requests += 1
            current = f"{inbox}.{self._requests}"
            wanted = min(limits.JETSTREAM_FETCH_MESSAGES, limits.JETSTREAM_WAITING_MAX - len(self._held))
            request = {
                "batch": wanted,
                "max_bytes": limits.JETSTREAM_WAITING_MAX_BYTES + limits.PACKET_MAX_BYTES - self._held_bytes,
                "expires": int(limits.JETSTREAM_FETCH_WAIT_S * 1e9),
            }
            over.clear()
            answered, asked_at = False, monotonic_s()
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
            await client.publish(subject, orjson.dumps(request), reply=current)
            try:
                async with asyncio.timeout(limits.JETSTREAM_FETCH_WAIT_S + 1.0):
                    await over.wait()
            except TimeoutError:  # The node that had the request may be gone; or ours hangs.
                await client.flush(limits.JETSTREAM_PONG_S)  # type: ignore[arg-type]
            if answered:
                silent_at = None
            else:
                silent_at = silent_at or asked_at
                await self._endure(client, asked_at, silent_at)

    async def _endure(self, client: Client, asked_at: float, silent_at: float) -> None:
        """Wait a bit before the next request, and see whether there is anything to ask if this has lasted for long."""
        now = monotonic_s()
        if now - silent_at > limits.JETSTREAM_LOST_S:
            self._prepared = False
            await self._prepare(client)
        await asyncio.sleep(max(0.0, asked_at + limits.JETSTREAM_RETRY_S - now))

    async def _look(self, client: Client) -> None:
        """Look how full the stream is, now and then, and that nothing else on the nodes' disks takes its place."""
        from broker.engines.nats_stream import bound_others, state_of

        while True:
            try:
                self._watch.look(await state_of(client), monotonic_s())
                await bound_others(client)
            except TransportError as exc:
                _log.debug("stream_not_seen", reason=exc.reason)
            await asyncio.sleep(limits.JETSTREAM_LOOK_S)

    async def _wait_for_room(self) -> None:
        while len(self._held) >= limits.JETSTREAM_WAITING_MAX or self._held_bytes >= limits.JETSTREAM_WAITING_MAX_BYTES:
            self._room.clear()
            await self._room.wait()

    def _take(self, message: Msg) -> None:
        from broker.engines.nats_stream import topic_of

        number = message.metadata.sequence.stream
        known = self._held.get(number)
        if known is not None:  # It took so long that it was sent again: the newest word counts.
            known.reply = message.reply
            return
        self._held[number] = _Held(message.reply, len(message.data), monotonic_s())
        self._held_bytes += len(message.data)
        self._report(Arrived(topic_of(message.subject), message.data, unix_ms(), receipt=number))

    # --- What goes out ------------------------------------------------------------------------------------------------

    def _answer(self, receipts: Sequence[int], word: bytes) -> None:
        for receipt in receipts:
            held = self._held.pop(receipt)
            self._held_bytes -= held.size_bytes
            self._send(held.reply, word)
        self._room.set()

    def _send(self, subject: str, payload: bytes) -> None:
        if self._client is None:
            return  # Hubs and stream repeat what they hear nothing of.
        if len(self._out) >= limits.INGEST_WAITING_MAX:
            self.dropped += 1
            return
        self._out.append((subject, payload))
        self._out_there.set()

    async def _speak(self, client: Client) -> None:
        """Send what is to be sent, and ask for patience for what takes long."""
        while True:
            try:
                async with asyncio.timeout(limits.JETSTREAM_PROGRESS_S / 2):
                    await self._out_there.wait()
            except TimeoutError:
                pass
            self._out_there.clear()
            await self._sent(client)
            due = monotonic_s() - limits.JETSTREAM_PROGRESS_S
            for held in list(self._held.values()):
                if held.told_at <= due:
                    held.told_at = monotonic_s()
                    await client.publish(held.reply, _PROGRESS)

    async def _sent(self, client: Client) -> None:
        while self._out:
            subject, payload = self._out.popleft()
            await client.publish(subject, payload)

    async def _flushed(self, client: Client) -> None:
        await self._sent(client)
        await client.flush()


async def _left(client: Client) -> None:
    """Close a connection; one whose node hangs is given up, it ends with its node."""
    from nats.errors import Error

    if client.is_closed:
        return
    try:
        async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
            await client.close()
    except (TimeoutError, OSError, Error) as exc:
        _log.debug("connection_given_up", reason=str(exc) or type(exc).__name__)
