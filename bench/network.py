"""Where the two sides run: on loopback, or at a site and in a cloud that a bad WAN joins, as network namespaces of Linux.

    home ─── site ══ wan.c: 25 ms each way, 1 % loss ══ cloud ─── home

The load is at home, a LAN away from both ends, so that nothing but what crosses between site and cloud takes the WAN.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config.errors import HublineError, SettingsError

DELAY_MS: Final = 25.0
"""One way."""
LOSS_PERCENT: Final = 1.0
PATIENCE_S: Final = 20.0
_PROGRAMS: Final = {"ip": "iproute2", "ss": "iproute2", "sysctl": "procps", "ethtool": "ethtool", "cc": "gcc"}
_OFFLOADS: Final = ("tx", "rx", "tso", "gso", "gro")


@dataclass(frozen=True, slots=True)
class Place:
    """Two ends. `site` and `cloud` are the addresses for the load, `cloud_from_site` is the one across the WAN.

    The namespaces are empty on loopback; `wan` is the process between the ends, if there is one.
    """

    site: str = "127.0.0.1"
    cloud: str = "127.0.0.1"
    cloud_from_site: str = "127.0.0.1"
    site_namespace: str = ""
    cloud_namespace: str = ""
    wan: subprocess.Popen[bytes] | None = None

    @property
    def listen(self) -> str:
        """Return where servers listen."""
        return "0.0.0.0" if self.site_namespace else "127.0.0.1"

    def at_site(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another at the site."""
        return _inside(self.site_namespace, command)

    def in_cloud(self, command: Sequence[str]) -> list[str]:
        """Return a command that runs another in the cloud."""
        return _inside(self.cloud_namespace, command)

    def cut(self) -> None:
        """Let the WAN lose everything from now on, silently."""
        assert self.wan is not None
        self.wan.send_signal(signal.SIGUSR1)

    def mend(self) -> None:
        """End the outage."""
        assert self.wan is not None
        self.wan.send_signal(signal.SIGUSR2)


LOOPBACK: Final = Place()


def why_not() -> str:
    """Return why there can be no namespaces and no WAN here, or "" if there can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root: run it as root, or only the sections on loopback"
    missing = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    return f"the WAN between namespaces needs more programs: apt-get install {' '.join(missing)}" if missing else ""


@contextmanager
def wans(count: int = 1, loss_percent: float = LOSS_PERCENT) -> Iterator[list[Place]]:
    """Make sites and clouds, each pair with its own WAN, and be at home meanwhile. Raises SettingsError if it can't be done."""
    if problem := why_not():
        raise SettingsError(problem)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hubline-wan-")))
        program = _built(folder)
        home = stack.enter_context(namespace("home"))
        places = [stack.enter_context(_wan(program, home, number, loss_percent)) for number in range(count)]
        stack.enter_context(inside(home))
        yield places


@contextmanager
def lan() -> Iterator[Place]:
    """Make a machine with everything else on it, and be on another in the same LAN meanwhile. Raises SettingsError."""
    if problem := why_not():
        raise SettingsError(problem)
    with namespace("home") as home, namespace("site") as site:
        cable(home, "lan", site, "lan")
        for number, where in enumerate((site, home), 1):
            plug(where, "lan", f"10.78.0.{number}/24")
        with inside(home):
            yield Place("10.78.0.1", "10.78.0.1", "127.0.0.1", site, site)


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """Make a namespace with loopback alone, and remove it at the end; yields its full name."""
    full = f"hlb{os.getpid():x}-{name}"
    ip("netns", "add", full)
    try:
        six = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        _run(["ip", "netns", "exec", full, "sysctl", "-qw", *six])
        ip("-n", full, "link", "set", "lo", "up")
        yield full
    finally:
        subprocess.run(["ip", "netns", "delete", full], capture_output=True, check=False)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a namespace: what this thread opens and starts meanwhile is there."""
    libc = ctypes.CDLL(None, use_errno=True)

    def go(descriptor: int) -> None:
        if libc.setns(descriptor, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)

    with Path("/proc/thread-self/ns/net").open("rb") as before, Path("/run/netns", name).open("rb") as there:
        go(there.fileno())
        try:
            yield
        finally:
            go(before.fileno())


def cable(one: str, one_name: str, other: str, other_name: str) -> None:
    """Join two namespaces by a pair of interfaces."""
    ip("link", "add", one_name, "netns", one, "type", "veth", "peer", "name", other_name, "netns", other)


def plug(where: str, interface: str, address: str = "") -> None:
    """Switch an interface on, with an address ("10.0.0.1/24") if it has one."""
    if address:
        ip("-n", where, "address", "add", address, "dev", interface)
    ip("-n", where, "link", "set", interface, "up")


def ip(*arguments: str) -> None:
    """Run `ip`. Raises HublineError if it fails."""
    _run(["ip", *arguments])


@contextmanager
def _wan(program: Path, home: str, number: int, loss_percent: float) -> Iterator[Place]:
    with ExitStack() as stack:
        site, cloud, line = (stack.enter_context(namespace(f"{name}{number}")) for name in ("site", "cloud", "line"))
        net = f"10.78.{10 * number}"
        for position, end in enumerate((site, cloud), 1):
            here, there = f"lan{number}{position}", "home"
            cable(home, here, end, there)
            lan = f"10.78.{10 * number + position}"
            plug(home, here, f"{lan}.2/24")
            plug(end, there, f"{lan}.1/24")
            cable(end, "wan", line, f"end{position}")
            plug(end, "wan", f"{net}.{position}/24")
            plug(line, f"end{position}")
            for where, interface in ((end, "wan"), (line, f"end{position}")):
                offloads = [word for name in _OFFLOADS for word in (name, "off")]
                _run(["ip", "netns", "exec", where, "ethtool", "-K", interface, *offloads])
        command = _inside(line, [str(program), "end1", "end2", f"{DELAY_MS:g}", f"{loss_percent:g}"])
        wan = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        stack.callback(_end, wan)
        assert wan.stderr is not None
        if b"wan up" not in (said := wan.stderr.readline()):
            raise HublineError(f"the WAN emulator did not start: {said.decode(errors='replace').strip()}")
        lans = [f"10.78.{10 * number + position}.1" for position in (1, 2)]
        yield Place(lans[0], lans[1], f"{net}.2", site, cloud, wan)


def _built(folder: Path) -> Path:
    """Compile wan.c."""
    program = folder / "wan"
    _run(["cc", "-O2", "-o", str(program), str(Path(__file__).with_name("wan.c"))])
    return program


def _inside(name: str, command: Sequence[str]) -> list[str]:
    return ["ip", "netns", "exec", name, *command] if name else list(command)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    if done.returncode:
        raise HublineError(f"{' '.join(command[:6])}: {(done.stderr or done.stdout).strip()}")
