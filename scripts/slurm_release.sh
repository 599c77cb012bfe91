#!/usr/bin/env bash
# Unpack the Slurm of another Debian release beside the one of this machine; print the folder of its programs.
# Usage: scripts/slurm_release.sh SUITE, for example `trixie` (24.11) or `sid` (26.05); "" is the one installed.
# Nothing is installed and root is not needed: packages are checked by Debian's signatures as apt always does,
# then unpacked with all they need, and the programs are told where that is. First in PATH, they are the Slurm
# of everything that is started: PATH="$(scripts/slurm_release.sh sid):$PATH" .venv/bin/python -m pytest -m slurm
# It is kept in the user's cache; remove it there to have it fetched anew.
set -euo pipefail

suite="${1?a Debian suite}"
[ -n "$suite" ] || { dirname "$(PATH="$PATH:/usr/sbin" command -v slurmctld)"; exit; }
home="${XDG_CACHE_HOME:-$HOME/.cache}/moulin/slurm-$suite"
bin="$home/bin"
mkdir -p "$(dirname "$home")"
exec 9>"$home.lock"
flock 9
[ -x "$bin/slurmd" ] && { echo "$bin"; exit; }
for program in apt-get dpkg-deb patchelf; do
    command -v "$program" >/dev/null || { echo "Slurm of $suite: $program is not installed" >&2; exit 1; }
done

work="$home.$$"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work/tree" "$work/bin"
: >"$work/status"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mirror="$(apt-get --print-uris update | sed -n "s|^'\([^']*/debian/\)dists/.*|\1|p")"
mirror="${mirror%%$'\n'*}"
[ -n "$mirror" ] || { echo "Slurm of $suite: this machine's apt names no Debian mirror" >&2; exit 1; }
echo "deb [signed-by=$keys] $mirror $suite main" >"$work/sources.list"
ask=(apt-get -q -y -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=-
    -o "Dir::State::Lists=$work/lists" -o "Dir::State::Status=$work/status" -o "Dir::Cache=$work"
    -o "Dir::Cache::Archives=$work/archives" -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none
    -o Debug::NoLocking=1)
packages=(slurmctld slurmd slurm-client slurmrestd slurmdbd slurm-wlm-jwt-plugin)
echo "Slurm of $suite: fetching 30 MB" >&2
"${ask[@]}" update >"$work/log" 2>&1 &&
    "${ask[@]}" --no-install-recommends --download-only install "${packages[@]}" >>"$work/log" 2>&1 ||
    { echo "Slurm of $suite: $(tail -n 1 "$work/log")" >&2; exit 1; }
for package in "$work"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/tree" --keep-directory-symlink \
        --exclude='./usr/share/*' --exclude='./var/*'
done

# Made in one folder, found in another: the paths in the programs are those of the second.
loader="$(cd "$work/tree" && echo usr/lib/*-linux-gnu/ld-linux-*)"
lib="$(dirname "$loader")"
for program in "$work"/tree/usr/{bin,sbin}/s*; do
    name="$(basename "${program%-wlm}")"
    [ -f "$program" ] && [ ! -L "$program" ] && grep -qs slurm "$program" || continue
    head -c 4 "$program" | grep -q ELF || continue
    patchelf --set-interpreter "$home/tree/$loader" --force-rpath \
        --set-rpath "$home/tree/$lib:$home/tree/$lib/slurm-wlm" "$program"
    mv "$program" "$work/tree/usr/bin/.$name" && mv "$work/tree/usr/bin/.$name" "$work/tree/usr/bin/$name"
    ln -s "../tree/usr/bin/$name" "$work/bin/$name"
done
# slurmd looks for slurmstepd where it would be installed, unless it is told.
rm "$work/bin/slurmd"
printf '#!/bin/sh\nexec %s -d %s "$@"\n' "$home/tree/usr/bin/slurmd" "$home/tree/usr/bin/slurmstepd" \
    >"$work/bin/slurmd"
chmod 755 "$work/bin/slurmd"
ln -s "../tree/$lib/slurm-wlm" "$work/bin/plugins"
rm -rf "$work"/{archives,lists,status,sources.list,*.bin} "$home"
mv -T "$work" "$home"
echo "$bin"
