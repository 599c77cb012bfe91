#!/usr/bin/env bash
# Run all tests in about half the time of one after the other; exit as pytest does when any of them fails.
# Three at once: whatever shares a cluster, one after the other, beside two that run first what is small, then
# what starts whole Moulins. Clusters wait more than they work, so they leave the others their processors.
set -uo pipefail
set -m # a background job then hears Ctrl-C as any other
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pytest=(.venv/bin/python -m pytest)

small=(tests/unit tests/property tests/golden tests/simulation tests/conformance/test_store.py)
for name in api app controlplane gateway sources store; do small+=("tests/integration/$name"); done
large=()
for path in "${small[@]}"; do large+=("--ignore=$path"); done

log="$(mktemp)"
trap '[ "$clusters" = 0 ] || kill -INT -- "-$clusters"; rm -f "$log"' EXIT

# What releases answer differently runs once more on a newer Slurm than this machine has; all the rest by hand:
# PATH="$(scripts/slurm_release.sh sid):$PATH" .venv/bin/python -m pytest -m slurm
run_clusters() {
    local status=0 newer engine=tests/integration/engines/test_slurm
    trap 'exit 130' INT
    "${pytest[@]}" -m "(ray or slurm) and not slurm_newer and not own_cluster" "${large[@]}" || status=$?
    if newer="$(scripts/slurm_release.sh trixie)"; then
        PATH="$newer:$PATH" "${pytest[@]}" -m "slurm and not slurm_newer" \
            "$engine".py "$engine"_{accounting,arrays,rest,tracked}.py tests/e2e/test_slurm.py || status=$?
    elif [ -n "${CI:-}" ]; then
        status=1
    fi
    return "$status"
}

run_clusters >"$log" 2>&1 &
clusters=$!
"${pytest[@]}" -n 2 --dist loadfile "${small[@]}"
status=$?
[ "$status" != 2 ] || exit 2 # interrupted
apart="(not ray and not slurm) or slurm_newer or own_cluster"
"${pytest[@]}" -n 2 --dist loadfile -m "$apart" "${large[@]}" || status=$?
wait "$clusters" || status=$?
clusters=0
cat "$log"
exit "$status"
