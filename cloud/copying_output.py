"""How `hubline cloud copy` shows how far it is: a bar on a terminal, a line for each table elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from cloud.copying import Seen
from cloud.fleet_output import is_terminal


@contextmanager
def progress() -> Iterator[Seen]:
    """Return what is to be told of every step."""
    if not is_terminal():
        yield _say_line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns) as shown:

        def seen(table: str, rows: int, total: int) -> None:
            if total and table not in bars:
                bars[table] = shown.add_task(table, total=total)
            if table in bars:
                shown.update(bars[table], completed=rows)

        yield seen


def _say_line(table: str, rows: int, total: int) -> None:
    if rows == total and total:
        click.echo(f"{table}: {rows} rows")
