#!/usr/bin/env bash
# Print the path of a Python >= 3.11 that can make virtual environments, or say what to install.
set -euo pipefail

recent='import sys; sys.exit(sys.version_info < (3, 11))'
bare=""
for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
    path="$(command -v "$name" 2>/dev/null)" || continue
    "$path" -c "$recent" >/dev/null 2>&1 || continue
    if "$path" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "$path"
        exit 0
    fi
    bare="${bare:-$path}"
done

if [ -n "$bare" ]; then
    package="$("$bare" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    echo "error: $bare cannot make virtual environments" >&2
    echo "hint: install the Debian package $package (or python3-venv): apt-get install $package" >&2
    exit 3
fi
echo "error: no Python >= 3.11 found" >&2
echo "hint: on Debian or Ubuntu: apt-get install python3 python3-venv; or name one: make setup PYTHON=/path/to/python3" >&2
exit 4
