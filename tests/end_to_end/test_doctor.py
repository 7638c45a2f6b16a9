"""`hubline doctor` on a real machine with real faults: the verdict is right, the fault is named, the exit status follows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from broker.client import Opened
from broker.tls import client_context
from config import pki, provision
from config.ports import free_ports
from config.principal import Principal, server_name
from tests.end_to_end.test_discovery import false_connector
from tests.fleet import Fleet, running_fleet, until
from tests.sessions import identity_of, is_a, opened

Report = dict[str, Any]
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for all of them, with a hub that runs and a bundle of another that doesn't."""
    directory = tmp_path_factory.mktemp("doctor")
    this = Fleet(directory, f"d{os.getpid():x}", hubs=1)
    provision.hub(this.directory, "pc-9", "berlin")
    try:
        this.start()
        this.wait_until_flowing()
        yield this
    finally:
        this.close()


def examined(fleet: Fleet, file: Path, status: int, environ: Mapping[str, str] | None = None) -> Report:
    """Run the doctor, assert its exit status, and return its report."""
    fleet.environ |= environ or {}
    done = fleet.hubline("doctor", "-c", str(file), "--json", check=False)
    for name in environ or {}:
        del fleet.environ[name]
    assert done.stderr == ""
    assert done.returncode == status, done.stdout
    report: Report = orjson.loads(done.stdout)
    assert set(report) == {"checks", "verdict", "path"}
    return report


def running(fleet: Fleet, status: int = 0) -> Report:
    return examined(fleet, fleet.settings("pc-1"), status)


def spare(fleet: Fleet, folder: Path, prepare: Callable[[Path], None] = lambda bundle: None) -> Path:
    """Return hub.toml in a copy of the bundle whose hub does not run, as `prepare` has spoilt it."""
    bundle = folder / "pc-9"
    shutil.copytree(fleet.bundle("hub", "pc-9"), bundle)
    prepare(bundle)
    return bundle / "hub.toml"


def checks(report: Report, name: str, state: str = "") -> list[Report]:
    return [check for check in report["checks"] if check["name"] == name and state in ("", check["state"])]


def the(report: Report, name: str, state: str = "") -> Report:
    (check,) = checks(report, name, state)
    return check


# --- All well ------------------------------------------------------------------------------------------------------------


def test_a_healthy_hub_gets_no_complaint(fleet: Fleet) -> None:
    report = running(fleet)
    assert [check for check in report["checks"] if check["state"] != "ok"] == []
    names = list(dict.fromkeys(check["name"] for check in report["checks"]))
    local = ["clock", "settings", "certificate", "outbox", "search", "cache", "dns", "proxy"]
    assert names == [*local, "tcp", "tls", "mqtt", "connector"]
    assert report["path"] == "connector"
    assert report["verdict"].startswith(
        f"through connector berlin-1 at 127.0.0.1:{fleet.site_port}: in use by the running"
    )
    assert "its cloud side is up since" in report["verdict"]
    assert the(report, "outbox")["details"]["running_pid"] == fleet.running["pc-1"].pid


def test_it_disturbs_neither_the_hub_nor_anybody_at_the_broker(fleet: Fleet) -> None:
    """Its session has a name of its own: the running hub keeps its own, and its data flows on."""
    before = fleet.status("pc-1")["session"]
    running(fleet)
    fleet.wait_until_flowing()
    assert fleet.status("pc-1")["session"] == before


def test_a_hub_that_does_not_run_is_examined_all_the_same(fleet: Fleet, tmp_path: Path) -> None:
    file = spare(fleet, tmp_path)
    report = examined(fleet, file, 0)
    assert report["path"] == "connector"
    assert "found by SSDP" in report["verdict"]
    assert "there is none yet" in the(report, "outbox")["text"]
    assert not (file.parent / "data").exists()


def test_a_person_gets_lines_without_colours_in_a_file(fleet: Fleet) -> None:
    done = fleet.hubline("doctor", "-c", str(fleet.settings("pc-1")))
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["ok", "clock"]
    assert lines[-1].startswith("Path now: through connector berlin-1 at ")


# --- Processes die -------------------------------------------------------------------------------------------------------


def test_whatever_dies_is_named_and_the_verdict_follows(tmp_path: Path, unique_name: str) -> None:
    """One after the other, each mended before the next: the connector stops, is killed; the site broker; the cloud broker."""
    with running_fleet(tmp_path, unique_name, hubs=1) as fleet:
        fleet.stop("connector")
        until("the hub has noticed", lambda: fleet.path("pc-1") == "none")
        report = running(fleet)
        assert report["path"] == "direct"
        assert "connector berlin-1 was stopped" in report["verdict"]
        _mend(fleet, "connector")

        fleet.kill("connector")
        until("the hub has noticed", lambda: fleet.path("pc-1") == "none")
        report = running(fleet)
        assert report["path"] == "direct"
        # With up to 4 s of jitter.
        said = rf"directly to the cloud at 127\.0\.0\.1:{fleet.cloud_port} in [45] min( \d+ s)?"
        assert re.search(said, str(report["verdict"]))
        assert "connector berlin-1 is gone, without a goodbye" in report["verdict"]
        assert "start the connector" in the(report, "connector", "problem")["todo"]
        assert "no connector of site berlin has answered" in the(report, "search", "warning")["text"]
        _mend(fleet, "connector")

        fleet.kill("site-broker")
        until("the hub has noticed", lambda: fleet.path("pc-1") == "none")
        report = running(fleet)
        assert report["path"] == "direct"
        texts = [check["text"] for check in checks(report, "tcp", "problem")]
        assert f"site broker 127.0.0.1:{fleet.site_port}: nothing listens there (connection refused)" in texts
        _mend(fleet, "site-broker")

        fleet.kill("cloud-broker")
        until("the hub has noticed", lambda: fleet.path("pc-1") == "none")
        report = running(fleet, status=1)
        assert report["path"] == "none"
        assert "connector berlin-1 is there, its cloud side is down since" in report["verdict"]
        assert f"cloud broker 127.0.0.1:{fleet.cloud_port}: nothing listens there" in report["verdict"]
        assert "keeps everything" in report["verdict"]


def _mend(fleet: Fleet, name: str) -> None:
    fleet.start(name)
    until("the connector's path is back", lambda: fleet.path("pc-1") == "connector")


def test_a_hub_that_is_direct_stays_so_in_the_verdict(tmp_path: Path, unique_name: str) -> None:
    """And the way back is told, with its time."""
    quick = {
        "HUBLINE_FAILOVER__OUTAGE_S": "1",
        "HUBLINE_FAILOVER__START_GRACE_S": "1",
        "HUBLINE_FAILBACK__PROBE_S": "1",
    }
    with running_fleet(tmp_path, unique_name, hubs=1, environ=quick) as fleet:
        fleet.kill("connector")
        until("the hub is direct", lambda: fleet.path("pc-1") == "direct")
        report = running(fleet)
        assert report["path"] == "direct"
        assert f"directly to the cloud at 127.0.0.1:{fleet.cloud_port}, as since" in report["verdict"]
        fleet.start("connector")
        until("it sees the way back", lambda: fleet.status("pc-1")["path"]["return_at"] is not None)  # type: ignore[index]
        report = running(fleet)
        assert report["path"] == "direct"
        assert "connector berlin-1 is good again, and the hub goes back to it in" in report["verdict"]


# --- Certificates and clocks ---------------------------------------------------------------------------------------------


def reissued(fleet: Fleet, bundle: Path, begins: timedelta) -> None:
    """Give a bundle a certificate of the same authority that was issued `begins` from now."""
    folder = fleet.directory / "authority" / "1"
    (certificate,) = pki.load_certificates((folder / "cert.pem").read_bytes())
    authority = pki.Authority(certificate, pki.load_key((folder / "key.pem").read_bytes()))
    principal = Principal(fleet.fleet, "berlin", "hub", "pc-9")
    leaf = pki.issue(authority, principal, (), "ec-p256", pki.utc_now() + begins)
    (bundle / "cert.pem").write_bytes(pki.certificate_pem(leaf.certificate))
    (bundle / "key.pem").write_bytes(pki.key_pem(leaf.key))


def test_an_expired_certificate_is_found_on_both_sides(fleet: Fleet, tmp_path: Path) -> None:
    report = examined(fleet, spare(fleet, tmp_path, lambda bundle: reissued(fleet, bundle, -6 * 366 * DAY)), 1)
    assert "has expired on" in the(report, "certificate", "problem")["text"]
    refusals = checks(report, "mqtt", "problem")
    assert len(refusals) >= 2  # Site and cloud.
    assert all("it refuses this hub's certificate: it or the CRL has expired" in each["text"] for each in refusals)
    assert "refuses this hub's certificate" in report["verdict"]


def test_a_certificate_of_tomorrow_is_a_matter_of_the_clock(fleet: Fleet, tmp_path: Path) -> None:
    report = examined(fleet, spare(fleet, tmp_path, lambda bundle: reissued(fleet, bundle, 3 * DAY)), 1)
    assert "the clock seems to be wrong" in the(report, "clock", "problem")["text"]
    assert "NTP" in the(report, "clock")["todo"]
    assert "clock" in the(report, "certificate", "problem")["text"]
    assert all("not yet valid" in each["text"] for each in checks(report, "mqtt", "problem"))


def test_a_clock_that_is_behind_is_known_by_the_files(fleet: Fleet, tmp_path: Path) -> None:
    """As after a start with an empty battery: the files of the last run are from the future."""

    def later(bundle: Path) -> None:
        reissued(fleet, bundle, 3 * DAY)
        tomorrow = (pki.utc_now() + 4 * DAY).timestamp()
        os.utime(bundle / "cert.pem", (tomorrow, tomorrow))

    report = examined(fleet, spare(fleet, tmp_path, later), 1)
    assert "the clock is wrong, it is behind" in the(report, "clock", "problem")["text"]


def test_a_bundle_of_another_fleet_is_refused_and_refuses(fleet: Fleet, tmp_path: Path) -> None:
    """The whole bundle, with its own authority: then this hub trusts the brokers as little as they trust it."""
    provision.init(tmp_path / "other", fleet.fleet)
    provision.hub(tmp_path / "other", "pc-9", "berlin")
    theirs = tmp_path / "other" / "bundles" / "hub" / "pc-9"

    def foreign(bundle: Path, *names: str) -> None:
        for name in names:
            shutil.copy(theirs / name, bundle / name)

    whole = spare(fleet, tmp_path / "a", lambda bundle: foreign(bundle, "ca.pem", "cert.pem", "key.pem"))
    report = examined(fleet, whole, 1)
    assert the(report, "certificate")["state"] == "ok"
    broken = checks(report, "tls", "problem")
    assert {check["details"]["kind"] for check in broken} == {"connector", "direct"}
    assert all("foreign certificate authority" in check["text"] for check in broken)
    assert any(f"berlin.{fleet.fleet}.hubline.internal" in check["details"]["names"] for check in broken)

    half = spare(fleet, tmp_path / "b", lambda bundle: foreign(bundle, "cert.pem", "key.pem"))
    report = examined(fleet, half, 1)
    assert "was issued by none of the authorities" in the(report, "certificate", "problem")["text"]
    assert all("it refuses this hub's certificate" in check["text"] for check in checks(report, "mqtt", "problem"))


# --- Strangers and dead ends ---------------------------------------------------------------------------------------------


def test_an_answer_for_another_site_is_shown_and_not_taken(fleet: Fleet, tmp_path: Path) -> None:
    with false_connector(tmp_path, fleet.fleet, "hamburg"):
        search = the(running(fleet), "search", "ok")
    answers = [answer for interface in search["details"]["interfaces"] for answer in interface["answers"]]
    assert "a connector of another site" in {answer["why_not"] for answer in answers}
    assert None in {answer["why_not"] for answer in answers}


def test_a_false_connector_is_described(fleet: Fleet, tmp_path: Path) -> None:
    """It answers for our site and has a certificate of another authority; the true one is used."""
    with false_connector(tmp_path, fleet.fleet, "berlin"):
        report = running(fleet)
    assert report["path"] == "connector"
    (evil, *_) = checks(report, "tls", "warning")
    assert "foreign certificate authority" in evil["text"]
    assert "CN=evil-1" in evil["details"]["subject"]


def appended(bundle: Path, old: str, new: str) -> None:
    file = bundle / "hub.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_endpoints_that_lead_nowhere_are_told_apart(fleet: Fleet, tmp_path: Path) -> None:
    """A name that does not exist, a closed port and a silent one, all named in the settings; and discovery is off."""
    (closed,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = {"silent": silent.getsockname()[1], "closed": closed}

        def dead_ends(bundle: Path) -> None:
            cloud = f'"cloud.invalid:8883", "127.0.0.1:{ports["closed"]}", "127.0.0.1:{ports["silent"]}"'
            appended(bundle, f'endpoints = ["127.0.0.1:{fleet.cloud_port}"]', f"endpoints = [{cloud}]")
            appended(bundle, "discovery = true", "discovery = false")

        report = examined(fleet, spare(fleet, tmp_path, dead_ends), 1)
    assert "cloud.invalid can't be resolved" in the(report, "dns", "problem")["text"]
    unknown, shut = (check["text"] for check in checks(report, "tcp", "problem"))
    assert "its name can't be resolved" in unknown
    assert f"127.0.0.1:{closed}: nothing listens there" in shut
    assert "says nothing for" in the(report, "tls", "problem")["text"]
    assert report["path"] == "none"


def test_what_is_wrong_beside_a_good_path_is_a_warning(fleet: Fleet, tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    file = spare(fleet, tmp_path, lambda bundle: appended(bundle, f":{fleet.cloud_port}", f":{closed}"))
    report = examined(fleet, file, 0)
    assert report["path"] == "connector"
    assert [check["details"]["kind"] for check in checks(report, "tcp", "warning")] == ["direct"]
    assert [check for check in report["checks"] if check["state"] == "problem"] == []


def test_a_proxy_of_the_environment_that_is_not_there_is_named(fleet: Fleet, tmp_path: Path) -> None:
    (closed,) = free_ports(1)

    def elsewhere(bundle: Path) -> None:
        appended(bundle, "127.0.0.1:", "cloud.invalid:")

    report = examined(fleet, spare(fleet, tmp_path, elsewhere), 0, {"HTTPS_PROXY": f"http://me:pw@127.0.0.1:{closed}"})
    assert f"through 127.0.0.1:{closed} (from HTTPS_PROXY)" in the(report, "proxy", "ok")["text"]
    assert the(report, "dns", "ok")["text"] == "cloud.invalid: left to the proxy"
    assert f"proxy 127.0.0.1:{closed}: nothing listens there" in the(report, "tcp", "warning")["text"]
    assert "pw" not in orjson.dumps(report).decode().replace("pw-", "")


# --- Wrong usage ---------------------------------------------------------------------------------------------------------


def test_settings_that_can_not_be_read_are_the_verdict(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("[identity]\nfleet = 1\n")
    report = examined(fleet, tmp_path / "hub.toml", 1)
    assert "identity.fleet" in the(report, "settings", "problem")["text"]
    assert report["path"] == "none"


def test_wrong_usage_has_its_own_status(fleet: Fleet) -> None:
    done = fleet.hubline("doctor", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--config" in done.stderr


def test_a_session_of_that_name_is_allowed_by_the_broker(fleet: Fleet) -> None:
    """The doctor's name is the hub's with a suffix: whoever forbids that at an engine forbids the doctor."""

    async def story() -> None:
        identity = identity_of(fleet.bundle("hub", "pc-9"), fleet.fleet, "berlin")
        tls = client_context(identity, server_name(fleet.fleet, "berlin"))
        session, ears = opened(f"127.0.0.1:{fleet.site_port}", tls, client_id="pc-9.doctor")
        await ears.hear(is_a(Opened))
        await session.close()

    asyncio.run(story())
