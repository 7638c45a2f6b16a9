"""How the tables of the cloud's database have become what they are: a step a file, for SQLite and PostgreSQL."""
