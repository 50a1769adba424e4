"""Durable background work: a lease queue in the shared database and the worker that serves it."""
