#!/usr/bin/env bash
# Make .venv and install the locked dependencies and this package. Usage: scripts/install.sh demo|dev
# Quick when nothing changed: a stamp in .venv holds the digest of what was installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kind="${1:?demo or dev}"
venv=.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

digest() { cat "requirements/$1.txt" pyproject.toml scripts/install.sh | sha256sum | cut -d' ' -f1; }
is_current() { [ -x "$venv/bin/moulin" ] && [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(digest "$1")" ]; }

# Two makes at once would tear the environment apart.
if command -v flock >/dev/null 2>&1; then
    exec 9<requirements
    flock 9
fi
is_current "$kind" && exit 0

make_venv() {
    local python code=0
    python="$(scripts/find_python.sh)" || code=$?
    if [ "$code" -ne 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "setup: trying to install python3-venv with apt" >&2
        scripts/apt.sh python3 python3-venv || true
        python="$(scripts/find_python.sh)" || exit 1
    elif [ "$code" -ne 0 ]; then
        exit 1
    fi
    echo "setup: $venv with $("$python" -V) ($python)" >&2
    "$python" -m venv --clear "$venv"
}
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv

# uv resolves nothing here, it only installs faster; it is pinned in the lock like the rest.
install() { "$venv/bin/python" -m pip install --quiet "$@"; }
uv_pin="$(mktemp)"
trap 'rm -f "$uv_pin"' EXIT
awk '/^uv==/ {on = 1} on {print} on && !/\\$/ {exit}' "requirements/$kind.txt" >"$uv_pin"
if [ -s "$uv_pin" ] && install --require-hashes --only-binary :all: -r "$uv_pin" 2>/dev/null; then
    install() { "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@"; }
fi

echo "setup: installing requirements/$kind.txt" >&2
install --require-hashes -r "requirements/$kind.txt"
install --no-deps --no-build-isolation -e .

# The C++ parts of the model runtime want OpenMP from the system.
if command -v ldconfig >/dev/null 2>&1 && ! ldconfig -p 2>/dev/null | grep -q 'libgomp\.so\.1'; then
    scripts/apt.sh libgomp1 ||
        echo "setup: libgomp1 is missing, so no model can run: apt-get install libgomp1" >&2
fi

digest "$kind" >"$venv/.installed-$kind"
# The development lock contains the demo's, at the same versions.
if [ "$kind" = dev ]; then digest demo >"$venv/.installed-demo"; fi
