#!/bin/sh
# Makes or updates .venv from the hashed lock: `runtime` (what the server needs) or `dev` (also the tools and tests).
# Needs nothing but Python 3.11 or newer with venv. Run from the root of the clone, by make.
set -eu

kind=$1

find_python() {
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Bongsu needs Python 3.11 or newer, and found none ($(python3 --version 2>/dev/null || echo 'no python3'))." >&2
    echo "Install it, or name it: make PYTHON=/path/to/python3" >&2
    exit 1
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$python comes without venv. On Debian or Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    echo "Making .venv with $("$python" --version) ..."
    "$python" -m venv .venv
fi

case $kind in
    runtime) lock=requirements.txt ;;
    dev) lock=requirements-dev.txt ;;
esac
echo "Installing what $lock names (the first time takes a minute) ..."
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
pip install --require-hashes -r "$lock"
# The build backend is in the lock too, so that nothing unhashed is fetched to install ourselves.
pip install --no-build-isolation --no-deps --editable .
if ! lacking=$(.venv/bin/python -m pip --disable-pip-version-check check); then
    echo "$lacking" >&2
    echo "$lock is behind pyproject.toml: make lock" >&2
    exit 1
fi

touch .venv/runtime
[ "$kind" = runtime ] || touch .venv/dev
