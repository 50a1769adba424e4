"""HTTP in: our own endpoints, and the one place where their errors become responses."""
