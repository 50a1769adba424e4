#!/bin/sh
# Installs what the measurements need from the system's packages, where it is missing: a C compiler, nchan for nginx.
# Peers that need more (Go 1.26 or newer, node with npm) are left out when it is not there, and named as missing.
set -eu

missing=
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v taskset >/dev/null || missing="$missing util-linux"
ls /usr/lib/nginx/modules/ngx_nchan_module.so >/dev/null 2>&1 || missing="$missing libnginx-mod-nchan"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "The measurements can use these programs, and this system has no apt-get:$missing." >&2
    exit 0
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "The measurements can use these programs. As root: apt-get install$missing" >&2
        exit 0
    fi
    as_root=sudo
fi
echo "Installing for the measurements:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086 - a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
    echo "Some of these could not be installed:$missing" >&2
