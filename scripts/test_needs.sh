#!/usr/bin/env bash
# Install the system programs that tests and benchmarks want, when this user may; else say what is skipped.
# With a word: only what is named for it, for example `scripts/test_needs.sh Slurm`.
# To add one: a line `command or pattern of a path|Debian package|what is skipped without it`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

needs=(
    "cc|build-essential|GPUs that are written down for a test"
    "nginx|nginx|the gateway benchmark's nginx peer"
    "wrk|wrk|the gateway benchmark's load"
    "munged|munge|everything on a real Slurm"
    "slurmctld|slurmctld|everything on a real Slurm"
    "slurmd|slurmd|everything on a real Slurm"
    "sbatch|slurm-client|everything on a real Slurm"
    "patchelf|patchelf|the engine suite on later releases"
    "podman|podman|tasks in real containers"
    "crun|crun|tasks in real containers"
    "tini-static|tini|tasks in real containers"
    "busybox|busybox-static|the image of tasks in real containers"
    "slurmdbd|slurmdbd|accounts in a real Slurm"
    "mariadbd|mariadb-server|accounts in a real Slurm"
    "slurmrestd|slurmrestd|Slurm by its REST daemon"
    "/usr/lib/*/slurm-wlm/auth_jwt.so|slurm-wlm-jwt-plugin|Slurm by its REST daemon"
    "sshd|openssh-server|Slurm's commands over a real SSH connection"
)

for need in "${needs[@]}"; do
    [[ "$need" == *"${1:-}"* ]] || continue
    IFS='|' read -r command package skipped <<<"$need"
    PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null 2>&1 && continue
    compgen -G "$command" >/dev/null && continue
    echo "test needs: installing $package" >&2
    if ! reason="$(scripts/apt.sh "$package" 2>&1)"; then
        echo "test needs: SKIPPED: $skipped ($command is missing; $(echo "$reason" | tail -n 1); apt-get install $package)" >&2
    fi
done
