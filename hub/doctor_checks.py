"""What the doctor sees on the machine itself: clock, settings, certificate, outbox and what is remembered of paths."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import psutil
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from config import limits, pki, remote
from config.check import findings
from config.errors import RefusedError
from config.principal import principal_of
from config.settings import Failover, HubSettings
from hub import totals
from hub.diagnosis import Check, State, span
from hub.memory import Remembered, read_memory
from hub.network import is_elsewhere
from hub.outbox_file import APPLICATION_ID, holder_of

_SET_CLOCK = "set this machine's clock, and let it be kept right (NTP)"


def clock(now: datetime, leaves: Sequence[x509.Certificate], written: Mapping[str, datetime]) -> Check:
    """Hold the clock against the dates of certificates, and against when files of ours (by name) were written."""
    shown = f"it is {now:%Y-%m-%d %H:%M:%S} UTC by this machine's clock"
    ahead = {name: time for name, time in written.items() if time > now + timedelta(seconds=limits.CLOCK_SKEW_MAX_S)}
    early = [leaf for leaf in leaves if now < leaf.not_valid_before_utc]
    late = [leaf for leaf in leaves if now > leaf.not_valid_after_utc]
    details: dict[str, object] = {"now": now.isoformat()}
    if ahead:
        name, newest = max(ahead.items(), key=lambda entry: entry[1])
        details["newest_file"] = newest.isoformat()
        text = f"the clock is wrong, it is behind: {shown}, but {name} was written at {newest:%Y-%m-%d %H:%M:%S}"
        return Check("clock", State.PROBLEM if early else State.WARNING, text, _SET_CLOCK, details=details)
    if early:
        begins = max(leaf.not_valid_before_utc for leaf in early)
        text = f"the clock seems to be wrong: {shown}, before the certificate begins at {begins:%Y-%m-%d %H:%M:%S}"
        return Check("clock", State.PROBLEM, text, _SET_CLOCK, details=details)
    if late:
        ended = min(leaf.not_valid_after_utc for leaf in late)
        text = f"{shown}, after the certificate's end on {ended:%Y-%m-%d}: if that is not today, the clock is wrong"
        return Check("clock", State.WARNING, text, _SET_CLOCK, details=details)
    return Check("clock", State.OK, f"{shown}; certificate and files agree with that", details=details)


def file_times(paths: Iterable[Path]) -> dict[str, datetime]:
    """Return when files were written last, by their names; those that are not there are left out."""
    found = {}
    for path in paths:
        try:
            found[path.name] = datetime.fromtimestamp(path.stat().st_mtime, tz=pki.utc_now().tzinfo)
        except (OSError, ValueError, OverflowError):
            continue
    return found


def leaves_in(cert: Path) -> list[x509.Certificate]:
    """Return our own certificate, or nothing if it can't be read: `certificate` says why."""
    try:
        return pki.load_certificates(cert.read_bytes())[:1]
    except (OSError, RefusedError):
        return []


def settings_read(file: Path, settings: HubSettings) -> Check:
    """Say what the settings leave open."""
    identity, connector = settings.identity, settings.connector
    text = f"{file.name} is all right: hub {identity.name} of site {identity.site}, fleet {identity.fleet}"
    details = {"hub": identity.name, "site": identity.site, "fleet": identity.fleet, "file": str(file)}
    if not connector.discovery and not connector.endpoints:
        problem = "discovery is off and no connector is named: only one that is remembered can be found"
        todo = "set connector.discovery = true, or name the site's brokers in connector.endpoints"
        return Check("settings", State.WARNING, problem, todo, details=details)
    if not settings.cloud.endpoints:
        problem = "no cloud broker is named: without a connector there is no way out"
        return Check("settings", State.WARNING, problem, "name it in cloud.endpoints", details=details)
    if doubts := remote.doubts_about(settings.mode):
        return Check("settings", State.WARNING, doubts[0], lines=doubts[1:], details=details)
    return Check("settings", State.OK, text, details=details)


def certificate(settings: HubSettings) -> Check:
    """Say whose certificate it is, and what is wrong with it, its key or its authorities."""
    found = [finding for finding in findings(settings, "hub") if finding.file is not None]
    lines = [str(finding) for finding in found]
    leaves = leaves_in(settings.identity.cert)
    details = {"findings": lines, **(_described(leaves[0]) if leaves else {})}
    if found:
        worst = State.PROBLEM if any(finding.fatal for finding in found) else State.WARNING
        first = min(found, key=lambda finding: not finding.fatal)
        todo = _way_out(leaves, settings) if first.fatal else None  # A lesser one says itself what to do.
        assert first.file is not None
        return Check("certificate", worst, f"{first.file.name} {first.problem}", todo, lines[1:] and lines, details)
    leaf = leaves[0]
    text = (
        f"{principal_of(leaf)}, {_key_of(leaf)}, issued by {issuer_name(leaf)}, "
        f"valid until {leaf.not_valid_after_utc:%Y-%m-%d}"
    )
    return Check("certificate", State.OK, text, details=details)


def _way_out(leaves: Sequence[x509.Certificate], settings: HubSettings) -> str:
    now = pki.utc_now()
    if any(now < leaf.not_valid_before_utc for leaf in leaves):
        return _SET_CLOCK
    if any(now > leaf.not_valid_after_utc for leaf in leaves):
        return f"`hubline provision renew hub/{settings.identity.name}` makes a new bundle: copy it here"
    return "take ca.pem, cert.pem and key.pem from one bundle of this hub"


def _described(leaf: x509.Certificate) -> dict[str, object]:
    try:
        holder = principal_of(leaf).uri
    except RefusedError:
        holder = leaf.subject.rfc4514_string()
    return {
        "holder": holder,
        "issuer": issuer_name(leaf),
        "key": _key_of(leaf),
        "not_before": leaf.not_valid_before_utc.isoformat(),
        "not_after": leaf.not_valid_after_utc.isoformat(),
    }


def issuer_name(leaf: x509.Certificate) -> str:
    """Return who has issued a certificate, as a person calls it."""
    wanted = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    names = [str(part.value) for oid in wanted for part in leaf.issuer.get_attributes_for_oid(oid)]
    return " of ".join(names) or leaf.issuer.rfc4514_string()


def _key_of(leaf: x509.Certificate) -> str:
    key = leaf.public_key()
    match key:
        case ec.EllipticCurvePublicKey():
            return f"ECDSA with {key.key_size} bits"
        case rsa.RSAPublicKey():
            return f"RSA with {key.key_size} bits"
        case _:
            return type(key).__name__


def outbox(settings: HubSettings, running_pid: int | None, now_ms: int) -> Check:
    """Look at the outbox without touching it; `running_pid` is the hub's that shows that it lives."""
    folder = settings.hub.data_dir
    path = folder / "outbox.db"
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    free = psutil.disk_usage(str(nearest)).free
    details: dict[str, object] = {"file": str(path), "free_bytes": free, "running_pid": running_pid}
    if not os.access(nearest, os.W_OK):
        todo = f"give the hub's user the right to write there: {nearest}"
        return Check("outbox", State.PROBLEM, f"{folder} can't be written to", todo, details=details)
    if not path.exists():
        return _on_disk("there is none yet; the hub makes it when it starts", free, details)
    try:
        holds, oldest_ms = _read_outbox(path)
    except (sqlite3.Error, ValueError, TypeError) as exc:
        details["error"] = str(exc)
        todo = "if the hub's own user gets this too: the hub sets a damaged one aside when it starts, and says so"
        return Check("outbox", State.PROBLEM, f"{path.name} can't be read: {exc}", todo, details=details)
    details |= {"pending": holds.messages, "points": holds.points, "bytes": holds.bytes, "epoch": holds.epoch}
    waits = {0: "nothing waits", 1: "1 message waits"}.get(holds.messages, f"{holds.messages:,} messages wait")
    waits += " for the cloud"
    if oldest_ms is not None:
        waits += f", the oldest for {span((now_ms - oldest_ms) / 1000)}"
    holder = holder_of(path)
    if running_pid is None and holder is not None:
        details["holder_pid"] = holder
        text = f"process {holder} holds it, but shows no life: the hub hangs, or another hub uses this data_dir"
        return Check("outbox", State.WARNING, f"{waits}; {text}", f"look at process {holder}", details=details)
    user = "no hub runs" if running_pid is None else f"in use by the running hub, process {running_pid}"
    return _on_disk(f"{waits}; {user}", free, details)


def _on_disk(text: str, free_bytes: int, details: Mapping[str, object]) -> Check:
    shown = f"{text}; {free_bytes / 2**30:,.1f} GiB free on the disk"
    if free_bytes < limits.DOCTOR_DISK_LOW_BYTES:
        return Check("outbox", State.WARNING, shown, "make room: a full disk takes no readings", details=details)
    return Check("outbox", State.OK, shown, details=details)


def _read_outbox(path: Path) -> tuple[totals.Totals, int | None]:
    """Return the sums and the time of the oldest message. Raises sqlite3.Error, ValueError."""
    log = path.with_name(path.name + "-wal")
    # Where no log is, nobody writes; "immutable" then leaves no file of SQLite's own behind.
    quiet = "" if log.exists() and log.stat().st_size else "&immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{quiet}", uri=True, timeout=1.0)
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise ValueError("it is no outbox")
        oldest = connection.execute("SELECT first_ms FROM chunk ORDER BY id LIMIT 1").fetchone()
        return totals.load(connection), None if oldest is None else int(oldest[0])
    finally:
        connection.close()


def remembered(folder: Path) -> tuple[Remembered, str | None]:
    """Return what the hub remembers of its paths, and what is wrong with the file, if anything is."""
    file = folder / "paths.json"
    try:
        return read_memory(file), None
    except FileNotFoundError:
        return Remembered(), None
    except (OSError, msgspec.DecodeError, RecursionError) as exc:
        return Remembered(), f"{file.name} can't be read: {exc}"


def cache(kept: Remembered, problem: str | None, here: str | None, failover: Failover, now_ms: int) -> Check:
    """Tell what is remembered; `here` is the fingerprint of this network."""
    details: dict[str, object] = {
        "endpoints": list(kept.endpoints),
        "network": kept.network,
        "network_here": here,
        "elsewhere": is_elsewhere(kept.network, here),
        "outage_since": kept.outage_ms,
    }
    if problem is not None:
        todo = "nothing is lost: the hub searches when it starts, and writes it anew"
        return Check("cache", State.WARNING, problem, todo, details=details)
    if not kept.endpoints:
        text = "no site broker is remembered yet"
    elif details["elsewhere"]:
        text = (
            f"remembered: {', '.join(kept.endpoints)}, of another network than this one: "
            f"a hub that starts here waits only {span(failover.away_grace_s)} for a connector"
        )
    else:
        known = "this network" if kept.network and here else "a network that can't be told from this one"
        text = f"remembered: {', '.join(kept.endpoints)}, of {known}"
    if kept.outage_ms is not None:
        text += f"; no connector has been good for {span((now_ms - kept.outage_ms) / 1000)}"
    return Check("cache", State.OK, text, details=details)
