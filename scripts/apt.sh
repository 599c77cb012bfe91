#!/usr/bin/env bash
# Install Debian packages when this user may. Usage: scripts/apt.sh PACKAGE...
# Exit 0: installed. Exit 1: not possible here, with the reason on stderr.
set -euo pipefail

if ! command -v apt-get >/dev/null 2>&1; then
    echo "no apt-get on this machine" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "not root" >&2
    exit 1
fi

# A package that ships a server would start it at once; nothing here wants that.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
log="$(mktemp)"
if apt-get install -y --no-install-recommends "$@" >"$log" 2>&1 ||
    { apt-get update >>"$log" 2>&1 && apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1; }; then
    rm -f "$log"
    exit 0
fi
tail -n 5 "$log" >&2
rm -f "$log"
exit 1
