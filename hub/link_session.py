"""What a hub's link knows of one of its sessions, and whether a path leads through it (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.messages import DIRECT, ConnectorState
from hub.link_events import Kind


@dataclass(slots=True, eq=False)
class LinkSession:
    """A session as long as the link has a use for it; times are monotonic."""

    number: int
    kind: Kind
    endpoint: str
    carrying: bool
    started_at: float
    opened_at: float | None = None
    good_at: float | None = None  # Since when it has been good without a break.
    used: bool = False
    proven: bool = False  # An acknowledgement has come through it.
    connectors: dict[str, ConnectorState] = field(default_factory=dict)

    @property
    def via(self) -> str | None:
        """Return the connector that is good here, "direct", or None while the session is of no use."""
        if self.opened_at is None:
            return None
        if self.kind is Kind.DIRECT:
            return DIRECT
        good = (name for name, state in sorted(self.connectors.items()) if state.online and state.upstream == "up")
        return next(good, None)

    def hear(self, connector_id: str, state: ConnectorState) -> None:
        """Take note of a connector's state, unless it is a late will or birth."""
        known = self.connectors.get(connector_id)
        if known is None or _is_newer(state, known):
            self.connectors[connector_id] = state


def _is_newer(state: ConnectorState, known: ConnectorState) -> bool:
    """Tell whether a connector's state is not late: of a later session, or of one that has not ended by what is known."""
    return (state.session, not state.online) >= (known.session, not known.online)
