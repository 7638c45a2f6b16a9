"""How what hubs send comes in, and how their acknowledgements go out: by MQTT, or from a stream of the NATS cluster."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol, TypeAlias

from broker.tls import key_secret
from broker.topics import connector_filter, hub_filter, shared_filter
from cloud.ingest import Arrived, Connected, Disconnected
from cloud.intake_mqtt import MqttIntake
from config.errors import SettingsError
from config.settings import CloudSettings

Part: TypeAlias = Literal["ingest", "operations"]
"""What one process of a divided service does: store and acknowledge, or all the rest."""

Report: TypeAlias = Callable[[Arrived | Connected | Disconnected], None]

UP_QOS: Final = 0
"""What hubs send is repeated until it is acknowledged end to end: another acknowledgement on this hop would only cost."""

STATE_QOS: Final = 1


class Intake(Protocol):
    """One way in, in the running event loop. What it reports with a receipt it wants to hear of again."""

    reason: str | None
    """Why it has no connection, or None."""

    @property
    def open(self) -> bool:
        """Tell whether it has one."""

    @property
    def dropped(self) -> int:
        """Return how many messages, either way, did not fit into its bounds."""

    async def run(self) -> None:
        """Keep the connection, for ever."""

    async def close(self) -> None:
        """End the connection in order, after what was published."""

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send a message; without a connection it is lost."""

    def settle(self, receipts: Sequence[int]) -> None:
        """Hear that messages are done with."""

    def give_back(self, receipts: Sequence[int]) -> None:
        """Hear that messages were not taken."""


def up_intake(settings: CloudSettings, report: Report) -> Intake:
    """Return how a worker gets what hubs send. Raises SettingsError for settings that can't work."""
    if settings.cloud.intake == "jetstream":
        from cloud.intake_jetstream import JetStreamIntake

        return JetStreamIntake(settings, report)
    return MqttIntake(
        settings, [_up(settings)], report, suffix=f"ingest-{secrets.token_hex(4)}", mqtt5=_shared(settings)
    )


def rest_intake(settings: CloudSettings, report: Report) -> MqttIntake:
    """Return how operations hear of everything that is no message. Raises SettingsError like `up_intake`."""
    return MqttIntake(settings, _rest(settings), report, suffix=key_secret(settings.identity, "cloud"))


def whole_intakes(settings: CloudSettings, report: Report) -> tuple[Intake, MqttIntake]:
    """Return both for a service in one process; over MQTT they are one session."""
    if settings.cloud.intake == "jetstream":
        only_up = up_intake(settings, lambda event: report(event) if isinstance(event, Arrived) else None)
        return only_up, rest_intake(settings, report)
    filters = [_up(settings), *_rest(settings)]
    both = MqttIntake(settings, filters, report, suffix=key_secret(settings.identity, "cloud"), mqtt5=_shared(settings))
    return both, both


def check(settings: CloudSettings, part: Part | None) -> None:
    """Look whether a process can do this part with these settings. Raises SettingsError."""
    if part is not None and not settings.cloud.database.startswith("postgresql"):
        problem = f"--only {part} needs PostgreSQL: several processes can't share an SQLite file"
        raise SettingsError(problem, key="cloud.database", value=settings.cloud.database)
    if settings.cloud.intake == "jetstream" and part != "operations" and not settings.cloud.nats:
        raise SettingsError('must name the nodes of the NATS cluster for intake = "jetstream"', key="cloud.nats")


def _shared(settings: CloudSettings) -> bool:
    return settings.cloud.intake == "shared"


def _up(settings: CloudSettings) -> tuple[str, int]:
    topic_filter = hub_filter(settings.identity.fleet, "+", "+", "up")
    if not _shared(settings):
        return topic_filter, UP_QOS
    # Whoever joins a share takes messages out of it: its name is one that only those know who have the same bundle.
    share = f"{settings.cloud.workers}-{key_secret(settings.identity, settings.cloud.workers)}"
    return shared_filter(share, topic_filter), UP_QOS


def _rest(settings: CloudSettings) -> list[tuple[str, int]]:
    fleet = settings.identity.fleet
    # A cluster that has lost a node grants QoS 0 at once, and QoS 1, a consumer of its own, for half a minute not.
    qos = UP_QOS if settings.cloud.intake == "jetstream" else STATE_QOS
    of_hubs = [(hub_filter(fleet, "+", "+", channel), qos) for channel in ("heartbeat", "poll", "state")]
    return [*of_hubs, (connector_filter(fleet, "+"), qos)]
