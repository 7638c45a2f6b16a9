"""Hosts and LANs of a test, as network namespaces of Linux: real interfaces, real processes, apart from this machine's network.

    with Network(unique_name) as network:      # the fixture of conftest.py, which looks that nothing is left
        lan = network.lan("site", "10.77.1.0/24")
        hub, connector = network.host("hub"), network.host("connector")
        hub.join(lan, "10.77.1.2")
        connector.join(lan, "10.77.1.1")
        program = connector.start([sys.executable, "-m", "…"])
        program.line("ready")
        connector.cut(lan)            # the cable is pulled: the host sees that its carrier is gone
        connector.mend(lan)
        connector.drop("10.77.1.2")   # packets vanish, and nobody is told
        connector.drop_nothing()

Everything is gone after the block: the processes that were started in it, and the namespaces.
"""

from __future__ import annotations

import functools
import itertools
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, ip_interface
from pathlib import Path
from typing import Final, Literal

import pytest

ROOT: Final = Path(__file__).parent.parent
PATIENCE_S: Final = 30.0
"""For what must happen soon, on a machine that may be busy."""

_numbers = itertools.count()


@functools.cache
def why_no_namespaces() -> str:
    """Return why network namespaces cannot be made here, or "" if they can: found out by making one."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "nft", "sysctl") if shutil.which(program) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)} (packages iproute2, nftables, procps)"
    name = f"hlprobe{os.getpid():x}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return ""


requires_root = pytest.mark.skipif(
    bool(why_no_namespaces()), reason=why_no_namespaces() or "network namespaces can be made"
)


def wait_until(condition: object, what: str, within_s: float = PATIENCE_S) -> None:
    """Wait for a condition (a callable) to hold; fail, saying what was waited for, if it does not in time."""
    assert callable(condition)
    ends_at = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > ends_at:
            pytest.fail(f"{what}: not within {within_s:.0f} s")
        time.sleep(0.02)


class Program:
    """A process that a test started; its output, both streams, is read line by line."""

    def __init__(self, process: subprocess.Popen[str], name: str):
        self.process = process
        self.name = name
        self.lines: list[str] = []
        self._unread: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, containing: str, within_s: float = PATIENCE_S) -> str:
        """Wait for the next line that holds the text, and return it."""
        ends_at = time.monotonic() + within_s
        while True:
            try:
                line = self._unread.get(timeout=max(0.0, ends_at - time.monotonic()))
            except queue.Empty:
                line = None
                if self.process.poll() is None and time.monotonic() < ends_at:
                    continue
            if line is None:
                pytest.fail(f"{self.name} did not print {containing!r}; it printed\n" + "\n".join(self.lines[-50:]))
            if containing in line:
                return line

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, within_s: float = PATIENCE_S) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        return self.wait(within_s)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Wait for the end and for the last line, and return the exit status."""
        try:
            status = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end; it printed\n" + "\n".join(self.lines[-50:]))
        self._reader.join(within_s)
        return status

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            self._unread.put(self.lines[-1])
        self._unread.put(None)


class Network:
    """The hosts and LANs of one test, a context manager. The name, that of no other, begins the names of its namespaces."""

    def __init__(self, name: str) -> None:
        self._prefix = name
        self._namespaces: list[str] = []
        self._programs: list[Program] = []
        self.switch = ""

    def __enter__(self) -> Network:
        try:
            self.switch = self.namespace("switch")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process that was started in this network, then remove it."""
        for program in self._programs:
            program.end()
        self._programs.clear()
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        self._namespaces.clear()

    def lan(self, name: str, subnet: str) -> Lan:
        """Return a new LAN: a bridge that floods multicast, with nothing on it yet."""
        bridge = f"br-{name}"
        ip("-n", self.switch, "link", "add", bridge, "type", "bridge", "mcast_snooping", "0", "forward_delay", "0")
        ip("-n", self.switch, "link", "set", bridge, "up")
        return Lan(bridge, IPv4Network(subnet))

    def host(self, name: str, *, ipv6: bool = True) -> Host:
        """Return a new host that has loopback only; `ipv6` False switches IPv6 off in it."""
        return Host(self, name, self.namespace(name, ipv6=ipv6))

    def namespace(self, name: str, *, ipv6: bool = True) -> str:
        """Return a new namespace, loopback up, IPv6 addresses usable at once."""
        namespace = f"{self._prefix}-{name}"
        ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        six = "net.ipv6.conf"
        settings = [f"{six}.all.accept_dad=0", f"{six}.default.accept_dad=0", f"{six}.default.router_solicitations=0"]
        if not ipv6:
            settings += [f"{six}.all.disable_ipv6=1", f"{six}.default.disable_ipv6=1"]
        _run(["ip", "netns", "exec", namespace, "sysctl", "-qw", *settings])
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def keep(self, program: Program) -> Program:
        """Take care that a process ends with the network."""
        self._programs.append(program)
        return program


class Lan:
    """A bridge and its IPv4 subnet."""

    def __init__(self, bridge: str, subnet: IPv4Network):
        self.bridge = bridge
        self.subnet = subnet


class Host:
    """A namespace that plays a machine."""

    def __init__(self, network: Network, name: str, namespace: str):
        self.name = name
        self.namespace = namespace
        self._network = network
        self._ports: dict[str, tuple[str, str]] = {}

    def join(self, lan: Lan, address: str, interface: str | None = None) -> str:
        """Plug the host into a LAN, with this IPv4 address and a link-local IPv6 one; return the interface's name."""
        interface = interface or f"eth{len(self._ports)}"
        port = f"p{next(_numbers)}"
        end = ("peer", "name", port, "netns", self._network.switch)
        ip("link", "add", interface, "netns", self.namespace, "type", "veth", *end)
        ip("-n", self._network.switch, "link", "set", port, "master", lan.bridge, "up")
        prefix = ip_interface(f"{address}/{lan.subnet.prefixlen}").with_prefixlen
        ip("-n", self.namespace, "address", "add", prefix, "dev", interface)
        ip("-n", self.namespace, "link", "set", interface, "up")
        self._ports[lan.bridge] = (interface, port)
        return interface

    def leave(self, lan: Lan) -> None:
        """Remove the interface, as when an adapter is taken out."""
        interface, _ = self._ports.pop(lan.bridge)
        ip("-n", self.namespace, "link", "delete", interface)

    def cut(self, lan: Lan) -> None:
        """Pull the cable: the carrier is lost."""
        ip("-n", self._network.switch, "link", "set", self._ports[lan.bridge][1], "down")

    def mend(self, lan: Lan) -> None:
        """Plug the cable in again."""
        ip("-n", self._network.switch, "link", "set", self._ports[lan.bridge][1], "up")

    def drop(self, peer: str | None = None, direction: Literal["in", "out", "both"] = "both") -> None:
        """Lose packets from or to the peer (an address or a subnet; None: all but loopback), silently, from now on."""
        family = "" if peer is None else "ip6" if ":" in peer else "ip"
        lost_in = 'iifname != "lo" drop' if peer is None else f"{family} saddr {peer} drop"
        lost_out = 'oifname != "lo" drop' if peer is None else f"{family} daddr {peer} drop"
        rules = ["table inet cut {"]
        if direction in ("in", "both"):
            rules.append(f"chain arriving {{ type filter hook input priority 0; {lost_in}; }}")
            rules.append(f"chain passing {{ type filter hook forward priority 0; {lost_in}; }}")
        if direction in ("out", "both"):
            rules.append(f"chain leaving {{ type filter hook output priority 0; {lost_out}; }}")
        self.run(["nft", "-f", "-"], stdin="\n".join([*rules, "}", ""]))

    def drop_nothing(self) -> None:
        """Take back every `drop`."""
        self.run(["nft", "flush", "ruleset"])

    def route(self, destination: str, via: str) -> None:
        """Add a route, "default" or a subnet, through a neighbour."""
        ip("-n", self.namespace, "route", "add", destination, "via", via)

    def forward(self) -> None:
        """Make the host a router between its LANs."""
        self.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])

    def addresses(self) -> str:
        """Return what `ip address` shows here."""
        return self.run(["ip", "-br", "address"])

    def link_local(self, interface: str) -> str:
        """Return the IPv6 link-local address of an interface."""
        for line in self.addresses().splitlines():
            name, _, *found = line.split()
            if name.partition("@")[0] == interface:
                return next(address.partition("/")[0] for address in found if address.startswith("fe80:"))
        raise AssertionError(f"{self.name} has no {interface}")

    def run(self, command: Sequence[str], *, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a command here to its end and return what it wrote; a status other than 0 fails the test."""
        return _run(self._inside(command), stdin=stdin, env=env)

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | str = ROOT) -> Program:
        """Start a process here; its pid is the program's own, so that a signal reaches it."""
        process = subprocess.Popen(
            self._inside(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        return self._network.keep(Program(process, f"{self.name}: {' '.join(command[:6])}"))

    def python(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Program:
        """Start a Python module of the project here."""
        return self.start([sys.executable, "-m", module, *arguments], env=env)

    def _inside(self, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]


def ip(*arguments: str) -> str:
    """Run `ip` with these arguments; it must succeed."""
    return _run(["ip", *arguments])


def _run(command: Sequence[str], *, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout
