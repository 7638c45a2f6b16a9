"""Writes newest values and rollups: a few rows per sensor and transaction, whatever the number of readings (SQL)."""

from __future__ import annotations

from typing import Final, TypeAlias

import orjson
from sqlalchemy import Connection, Table, bindparam, select, update

from broker.messages import Last
from cloud.batch import NewestValue
from cloud.rollups import BUCKETS_PER_HOUR, Rank, Rollup, SensorSummary
from cloud.schema import ROLLUP_1H, ROLLUP_5MIN, SENSORS
from cloud.statements import Prepared, greater, insert, lesser
from config import limits

RollupRow: TypeAlias = tuple[int, int, int, float, float, float]
"""bucket, sensor_no, count, min, max, sum; in the order of the table's key."""

Known: TypeAlias = dict[str, tuple[int, Rank, int]]
"""Of the sensors of a hub, by name: sensor_no, the newest reading, and how many there were."""

NOTHING_YET: Final[Rank] = (-1, 0, "")

_SENSORS_OF_HUB: Final = Prepared(
    select(
        SENSORS.c.sensor, SENSORS.c.sensor_no, SENSORS.c.ts, SENSORS.c.seq, SENSORS.c.value, SENSORS.c.readings
    ).where(SENSORS.c.hub_no == bindparam("hub_no")),
    "hub_no",
)
_ADD_SENSOR: Final = Prepared(
    insert(SENSORS)
    .values({name: bindparam(name) for name in ("hub_no", "sensor", "ts", "seq", "value", "readings")})
    .on_conflict_do_nothing(),
    *("hub_no", "sensor", "ts", "seq", "value", "readings"),
)
_SET_SENSOR: Final = Prepared(
    update(SENSORS)
    .where(SENSORS.c.sensor_no == bindparam("no"))
    .values(
        ts=bindparam("ts"),
        seq=bindparam("seq"),
        value=bindparam("value"),
        readings=SENSORS.c.readings + bindparam("more"),
    ),
    *("ts", "seq", "value", "more", "no"),
)


def _add_rollup(table: Table) -> Prepared:
    names = ("bucket", "sensor_no", "count", "min", "max", "sum")
    statement = insert(table).values({name: bindparam(name) for name in names})
    fresh = statement.excluded
    return Prepared(
        statement.on_conflict_do_update(
            index_elements=["bucket", "sensor_no"],
            set_={
                "count": table.c.count + fresh.count,
                "min": lesser(table.c.min, fresh.min),
                "max": greater(table.c.max, fresh.max),
                "sum": table.c.sum + fresh.sum,
            },
        ),
        *names,
    )


_ADD_5MIN: Final = _add_rollup(ROLLUP_5MIN)
_ADD_1H: Final = _add_rollup(ROLLUP_1H)


class Sums:
    """Collects what one transaction changes of sensors and rollups (pure)."""

    def __init__(self) -> None:
        self.sensors: list[tuple[int, int, str, int, int]] = []
        """ts, seq, value, how many more, sensor_no."""
        self.five_minutes: list[RollupRow] = []
        self.hours: list[RollupRow] = []
        self.newest: list[NewestValue] = []

    def add(self, site: str, hub_id: str, known: Known, summaries: dict[str, SensorSummary]) -> None:
        """Take what a batch says of one hub's sensors, of which these are known; a hub may come once per transaction."""
        for name, summary in summaries.items():
            if name not in known:
                continue  # One of a hub that makes up names without end.
            sensor_no, before, count = known[name]
            ts, seq, value = max(before, summary.newest)
            self.sensors.append((ts, seq, value, summary.count, sensor_no))
            # Older readings that come late are counted, too: what is told of a sensor has changed.
            self.newest.append(NewestValue(site, hub_id, name, Last(ts, orjson.loads(value), count + summary.count)))
            if len(summary.buckets) == 1:  # Most often so while a hub keeps up.
                [(bucket, rollup)] = summary.buckets.items()
                row = (sensor_no, rollup.count, rollup.minimum, rollup.maximum, rollup.total)
                self.five_minutes.append((bucket, *row))
                self.hours.append((bucket // BUCKETS_PER_HOUR, *row))
            else:
                self.five_minutes += _rows(sensor_no, summary.buckets)
                self.hours += _rows(sensor_no, summary.hours())


def new_sensors(known: Known, summaries: dict[str, SensorSummary]) -> list[str]:
    """Return the names that are to be made known: a hub has room for so many."""
    missing = [name for name in summaries if name not in known]
    return missing[: max(0, limits.SENSORS_PER_HUB_MAX - len(known))] if missing else []


class SumsWriter:
    """Collects what one transaction in SQLite changes and writes it at its end."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._sums = Sums()

    @property
    def newest(self) -> list[NewestValue]:
        """Return the newest values of which something has changed, if only how many readings there were."""
        return self._sums.newest

    def add(self, site: str, hub_id: str, hub_no: int, summaries: dict[str, SensorSummary]) -> None:
        """Take what a batch says of one hub's sensors; a hub may come once per transaction."""
        known = self._read(hub_no)
        missing = new_sensors(known, summaries)
        if missing:
            _ADD_SENSOR.run_many(self._connection, [(hub_no, name, *NOTHING_YET, 0) for name in missing])
            known = self._read(hub_no)
        self._sums.add(site, hub_id, known, summaries)

    def write(self) -> None:
        """Write everything that was added."""
        _SET_SENSOR.run_many(self._connection, self._sums.sensors)
        _ADD_5MIN.run_many(self._connection, sorted(self._sums.five_minutes))
        _ADD_1H.run_many(self._connection, sorted(self._sums.hours))

    def _read(self, hub_no: int) -> Known:
        return {
            sensor: (sensor_no, (ts, seq, value), count)
            for sensor, sensor_no, ts, seq, value, count in _SENSORS_OF_HUB.rows(self._connection, hub_no)
        }


def _rows(sensor_no: int, buckets: dict[int, Rollup]) -> list[RollupRow]:
    return [
        (bucket, sensor_no, rollup.count, rollup.minimum, rollup.maximum, rollup.total)
        for bucket, rollup in buckets.items()
    ]
