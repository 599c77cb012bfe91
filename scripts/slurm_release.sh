#!/usr/bin/env bash
# Unpack the Slurm of another Debian release beside the one of this machine; print the folder of its programs.
# Usage: scripts/slurm_release.sh SUITE, for example `trixie` (24.11) or `sid` (26.05).
# Nothing is installed and root is not needed: packages are checked by Debian's signatures as apt always does,
# then unpacked with all they need, and the programs are told where that is. First in PATH, they are the Slurm
# of everything that is started: PATH="$(scripts/slurm_release.sh sid):$PATH" .venv/bin/python -m pytest -m slurm
# It is kept in the user's cache, of root in /var/cache; remove it there to have it fetched anew.
set -euo pipefail

suite="${1:?a Debian suite}"
# Daemons may run as other users, who do not come into the folders of root.
if [ "$(id -u)" -eq 0 ] && [ -z "${XDG_CACHE_HOME:-}" ]; then XDG_CACHE_HOME=/var/cache; fi
umask 022
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
[ -e "$keys" ] || { echo "Slurm of $suite: Debian's keys are not here (debian-archive-keyring)" >&2; exit 1; }
mirror="$(apt-get --print-uris update | sed -n "s|^'\([^']*/debian/\)dists/[^']*/main/.*|\1|p")"
mirror="${mirror%%$'\n'*}"
[ -n "$mirror" ] || { echo "Slurm of $suite: this machine's apt names no Debian mirror" >&2; exit 1; }
echo "deb [signed-by=$keys] $mirror $suite main" >"$work/sources.list"
# How this machine reaches its mirror holds; what it prefers and does after its own updates does not.
cat >"$work/apt.conf" <<END
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
APT::Default-Release "";
APT::Sandbox::User "$(id -un)";
Acquire::Languages "none";
Debug::NoLocking "1";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "-";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$work/lists";
Dir::State::Status "$work/status";
Dir::Cache "$work";
Dir::Cache::Archives "$work/archives";
END
ask=(apt-get -q -y -c "$work/apt.conf")
packages=(slurmctld slurmd slurm-client slurmrestd slurmdbd slurm-wlm-jwt-plugin)
echo "Slurm of $suite: fetching 30 MB" >&2
"${ask[@]}" update >"$work/log" 2>&1 &&
    "${ask[@]}" --no-install-recommends --download-only install "${packages[@]}" >>"$work/log" 2>&1 ||
    { echo "Slurm of $suite: $(grep -m 1 '^E:' "$work/log" || tail -n 1 "$work/log")" >&2; exit 1; }
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
rm -rf "$work"/{archives,lists,status,sources.list,apt.conf,*.bin} "$home"
mv -T "$work" "$home"
echo "$bin"
