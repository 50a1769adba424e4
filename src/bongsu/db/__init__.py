"""Tables, sessions and migrations of the shared database (SQLite or PostgreSQL)."""
