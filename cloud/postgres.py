"""PostgreSQL as the database of the cloud service: what `cloud.database` needs to know of it, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloud.database import Announce, Database
from cloud.postgres_engine import require_driver
from config import limits

if TYPE_CHECKING:
    from cloud.postgres_store import PostgresReader


class PostgresDatabase(Database):
    """A database that any number of processes write at once. Raises SettingsError for a URL that can't be.

    What `announce` returns for a commit is sent on cloud.notices.CHANNEL in the same transaction.
    """

    def __init__(self, url: str, fleet: str, announce: Announce | None = None):
        require_driver(url)
        from cloud.postgres_store import PostgresStore

        super().__init__(PostgresStore(url, fleet, announce), readers=limits.POSTGRES_READERS)


def reader_of(url: str) -> PostgresReader:
    """Return the read side. Raises SettingsError for a URL that can't be."""
    require_driver(url)
    from cloud.postgres_store import PostgresReader

    return PostgresReader(url)
