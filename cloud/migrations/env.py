"""What alembic runs for each step: the scripts, on the connection that `cloud.migrating` hands over in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
