#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.txt: exact versions with hashes, no index or file address.
# The development lock comes first and bounds the others, so that one environment serves both.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compile() {
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command 'make lock' pyproject.toml --group build "$@"
}
compile --group tools --extra dev -o requirements/dev.txt
compile --group tools --extra demo -c requirements/dev.txt -o requirements/demo.txt
compile -c requirements/dev.txt -o requirements/base.txt

# Runtimes, and the clients a benchmark drives, have environments of their own.
for wanted in src/moulin/runtimes/locks/*.in src/moulin/engines/ray/ray.in requirements/clients.in requirements/waldur.in; do
    overrides="${wanted%.in}.overrides" # then it is for one Python and platform only
    if [ -f "$overrides" ]; then how=(--override "$overrides"); else how=(--universal); fi
    .venv/bin/uv pip compile --quiet "${how[@]}" --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
        "$wanted" -o "${wanted%.in}.txt"
done

# A lock names packages and digests, never a place.
if grep -nE '://|file:|--(extra-)?index-url|--find-links|^/' requirements/*.txt src/moulin/runtimes/locks/* src/moulin/engines/ray/ray.txt; then
    echo "error: an address slipped into a lock" >&2
    exit 1
fi
