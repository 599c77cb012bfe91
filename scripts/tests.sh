#!/usr/bin/env bash
# Run all tests in about half the time of one after the other; exit as pytest does when any of them fails.
# First what keeps two processors busy; then what waits more than it works, three at once: whatever starts
# clusters, one after the other, beside what starts whole Moulins.
set -uo pipefail
set -m # a background job then hears Ctrl-C as any other
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pytest=(.venv/bin/python -m pytest)

small=(tests/unit tests/property tests/golden tests/simulation tests/conformance/test_store.py)
for name in api app controlplane gateway sources store; do small+=("tests/integration/$name"); done
large=()
for path in "${small[@]}"; do large+=("--ignore=$path"); done

log="$(mktemp)"
trap '[ "$clusters" = 0 ] || kill -INT "$clusters"; rm -f "$log"' EXIT
clusters=0

"${pytest[@]}" -n 2 --dist loadfile "${small[@]}"
status=$?
"${pytest[@]}" -m "(ray or slurm) and not slurm_newer" "${large[@]}" >"$log" 2>&1 &
clusters=$!
"${pytest[@]}" -n 2 --dist loadfile -m "(not ray and not slurm) or slurm_newer" "${large[@]}" || status=$?
wait "$clusters" || status=$?
clusters=0
cat "$log"
exit "$status"
