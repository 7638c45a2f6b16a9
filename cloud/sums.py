"""Writes newest values and rollups: a few rows per sensor and transaction, whatever the number of readings (SQL)."""

from __future__ import annotations

from typing import Final, TypeAlias

import orjson
from sqlalchemy import Connection, Table, bindparam, func, select, update
from sqlalchemy.dialects.sqlite import insert

from broker.messages import Last
from cloud.batch import NewestValue
from cloud.rollups import Rank, Rollup, SensorSummary
from cloud.schema import ROLLUP_1H, ROLLUP_5MIN, SENSORS
from cloud.statements import Prepared
from config import limits

RollupRow: TypeAlias = tuple[int, int, int, float, float, float]
"""bucket, sensor_no, count, min, max, sum; in the order of the table's key."""

_NOTHING_YET: Final[Rank] = (-1, 0, "")

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
                "min": func.min(table.c.min, fresh.min),
                "max": func.max(table.c.max, fresh.max),
                "sum": table.c.sum + fresh.sum,
            },
        ),
        *names,
    )


_ADD_5MIN: Final = _add_rollup(ROLLUP_5MIN)
_ADD_1H: Final = _add_rollup(ROLLUP_1H)


class SumsWriter:
    """Collects what one transaction changes and writes it at its end."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._sensors: list[tuple[object, ...]] = []
        self._five_minutes: list[RollupRow] = []
        self._hours: list[RollupRow] = []
        self.newest: list[NewestValue] = []

    def add(self, site: str, hub_id: str, hub_no: int, summaries: dict[str, SensorSummary]) -> None:
        """Take what a batch says of one hub's sensors; a hub may come once per transaction."""
        known = self._known(hub_no, summaries)
        for name, summary in summaries.items():
            if name not in known:
                continue  # One of a hub that makes up names without end.
            sensor_no, before, count = known[name]
            newest = max(before, summary.newest)
            self._sensors.append((*newest, summary.count, sensor_no))
            if newest != before:
                ts, _, value = newest
                last = Last(ts, orjson.loads(value), count + summary.count)
                self.newest.append(NewestValue(site, hub_id, name, last))
            self._five_minutes += _rows(sensor_no, summary.buckets)
            self._hours += _rows(sensor_no, summary.hours())

    def write(self) -> None:
        """Write everything that was added."""
        _SET_SENSOR.run_many(self._connection, self._sensors)
        _ADD_5MIN.run_many(self._connection, sorted(self._five_minutes))
        _ADD_1H.run_many(self._connection, sorted(self._hours))

    def _known(self, hub_no: int, summaries: dict[str, SensorSummary]) -> dict[str, tuple[int, Rank, int]]:
        known = self._read(hub_no)
        missing = [name for name in summaries if name not in known]
        if missing:
            room = max(0, limits.SENSORS_PER_HUB_MAX - len(known))
            _ADD_SENSOR.run_many(self._connection, [(hub_no, name, *_NOTHING_YET, 0) for name in missing[:room]])
            known = self._read(hub_no)
        return known

    def _read(self, hub_no: int) -> dict[str, tuple[int, Rank, int]]:
        return {
            sensor: (sensor_no, (ts, seq, value), count)
            for sensor, sensor_no, ts, seq, value, count in _SENSORS_OF_HUB.rows(self._connection, hub_no)
        }


def _rows(sensor_no: int, buckets: dict[int, Rollup]) -> list[RollupRow]:
    return [
        (bucket, sensor_no, rollup.count, rollup.minimum, rollup.maximum, rollup.total)
        for bucket, rollup in buckets.items()
    ]
