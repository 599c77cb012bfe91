#!/usr/bin/env bash
# Run all tests in about half the time of one after the other; exit as pytest does when any of them fails.
# First what keeps two processors busy; then what waits more than it works, three at once: whatever starts
# clusters, one after the other, beside what starts whole Moulins and, after these, a newer Slurm.
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

# What releases answer differently, once more on a newer Slurm than this machine has; the clusters may still be
# at it. All the rest by hand: PATH="$(scripts/slurm_release.sh sid):$PATH" .venv/bin/python -m pytest -m slurm
engine=tests/integration/engines/test_slurm
newer_too=("$engine".py "$engine"_{accounting,arrays,rest,tracked}.py tests/e2e/test_slurm.py)
if newer="$(scripts/slurm_release.sh trixie)"; then
    PATH="$newer:$PATH" "${pytest[@]}" -m "slurm and not slurm_newer" "${newer_too[@]}" || status=$?
elif [ -n "${CI:-}" ]; then
    status=1
fi
wait "$clusters" || status=$?
clusters=0
cat "$log"
exit "$status"
