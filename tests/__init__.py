"""A real package, so that a stray `tests` in site-packages can never be imported instead of ours."""
