#!/bin/sh
# Writes requirements*.txt from pyproject.toml: exact versions with hashes, for every platform
# and Python 3.11 or newer, without the address of any index.
set -eu

uv=${UV:-uv}
command -v "$uv" >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }

compile() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links "$@"
}

# hatchling and editables install ourselves without build isolation, which would fetch them unhashed.
printf 'hatchling>=1.27\neditables>=0.5\n' | compile pyproject.toml - --extra s3 --output-file requirements.txt
compile pyproject.toml --extra s3 --group dev --constraint requirements.txt --output-file requirements-dev.txt
# The older redis-py that we support too; its tests run with it in front of the newer one.
printf 'redis>=7.4,<8\n' | compile --no-deps - --output-file requirements-redis7.txt
