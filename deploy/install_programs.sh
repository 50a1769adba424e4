#!/bin/sh
# Installs the programs that the tests run for real, where they are missing: Redis, PostgreSQL, nginx, Chromium, node, faketime, and a C compiler.
set -eu

PATH=$PATH:/usr/sbin
missing=
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v nginx >/dev/null || missing="$missing nginx"
command -v chromium >/dev/null || missing="$missing chromium"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
command -v faketime >/dev/null || missing="$missing faketime"
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$missing postgresql"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "The tests need these programs, and this system has no apt-get:$missing." >&2
    echo "Install them with its own package manager, then try again." >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "The tests need these programs. As root: apt-get install$missing" >&2
        exit 1
    fi
    as_root=sudo
fi

echo "Installing for the tests:$missing"
# Debian starts a service as soon as it is installed. The tests start their own, on ports and in directories of their
# own; a second Redis on the usual port is nothing that anybody has asked for.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '$as_root rm -f $policy' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' | $as_root tee $policy >/dev/null
    $as_root chmod 755 $policy
fi
$as_root apt-get update -qq
# shellcheck disable=SC2086 - a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
