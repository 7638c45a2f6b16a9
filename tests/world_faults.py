"""Random faults for a world: all that the site, the network and the cloud can do to a hub, one after the other and at once."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

from tests.world import HOUR_S, World
from tests.world_bridge import BridgingBroker
from tests.world_roles import CLOUD_BROKER

FAULT_EVERY_S = 150.0
FAULT_MIN_S, FAULT_MAX_S = 1.0, 1_500.0
FLAP_S = 8.0
FLAPS = 30
CLOCK_STEP_MAX_S = 7_200.0


def suffer(world: World, hours: float) -> World:
    """Let a world have faults for so long; then mend it, drain it and audit it."""
    faults = Faults(world)
    try:
        world.run(hours * HOUR_S)
        faults.stop()
        world.settle()
    except AssertionError:
        print("\n".join(faults.done))
        raise
    finally:
        world.close()
    return world


class Faults:
    """Does something bad every so often, and undoes it after a while."""

    def __init__(self, world: World):
        self.world = world
        self.random = world.random
        self.done: list[str] = []
        self._over = False
        self._kinds: tuple[Callable[[], str], ...] = (
            self._kill,
            self._kill,
            self._power_cut,
            self._cut,
            self._cut,
            self._cut_one_way,
            self._cut_wan,
            self._step_clock,
            self._fill_hub,
            self._fill_cloud,
            self._flap,
            self._swizzle,
            self._restart_hub_in_outage,
            self._refuse,
        )
        self._bridging = [broker for broker in world.brokers.values() if isinstance(broker, BridgingBroker)]
        if self._bridging:
            self._kinds += (self._drop_bridge, self._mute_bridge, self._cut_bridge)
        self._next()

    def stop(self) -> None:
        """Do nothing more; what was begun is left to `World.mend_all`."""
        self._over = True

    def _later(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        self.world.at(self.world.now + delay_s, self._unless_over, call, args)

    def _unless_over(self, call: Callable[..., None], args: tuple[object, ...]) -> None:
        if not self._over:
            call(*args)

    def _next(self) -> None:
        self._later(self.random.expovariate(1 / FAULT_EVERY_S), self._strike)

    def _strike(self) -> None:
        what = self.random.choice(self._kinds)()
        self.done.append(f"{self.world.now:.1f} {what}")
        self._next()

    def _duration_s(self) -> float:
        """Return a duration; as many short ones as long ones."""
        return exp(self.random.uniform(log(FAULT_MIN_S), log(FAULT_MAX_S)))

    def _links(self) -> list[tuple[str, str]]:
        world = self.world
        links = [(hub_id, broker) for hub_id in world.hubs for broker in world.brokers]
        for connector in world.connectors.values():
            links += [(connector.name, CLOUD_BROKER), (connector.name, connector.site_broker)]
        links += [(broker.name, CLOUD_BROKER) for broker in self._bridging]
        return [*links, ("cloud", CLOUD_BROKER)]

    # --- What can happen -----------------------------------------------------------------------------------------------

    def _kill(self) -> str:
        return self._kill_one(silently=False)

    def _power_cut(self) -> str:
        return self._kill_one(silently=True)

    def _kill_one(self, *, silently: bool) -> str:
        name = self.random.choice(list(self.world.processes))
        self.world.kill(name, silently=silently)
        self._later(self._duration_s(), self.world.start, name)
        return f"kill {name} {silently=}"

    def _cut(self) -> str:
        one, other = self.random.choice(self._links())
        self.world.cut(one, other)
        self._later(self._duration_s(), self.world.mend, one, other)
        return f"cut {one} {other}"

    def _cut_one_way(self) -> str:
        ends = list(self.random.choice(self._links()))
        self.random.shuffle(ends)
        self.world.cut(*ends, one_way=True)
        self._later(self._duration_s(), self.world.mend, *ends)
        return f"cut {ends[0]} -> {ends[1]}"

    def _cut_wan(self) -> str:
        self.world.cut_wan()
        duration_s = self._duration_s()
        for name in self.world.wan_ends():
            self._later(duration_s, self.world.mend, name, CLOUD_BROKER)
        return "cut the wan"

    def _step_clock(self) -> str:
        hub = self.random.choice(list(self.world.hubs.values()))
        step_s = self.random.uniform(-CLOCK_STEP_MAX_S, CLOCK_STEP_MAX_S)
        if hub.up:  # While it is down, the wall clock is all that there is.
            hub.step_clock(step_s)
        return f"step the clock of {hub.name} by {step_s:.0f} s"

    def _fill_hub(self) -> str:
        disk = self.random.choice(list(self.world.hubs.values())).disk
        disk.full = True
        self._later(self._duration_s(), setattr, disk, "full", False)
        return "fill a hub's disk"

    def _fill_cloud(self) -> str:
        disk = self.world.cloud.disk
        disk.full = True
        self._later(self._duration_s(), setattr, disk, "full", False)
        return "fill the cloud's disk"

    def _refuse(self) -> str:
        broker = self.random.choice(list(self.world.brokers.values()))
        self.world.refuse(broker.name)
        self._later(self._duration_s(), self.world.refuse, broker.name, False)
        return f"{broker.name} refuses"

    def _drop_bridge(self) -> str:
        broker = self.random.choice(self._bridging)
        broker.drop_bridge()
        return f"the cloud broker closes the bridge of {broker.name}"

    def _cut_bridge(self) -> str:
        broker = self.random.choice(self._bridging)
        self.world.cut(broker.name, CLOUD_BROKER)
        self._later(self._duration_s(), self.world.mend, broker.name, CLOUD_BROKER)
        return f"cut the bridge of {broker.name}"

    def _mute_bridge(self) -> str:
        broker, way = self.random.choice(self._bridging), self.random.choice(["mute_up", "mute_down"])
        setattr(broker, way, True)
        self._later(self._duration_s(), setattr, broker, way, False)
        return f"{way} the bridge of {broker.name}"

    def _flap(self) -> str:
        name = self.random.choice(list(self.world.connectors))
        for turn in range(FLAPS):
            self._later(2 * turn * FLAP_S, self.world.kill, name)
            self._later((2 * turn + 1) * FLAP_S, self.world.start, name)
        return f"flap {name}"

    def _swizzle(self) -> str:
        links = self._links()
        self.random.shuffle(links)
        for turn, (one, other) in enumerate(links):
            self._later(turn * 5.0, self.world.cut, one, other)
        self.random.shuffle(links)
        begin_s = len(links) * 5.0 + self._duration_s()
        for turn, (one, other) in enumerate(links):
            self._later(begin_s + turn * 10.0, self.world.mend, one, other)
        return "swizzle"

    def _restart_hub_in_outage(self) -> str:
        name = self.random.choice(list(self.world.hubs))
        connector = self.random.choice(list(self.world.connectors))
        self.world.kill(connector)
        self._later(self._duration_s(), self.world.start, connector)
        self._later(self.random.uniform(0, 300), self.world.restart, name)
        return f"kill {connector}, restart {name} in the outage"
