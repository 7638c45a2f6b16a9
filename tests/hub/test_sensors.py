"""The built-in sensors on the machine that runs the tests, and how sensors are found and left out."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from broker.clock import unix_ms
from broker.messages import is_value
from broker.runner import monotonic_s
from config import limits
from config.errors import SettingsError
from config.settings import Scalar
from hub.sensors import BUILT_IN, Sensor, TimedValues, load_sensors
from hub.sensors.counter import CounterSensor, CounterSettings
from hub.sensors.disk import label_of

ROOT = Path(__file__).resolve().parents[2]
SCALE = {"number": (int, float), "string": (str,), "boolean": (bool,)}


def loaded(name: str, section: dict[str, Scalar] | None = None, states: dict[str, str] | None = None) -> Sensor:
    """Return one sensor, as the hub would get it."""
    (sensor,) = [s for s in load_sensors({name: section or {"enabled": True}}, states or {}) if s.name == name]
    return sensor


def sampled(sensor: Sensor) -> dict[str, object]:
    """Return the values of one sample."""
    values = sensor.sample()
    assert isinstance(values, dict)
    return values


# --- What they measure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "counter"])
def test_a_sensor_gives_what_it_says_it_gives(name: str) -> None:
    """Names, types and the contract's bounds: readers and the cloud rely on the description."""
    found = [sensor for sensor in load_sensors({}, {}) if sensor.name == name]
    if not found:
        assert name in ("load", "temperature"), f"{name} is not available here"
        pytest.skip(f"this machine has nothing for the sensor {name}")
    (sensor,) = found
    sensor.sample()
    wait_for(lambda: bool(sampled(sensor)))  # Rates need a while between two samples.
    wait_for(lambda: set(sampled(sensor)) <= {spec.name for spec in sensor.values()})
    specs = {spec.name: spec for spec in sensor.values()}
    assert len(specs) == len(sensor.values())
    for value_name, value in sampled(sensor).items():
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", value_name)
        assert value_name.startswith(f"{name}.")
        assert is_value(value)
        assert type(value) in SCALE[specs[value_name].type]
        assert specs[value_name].unit
        assert specs[value_name].description


def wait_for(condition: Callable[[], bool], tries: int = 200_000) -> None:
    for _ in range(tries):
        if condition():
            return
    raise AssertionError("it did not come true")


def test_a_busy_processor_is_seen() -> None:
    """One core at work must show as at least half of its share."""
    cpu = loaded("cpu")
    cpu.sample()
    begin = psutil.Process().cpu_times().user
    while psutil.Process().cpu_times().user < begin + 0.5:
        sum(range(10_000))
    values = sampled(cpu)
    share = values["cpu.percent"]
    assert isinstance(share, float)
    assert 50.0 / (os.cpu_count() or 1) <= share <= 100.0


def test_rates_need_two_samples() -> None:
    """What the processors or the network did since the machine's start is not what they do now."""
    assert loaded("cpu").sample() == {}
    assert loaded("network").sample() == {}


def test_memory_agrees_with_the_system() -> None:
    values = sampled(loaded("memory"))
    assert values["memory.total"] == psutil.virtual_memory().total
    available = values["memory.available"]
    assert isinstance(available, int)
    assert 0 < available < psutil.virtual_memory().total


@pytest.mark.skipif(os.name != "posix", reason="mount points are named otherwise on Windows")
def test_the_root_file_system_is_always_watched() -> None:
    """Also in a container, where it lies on no disk: it is what fills up."""
    free = sampled(loaded("disk"))["disk.root.free"]
    usage = os.statvfs("/")
    assert isinstance(free, int)
    assert abs(free - usage.f_bavail * usage.f_frsize) < 0.1 * usage.f_blocks * usage.f_frsize


def test_named_mount_points_are_watched_and_missing_ones_left_out(tmp_path: Path) -> None:
    """A disk that is unplugged must not take the others' values with it."""
    missing = tmp_path / "gone"
    values = sampled(loaded("disk", {"mounts": [str(tmp_path), str(missing)]}))
    label = label_of(str(tmp_path))
    assert set(values) == {f"disk.{label}.free", f"disk.{label}.used", f"disk.{label}.percent"}


@pytest.mark.parametrize(
    ("mount", "label"),
    [
        ("/", "root"),
        ("/home", "home"),
        ("/var/lib/x y", "var-lib-x-y"),
        ("C:\\", "c"),
        ("/é", "unnamed"),
        ("/a" * 99, None),
    ],
)
def test_a_mount_point_becomes_part_of_a_name(mount: str, label: str | None) -> None:
    found = label_of(mount)
    assert re.fullmatch(r"[a-z0-9_-]{1,64}", found)
    assert label in (None, found)


def test_two_mount_points_never_share_a_name(tmp_path: Path) -> None:
    """`/a b` and `/a-b` would else overwrite each other's values."""
    (tmp_path / "a b").mkdir()
    (tmp_path / "a-b").mkdir()
    values = sampled(loaded("disk", {"mounts": [str(tmp_path / "a b"), str(tmp_path / "a-b")]}))
    assert len(values) == 6


@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="the loopback interface has this name on Linux only")
def test_a_named_interface_is_counted_in_bytes_per_second() -> None:
    """Loopback is left out by itself, and is the one interface that every test machine can use."""
    network = loaded("network", {"interfaces": ["lo"]})
    network.sample()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        for _ in range(100):
            one.sendto(bytes(1000), one.getsockname())
    values = sampled(network)
    received = values["network.lo.received"]
    assert isinstance(received, float)
    assert received > 0
    assert values["network.received"] == received
    assert "network.lo.received" not in sampled(loaded("network"))


def test_the_number_of_processes_is_the_systems() -> None:
    count = sampled(loaded("processes"))["processes.count"]
    assert isinstance(count, int)
    assert abs(count - len(psutil.pids())) < 0.5 * count


def test_uptime_grows() -> None:
    values = sampled(loaded("uptime"))
    machine = values["uptime.machine"]
    assert isinstance(machine, int)
    assert machine > 0
    assert values["uptime.hub"] == 0


# --- The counter -----------------------------------------------------------------------------------------------------------


def counts(points: list[TimedValues]) -> list[object]:
    return [point.values["counter.value"] for point in points]


def counted(counter: CounterSensor, least: int) -> list[TimedValues]:
    """Sample until there are `least` points."""
    points: list[TimedValues] = []
    wait_for(lambda: len(points) >= least or bool(points.extend(counter.sample())), tries=50_000_000)
    return points


def test_the_counter_counts_by_one_in_order_of_time() -> None:
    """Whoever reads the stored values sees at once what is lost or doubled."""
    points = counted(CounterSensor(CounterSettings(rate_hz=5000.0), None), 2000)
    assert counts(points) == list(range(1, len(points) + 1))
    times = [point.ts_ms for point in points]
    assert times == sorted(times)


def test_the_counter_goes_on_where_its_state_says() -> None:
    counter = CounterSensor(CounterSettings(rate_hz=1000.0), "41")
    points = counted(counter, 3)
    assert counts(points)[:3] == [42, 43, 44]
    assert counter.state == str(counts(points)[-1])


def test_the_counter_keeps_to_its_rate() -> None:
    """At 1000 a second a sample holds all that was due since the last one: no more, no less."""
    counter = CounterSensor(CounterSettings(rate_hz=1000.0), None)
    points = counted(counter, 300)
    span_s = (points[-1].ts_ms - points[0].ts_ms) / 1000
    assert len(points) - 1 == pytest.approx(span_s * 1000, abs=60)


def test_the_counter_does_not_make_up_for_a_pause() -> None:
    """A machine that slept for a night must not send the night's counts in one burst."""
    counter = CounterSensor(CounterSettings(rate_hz=limits.COUNTER_RATE_MAX_HZ), None)
    begin, begin_ms = monotonic_s(), unix_ms()
    wait_for(lambda: monotonic_s() > begin + 0.5, tries=50_000_000)
    points = counter.sample()
    assert counts(points) == list(range(1, 4001)), "twice what an interval brings"
    assert points[0].ts_ms > begin_ms + 200
    assert counts(counter.sample()[:1]) in ([], [4001])


def test_a_damaged_state_does_not_stop_the_counter() -> None:
    assert CounterSensor(CounterSettings(), "not a number").state is None


# --- Which there are ---------------------------------------------------------------------------------------------------------


def test_all_but_the_counter_run_by_default() -> None:
    names = [sensor.name for sensor in load_sensors({}, {})]
    expected = [name for name in BUILT_IN if name != "counter"]
    assert [name for name in expected if name in names or name not in ("load", "temperature")] == names


def test_fast_changing_values_come_every_ten_seconds_and_slow_ones_every_minute() -> None:
    intervals = {sensor.name: sensor.interval_s for sensor in load_sensors({}, {})}
    assert {intervals.get(name, 10.0) for name in ("cpu", "memory", "load", "network")} == {10.0}
    assert {intervals.get(name, 60.0) for name in ("disk", "uptime", "processes", "temperature")} == {60.0}


def test_a_sensor_can_be_switched_off_and_slowed_down() -> None:
    sensors = load_sensors({"cpu": {"enabled": False}, "memory": {"interval_s": 30}}, {})
    assert "cpu" not in [sensor.name for sensor in sensors]
    assert next(sensor for sensor in sensors if sensor.name == "memory").interval_s == 30.0


def test_a_sensor_gets_its_stored_state() -> None:
    assert loaded("counter", states={"counter": "17"}).state == "17"


@pytest.mark.parametrize(
    ("sections", "key", "words"),
    [
        ({"cpu": {"interval_s": "often"}}, "sensors.cpu.interval_s", "float"),
        ({"cpu": {"interval_s": 0.01}}, "sensors.cpu.interval_s", ">= 0.1"),
        ({"disk": {"interval_s": 1e9}}, "sensors.disk.interval_s", "<= 86400"),
        ({"cpu": {"intervall": 5}}, "sensors.cpu.intervall", "known: enabled, interval_s"),
        ({"disk": {"mounts": "/"}}, "sensors.disk.mounts", "array"),
        ({"counter": {"enabled": True, "rate_hz": 0}}, "sensors.counter.rate_hz", "> 0"),
        ({"weather": {"enabled": True}}, "sensors.weather", "no such sensor"),
    ],
)
def test_a_wrong_option_is_named(sections: dict[str, dict[str, Scalar]], key: str, words: str) -> None:
    """The operator reads one line that says which key it is, and what would be right."""
    with pytest.raises(SettingsError, match=re.escape(words)) as raised:
        load_sensors(sections, {})
    assert raised.value.key == key


def test_the_built_in_sensors_are_those_of_the_distribution() -> None:
    """The settings' check finds them by entry point, the hub by its own list."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options.entry_points"]["hubline.sensors"].strip().splitlines()
    assert dict(line.split(" = ") for line in lines) == dict(BUILT_IN)


# --- Somebody else's sensors -----------------------------------------------------------------------------------------------

GOOD = """
from hub.sensors import SensorSettings, ValueSpec

class WeatherSettings(SensorSettings, frozen=True):
    city: str = "Berlin"

class WeatherSensor:
    name = "weather"
    Settings = WeatherSettings

    def __init__(self, settings, state):
        self.interval_s, self.state, self.city = settings.interval_s, state, settings.city

    @classmethod
    def available(cls):
        return True

    def values(self):
        return [ValueSpec("weather.city", "1", "string", "Where")]

    def sample(self):
        return {"weather.city": self.city}
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, source: str, attribute: str) -> None:
    """Put a distribution with one sensor where Python finds it, as pip would."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    entry_points = f"[hubline.sensors]\n{name} = {module}:{attribute}\n"
    (metadata / "entry_points.txt").write_text(entry_points, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def test_another_distribution_adds_a_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique_name: str) -> None:
    install(tmp_path, monkeypatch, "weather", unique_name, GOOD, "WeatherSensor")
    assert loaded("weather", {"city": "Bonn"}).sample() == {"weather.city": "Bonn"}
    with pytest.raises(SettingsError, match="city"):
        load_sensors({"weather": {"city": 5}}, {})


@pytest.mark.parametrize(
    ("source", "attribute"),
    [
        ("raise RuntimeError('at import')", "WeatherSensor"),
        ("import no_such_module_anywhere", "WeatherSensor"),
        ("def broken(:", "WeatherSensor"),
        (GOOD, "OtherSensor"),
        (GOOD, "WeatherSettings"),
        (GOOD.replace('name = "weather"', 'name = "cpu"'), "WeatherSensor"),
        (GOOD.replace("    Settings = WeatherSettings", ""), "WeatherSensor"),
        (GOOD.replace("def sample", "def measure"), "WeatherSensor"),
        (GOOD.replace("return True", "raise OSError('no driver')"), "WeatherSensor"),
        (GOOD.replace("settings.interval_s,", "settings.no_such_thing,"), "WeatherSensor"),
        (GOOD.replace("settings.interval_s,", "0.0001,"), "WeatherSensor"),
        (GOOD.replace("self.state,", "self.other,"), "WeatherSensor"),
    ],
)
def test_a_broken_sensor_is_logged_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique_name: str, source: str, attribute: str
) -> None:
    """It must never keep the hub from measuring the rest."""
    install(tmp_path, monkeypatch, "weather", unique_name, source, attribute)
    with capture_logs() as logs:
        sensors = load_sensors({}, {})
    assert "memory" in [sensor.name for sensor in sensors]
    assert "weather" not in [sensor.name for sensor in sensors]
    assert [(line["event"], line["sensor"]) for line in logs] == [("sensor_left_out", "weather")]
    assert logs[0]["reason"]


def test_a_sensor_that_is_switched_off_is_not_even_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique_name: str
) -> None:
    install(tmp_path, monkeypatch, "weather", unique_name, "raise RuntimeError('at import')", "WeatherSensor")
    with capture_logs() as logs:
        load_sensors({"weather": {"enabled": False}}, {})
    assert logs == []


def test_nobody_takes_the_name_of_a_built_in_sensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique_name: str
) -> None:
    install(tmp_path, monkeypatch, "cpu", unique_name, GOOD.replace('"weather"', '"cpu"'), "WeatherSensor")
    with capture_logs() as logs:
        assert type(loaded("cpu")).__name__ == "CpuSensor"
    assert [line["sensor"] for line in logs] == ["cpu"]


def test_the_bounds_of_names_hold_for_the_longest() -> None:
    """`disk.<64 characters>-999.percent` must still be a name."""
    assert len("disk." + "a" * 64 + "-999.percent") <= limits.VALUE_NAME_MAX
