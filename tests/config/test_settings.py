"""Settings: what a person may write, where a value comes from, and what a wrong one is told."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits, settings
from config.bundles import toml_string
from config.errors import SettingsError
from config.settings import BrokerSettings, CloudSettings, ConnectorSettings, HubSettings, ReaderSettings

IDENTITY = """[identity]
fleet = "acme"
site = "berlin"
name = "pc-17"
ca = "ca.pem"
cert = "cert.pem"
key = "/etc/hubline/key.pem"
"""


def written(folder: Path, text: str = "", name: str = "hub.toml", head: str = IDENTITY) -> Path:
    file = folder / name
    file.write_text(head + text, encoding="utf-8")
    return file


def refusal(file: Path, shape: type[settings.Settings] = HubSettings, **environ: str) -> str:
    with pytest.raises(SettingsError) as refused:
        settings.load(file, shape, environ)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_identity_alone_is_enough_for_every_role(tmp_path: Path) -> None:
    """Every other key has a default that works."""
    for role, shape in settings.SHAPES.items():
        loaded = settings.load(written(tmp_path, name=f"{role}.toml"), shape, {})
        assert loaded.identity.name == "pc-17"


def test_relative_paths_start_from_the_files_folder_also_those_that_are_defaults(tmp_path: Path) -> None:
    """A service is started with any working directory, and a bundle is copied anywhere."""
    loaded = settings.load(written(tmp_path), HubSettings, {})
    assert loaded.identity.ca == tmp_path / "ca.pem"
    assert loaded.identity.key == Path("/etc/hubline/key.pem")
    assert loaded.hub.data_dir == tmp_path / "data"


def test_a_relative_file_name_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may change its working directory after reading its settings."""
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert settings.load(Path("hub.toml"), HubSettings, {}).hub.data_dir.is_absolute()


@pytest.mark.parametrize(
    ("url", "effective"),
    [
        ("sqlite:///cloud.db", "sqlite:///{folder}/cloud.db"),
        ("sqlite:///sub/cloud.db?timeout=5", "sqlite:///{folder}/sub/cloud.db?timeout=5"),
        ("sqlite+aiosqlite:///cloud.db", "sqlite+aiosqlite:///{folder}/cloud.db"),
        ("sqlite:////var/lib/cloud.db", "sqlite:////var/lib/cloud.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("sqlite://", "sqlite://"),
        ("postgresql://u:p@db/hubline", "postgresql://u:p@db/hubline"),
    ],
)
def test_only_a_relative_sqlite_database_is_anchored(tmp_path: Path, url: str, effective: str) -> None:
    """Else the database's place would depend on where the service was started."""
    file = written(tmp_path, f"[cloud]\ndatabase = {toml_string(url)}\n", "cloud.toml")
    assert settings.load(file, CloudSettings, {}).cloud.database == effective.format(folder=tmp_path.as_posix())


def test_the_default_database_is_anchored_too(tmp_path: Path) -> None:
    """A default is a relative path like any other."""
    loaded = settings.load(written(tmp_path, name="cloud.toml"), CloudSettings, {})
    assert loaded.cloud.database == f"sqlite:///{tmp_path.as_posix()}/cloud.db"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[connector]\nendpoints = ["gw:1", "x"]\n', "connector.endpoints[1] = 'x': must be text like \"host:8883\""),
        ('[connector]\nendpoints = ["gw:65536"]\n', "connector.endpoints[0] = 'gw:65536': must be text like"),
        ('[connector]\nendpoints = ["gw:0"]\n', "connector.endpoints[0] = 'gw:0': must be text like"),
        (
            '[connector]\nendpoints = "gw:1"\n',
            "connector.endpoints = 'gw:1': must be a list of entries, each text like",
        ),
        (
            '[connector]\nendpoint = ["gw:1"]\n',
            "connector.endpoint = ['gw:1']: is not a key here, did you mean endpoints?",
        ),
        (
            '[connector]\nsite_broker = "gw:1"\n',
            "connector.site_broker = 'gw:1': is not a key here; it belongs in connector.toml",
        ),
        (
            "[conector]\ndiscovery = true\n",
            "conector = {'discovery': True}: is not a key here, did you mean connector?",
        ),
        ("[nonsense]\n", "nonsense = {}: is not a key here; known: identity, hub, connector"),
        ("[connector]\ndiscovery = 1\n", "connector.discovery = 1: must be true or false"),
        ('[failover]\noutage_s = "300"\n', "failover.outage_s = '300': must be a number of at least 0"),
        ("[failover]\noutage_s = -1\n", "failover.outage_s = -1: must be a number of at least 0"),
        ("[failover]\noutage_s = inf\n", "failover.outage_s = inf: must be a finite number"),
        ("[failover]\noutage_s = nan\n", "failover.outage_s = nan: must be a finite number"),
        ("[failback]\nprobe_s = 0\n", "failback.probe_s = 0: must be a number above 0"),
        ('[log]\nlevel = "loud"\n', 'log.level = \'loud\': must be one of "debug", "info", "warning", "error"'),
        ("[hub]\noutbox_max_bytes = 1.5\n", "hub.outbox_max_bytes = 1.5: must be a whole number of at least 1048576"),
        ("[hub]\ndata_dir = 5\n", "hub.data_dir = 5: must be a path, so put it in quotes"),
        ('[hub]\ndata_dir = ""\n', "hub.data_dir = '': must be a path"),
        ("[hub]\ndata_dir = 1979-05-27\n", "must be a path"),
        (
            '[hub]\ndata_dir = "C:\\Users"\n',
            "is not TOML: Invalid hex value (at line 9, column 17); write paths with / or",
        ),
        ("[hub\n", "is not TOML:"),
        ("[hub]\nx", "(at line 9, the end)"),
        ("sensors = 4\n", "identity.sensors = 4: is not a key here"),
    ],
)
def test_a_wrong_value_is_told_with_file_key_value_and_what_would_be_right(
    tmp_path: Path, text: str, said: str
) -> None:
    """One line is all that an operator gets to see in a service's log."""
    file = written(tmp_path, text)
    complaint = refusal(file)
    assert complaint.startswith(f"{file}: ")
    assert said in complaint


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("", "identity: is missing: a section with fleet, site, name, ca, cert, key"),
        ("identity = 5\n", "identity = 5: must be a section with fleet, site"),
        (IDENTITY.replace('fleet = "acme"\n', ""), "identity.fleet: is missing: a name of a-z, 0-9"),
        (IDENTITY.replace('"pc-17"', '"PC 17"'), "identity.name = 'PC 17': must be a name of a-z, 0-9"),
        (
            IDENTITY.replace('"pc-17"', "17"),
            "identity.name = 17: must be a name of a-z, 0-9 and inner hyphens, at most 63 long, so put",
        ),
        (IDENTITY.replace('"pc-17"', f'"{"x" * 64}"'), "must be a name of a-z, 0-9"),
        (IDENTITY.replace('"pc-17"', '"pc-17\\n"'), "must be a name of a-z, 0-9"),
    ],
)
def test_a_wrong_identity_is_told(tmp_path: Path, head: str, said: str) -> None:
    """The identity is what provisioning fills in and people edit by mistake."""
    assert said in refusal(written(tmp_path, head=head))


def test_a_long_wrong_value_is_cut(tmp_path: Path) -> None:
    """A megabyte pasted into a setting must not become a megabyte of log."""
    complaint = refusal(written(tmp_path, f'[log]\nlevel = "{"x" * 10_000}"\n'))
    assert len(complaint) < 1000


def test_a_password_in_a_database_url_is_not_shown(tmp_path: Path) -> None:
    """Errors and `config show` end up in tickets."""
    file = written(tmp_path, '[cloud]\ndatabase = "mysql://u:s3cret@db/x"\n', "cloud.toml")
    assert "s3cret" not in refusal(file, CloudSettings)
    file = written(tmp_path, '[cloud]\ndatabase = "postgresql://u:s3c:r@et@db/x"\n', "cloud.toml")
    shown = {each.key: each.value for each in settings.effective(file, CloudSettings, {})}
    assert shown["cloud.database"] == "postgresql://u:***@db/x"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe[\x00", "is not UTF-8 (at line 1)"),
        (b"a = 1\n# \xe4\n", "is not UTF-8 (at line 2)"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"#" * (limits.SETTINGS_FILE_MAX_BYTES + 1), "this is no settings file"),
    ],
)
def test_a_file_that_is_no_toml_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    """A binary named by mistake must not end in a traceback."""
    file = tmp_path / "hub.toml"
    file.write_bytes(content)
    assert said in refusal(file)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    """Windows' own editors write one."""
    file = tmp_path / "hub.toml"
    file.write_bytes(b"\xef\xbb\xbf" + IDENTITY.encode())
    assert settings.load(file, HubSettings, {}).identity.fleet == "acme"


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    """The commonest mistake of all."""
    assert (
        refusal(tmp_path / "hub.toml")
        == f"{tmp_path / 'hub.toml'}: there is no such file: name the settings file with -c FILE"
    )
    assert "can't be read" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    """A service account often lacks the right to its own settings."""
    file = written(tmp_path)
    file.chmod(0)
    assert "can't be read: Permission denied" in refusal(file)


# --- The environment -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("10", 10.0), ("10.5", 10.5), (" 7 ", 7.0), ("1_000", 1000.0)])
def test_the_environment_overrides_the_file_with_toml_values(tmp_path: Path, text: str, seconds: float) -> None:
    """Containers and tests set one value without a file of their own."""
    file = written(tmp_path, "[failover]\noutage_s = 300\n")
    assert settings.load(file, HubSettings, {"HUBLINE_FAILOVER__OUTAGE_S": text}).failover.outage_s == seconds


def test_lists_booleans_and_plain_text_come_from_the_environment(tmp_path: Path) -> None:
    """Text needs no quotes: shells have enough of their own."""
    environ = {
        "HUBLINE_CONNECTOR__ENDPOINTS": '["[::1]:18883", "gw:8883"]',
        "HUBLINE_CONNECTOR__DISCOVERY": "false",
        "HUBLINE_HUB__DATA_DIR": "state",
        "HUBLINE_LOG__LEVEL": '"debug"',
    }
    loaded = settings.load(written(tmp_path), HubSettings, environ)
    assert loaded.connector.endpoints == ["[::1]:18883", "gw:8883"]
    assert loaded.connector.discovery is False
    assert loaded.hub.data_dir == tmp_path / "state"
    assert loaded.log.level == "debug"


def test_the_environment_of_the_process_counts_when_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how every role calls it."""
    monkeypatch.setenv("HUBLINE_FAILOVER__OUTAGE_S", "11")
    assert settings.load(written(tmp_path), HubSettings).failover.outage_s == 11


def test_one_environment_serves_all_roles_of_a_machine(tmp_path: Path) -> None:
    """A variable for the connector must not stop the hub beside it; shared ones count for both."""
    environ = {
        "HUBLINE_BROKER__LISTEN": '["127.0.0.1:0"]',
        "HUBLINE_CONNECTOR__SITE_BROKER": "127.0.0.1:18883",
        "HUBLINE_CONNECTOR__DISCOVERY": "false",
        "HUBLINE_RETENTION__READINGS_DAYS": "7",
        "HUBLINE_LOG__LEVEL": "error",
        "HUBLINE_PASSPHRASE": "no setting",
    }
    shapes: list[type[settings.Settings]] = [
        HubSettings,
        BrokerSettings,
        ConnectorSettings,
        CloudSettings,
        ReaderSettings,
    ]
    loaded = [settings.load(written(tmp_path), shape, environ) for shape in shapes]
    assert all(each.log.level == "error" for each in loaded)
    hub, broker, connector, cloud, _ = loaded
    assert isinstance(hub, HubSettings)
    assert hub.connector.discovery is False
    assert isinstance(broker, BrokerSettings)
    assert broker.broker.listen == ["127.0.0.1:0"]
    assert isinstance(connector, ConnectorSettings)
    assert connector.connector.site_broker == "127.0.0.1:18883"
    assert isinstance(cloud, CloudSettings)
    assert cloud.retention.readings_days == 7


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "HUBLINE_FAILOVER__OUTAGES",
            "1",
            "HUBLINE_FAILOVER__OUTAGES: names no setting, did you mean HUBLINE_FAILOVER__OUTAGE_S?",
        ),
        (
            "HUBLINE_FAILOVER__OUTAGE_S",
            "soon",
            "HUBLINE_FAILOVER__OUTAGE_S: failover.outage_s = 'soon': must be a number",
        ),
        ("HUBLINE_IDENTITY__NAME", "17", "HUBLINE_IDENTITY__NAME: identity.name = 17: must be a name of a-z"),
        (
            "HUBLINE_CONNECTOR__ENDPOINTS",
            '["x"]',
            "HUBLINE_CONNECTOR__ENDPOINTS: connector.endpoints[0] = 'x': must be text",
        ),
        ("HUBLINE_SENSORS__CPU", "1", "HUBLINE_SENSORS__CPU: names no setting"),
        ("HUBLINE___X", "1", "HUBLINE___X: names no setting"),
    ],
)
def test_a_wrong_variable_is_named_instead_of_the_file(tmp_path: Path, variable: str, value: str, said: str) -> None:
    """Nobody finds a mistake in a file that is right."""
    assert refusal(written(tmp_path), **{variable: value}).startswith(said)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40))
def test_any_text_in_the_environment_gives_a_setting_or_one_clear_line(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The environment is written by shells, units and orchestrators, each with its own quoting."""
    file = tmp_path_factory.getbasetemp() / "hub.toml"
    file.write_text(IDENTITY)
    try:
        loaded = settings.load(file, HubSettings, {"HUBLINE_HUB__DATA_DIR": text})
    except SettingsError as exc:
        complaint = str(exc)
    else:
        complaint = ""
        assert loaded.hub.data_dir.is_absolute()
        assert loaded.hub.outbox_max_bytes == limits.OUTBOX_MAX_BYTES
    assert not complaint or complaint.startswith("HUBLINE_HUB__DATA_DIR: ")
    assert len(complaint.splitlines()) <= 1


def test_a_line_break_cannot_smuggle_a_second_key(tmp_path: Path) -> None:
    """A value is one value, whatever is in it."""
    loaded = settings.load(written(tmp_path), HubSettings, {"HUBLINE_HUB__DATA_DIR": '"a"\nb = 1'})
    assert str(loaded.hub.data_dir).endswith('"a"\nb = 1')


# --- Sensors -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("thermometer")
def test_a_plug_in_sensors_section_is_checked_by_its_own_settings(tmp_path: Path) -> None:
    """Third parties add sensors; their typing errors deserve the same answer as ours."""
    good = written(tmp_path, '[sensors.thermometer]\nbus = "i2c"\n')
    loaded = settings.load(good, HubSettings, {"HUBLINE_SENSORS__THERMOMETER__INTERVAL_S": "5"})
    assert loaded.sensors == {"thermometer": {"bus": "i2c", "interval_s": 5}}
    bad = written(tmp_path, "[sensors.thermometer]\nbuss = 3\n")
    assert "sensors.thermometer.buss = 3: is not a key here, did you mean bus?" in refusal(bad)
    bad = written(tmp_path, "[sensors.thermometer]\nenabled = 3\n")
    assert "sensors.thermometer.enabled = 3: must be true or false" in refusal(bad)
    complaint = refusal(written(tmp_path), HUBLINE_SENSORS__THERMOMETER__ENABLED="maybe")
    assert complaint.startswith(
        "HUBLINE_SENSORS__THERMOMETER__ENABLED: sensors.thermometer.enabled = 'maybe': must be true or false"
    )


@pytest.mark.usefixtures("thermometer")
def test_an_unknown_sensor_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    """A sensor that is silently not there is found out after months."""
    complaint = refusal(written(tmp_path, "[sensors.termometer]\nenabled = true\n"))
    assert "sensors.termometer: there is no such sensor, did you mean thermometer? (known: " in complaint
    complaint = refusal(written(tmp_path), HUBLINE_SENSORS__TERMOMETER__ENABLED="true")
    assert complaint.startswith("HUBLINE_SENSORS__TERMOMETER__ENABLED: sensors.termometer: there is no such sensor")


@pytest.mark.usefixtures("thermometer")
def test_a_broken_plug_in_is_told_only_when_it_is_used(tmp_path: Path) -> None:
    """One bad distribution must not stop hubs that don't ask for it."""
    settings.load(written(tmp_path), HubSettings, {})
    assert "this sensor can't be loaded from" in refusal(written(tmp_path, "[sensors.barometer]\nenabled = true\n"))
    assert "has no Settings" in refusal(written(tmp_path, "[sensors.shapeless]\nenabled = true\n"))


# --- Checks --------------------------------------------------------------------------------------------------------


def test_checks_are_shown_one_by_one_with_their_defaults(tmp_path: Path) -> None:
    """What "run-check" may start on this machine is read with the same command as everything else."""
    file = written(
        tmp_path, '[checks.raid]\ncommand = ["check_raid", "-w", "1"]\n[checks.ntp]\ncommand = ["c"]\ntimeout_s = 5\n'
    )
    shown = {each.key: (each.value, each.origin) for each in settings.effective(file, HubSettings, {})}
    assert shown["checks.raid.command"] == (["check_raid", "-w", "1"], str(file))
    assert shown["checks.raid.timeout_s"] == (60.0, "default")
    assert shown["checks.ntp.timeout_s"] == (5.0, str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[checks.raid]\ncommand = []\n",
            "checks.raid.command = []: must be a list of entries, each text with at least one",
        ),
        ("[checks.raid]\ncommand = [5]\n", "checks.raid.command[0] = 5: must be text, so put it in quotes"),
        ("[checks.raid]\ntimeout_s = 5\n", "checks.raid.command: is missing: a list of entries, each text"),
        (
            '[checks.raid]\ncommand = ["c"]\ntimeout_s = 0\n',
            "checks.raid.timeout_s = 0: must be a number above 0 and of at most 3600",
        ),
        (
            '[checks.raid]\ncommand = ["c"]\ntimeout = 9\n',
            "checks.raid.timeout = 9: is not a key here, did you mean timeout_s?",
        ),
        ('[checks."R 1"]\ncommand = ["c"]\n', "checks.R 1 = 'R 1': the name must be a name of a-z, 0-9"),
        ("[checks]\nraid = 5\n", "checks.raid = 5: must be a section with command, timeout_s"),
    ],
)
def test_a_wrong_check_is_told_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    """A machine may have twenty of them."""
    file = written(tmp_path, text)
    assert said in refusal(file)
    assert refusal(file).startswith(f"{file}: ")


def test_checks_that_are_no_section_are_told(tmp_path: Path) -> None:
    """It is the only section of sections besides the sensors."""
    assert "checks = 5: must be sections, each with a name of its own" in refusal(
        written(tmp_path, head="checks = 5\n" + IDENTITY)
    )


# --- Where values come from ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("thermometer")
def test_every_effective_value_says_where_it_is_from(tmp_path: Path) -> None:
    """ "Why does it do that?" is answered by one command."""
    file = written(tmp_path, "[failover]\noutage_s = 300\n[sensors.thermometer]\nbus = 'i2c'\n")
    environ = {"HUBLINE_FAILBACK__PROBE_S": "5", "HUBLINE_SENSORS__THERMOMETER__INTERVAL_S": "5"}
    origins = {each.key: (each.value, each.origin) for each in settings.effective(file, HubSettings, environ)}
    assert origins["failover.outage_s"] == (300.0, str(file))  # Written, though it equals the default.
    assert origins["failover.start_grace_s"] == (60.0, "default")
    assert origins["failback.probe_s"] == (5.0, "HUBLINE_FAILBACK__PROBE_S")
    assert origins["sensors.thermometer.bus"] == ("i2c", str(file))
    assert origins["sensors.thermometer.interval_s"] == (5, "HUBLINE_SENSORS__THERMOMETER__INTERVAL_S")
    assert origins["sensors.thermometer.enabled"] == (True, "default")
    assert "can't be loaded" in origins["sensors.barometer"][1]
    assert len(origins) == len(settings.effective(file, HubSettings, environ))


def test_the_effective_view_leaves_no_key_out(tmp_path: Path) -> None:
    """A key that can't be seen can't be found."""
    for role, shape in settings.SHAPES.items():
        keys = {each.key for each in settings.effective(written(tmp_path, name=f"{role}.toml"), shape, {})}
        for section in msgspec.structs.fields(shape):
            if section.name not in ("sensors", "checks"):
                for key in section.type.__struct_fields__:
                    assert f"{section.name}.{key}" in keys


def test_the_name_of_a_file_says_whose_it_is(tmp_path: Path) -> None:
    """`-c cloud.toml` is enough; a file of another name needs --role."""
    assert settings.role_of(tmp_path / "cloud.toml") == "cloud"
    assert settings.role_of(tmp_path / "mine.toml", "reader") == "reader"
    assert settings.role_of(tmp_path / "cloud.toml", "reader") == "reader"
    with pytest.raises(SettingsError, match="--role"):
        settings.role_of(tmp_path / "mine.toml")


@pytest.mark.parametrize("key", ["heartbeat_min", "poll_min", "offline_after_min"])
def test_minutes_of_the_mode_are_from_1_to_129600(tmp_path: Path, key: str) -> None:
    """A heartbeat every 0 minutes would be a storm, and one every year is a mistake of units."""
    for minutes in (1, 129_600):
        loaded = settings.load(written(tmp_path, f"[mode]\n{key} = {minutes}\n"), HubSettings, {})
        assert getattr(loaded.mode, key) == minutes
    for minutes in (0, 129_601):
        text = refusal(written(tmp_path, f"[mode]\n{key} = {minutes}\n"))
        assert f"mode.{key} = {minutes}: must be a whole number of at least 1 and of at most 129600" in text
