"""A status file of its own for each process of the cloud service in a folder: nobody has to name them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import limits
from config.errors import SettingsError
from config.lock import locked


@contextmanager
def status_slot(folder: Path, only: str | None) -> Iterator[str]:
    """Hold the name of a status file while the block runs: `status.json`, or of a part the first free `status-PART-N.json`.

    Raises SettingsError if WORKER_SLOTS processes of this part are here already.
    """
    if only is None:
        yield "status.json"
        return
    for number in range(1, limits.WORKER_SLOTS + 1):
        slot = locked(folder / f".{only}-{number}.lock", 0.0)
        try:
            slot.__enter__()
        except SettingsError:
            continue
        try:
            yield f"status-{only}-{number}.json"
        finally:
            slot.__exit__(None, None, None)
        return
    problem = f"{limits.WORKER_SLOTS} processes of --only {only} are here already: give further ones another folder"
    raise SettingsError(problem, key="cloud.data_dir", value=str(folder))
