"""The same policies live, on SQLite and PostgreSQL: storages, workers, command log."""
