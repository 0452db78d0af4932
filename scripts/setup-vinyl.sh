#!/usr/bin/env bash
# Gets Vinyl Cache 9.0 below a directory, beside the Varnish that is installed: setup-vinyl.sh DIRECTORY
#
# The packages of Debian's testing release are downloaded with a state of apt's own and extracted; nothing is installed. For
# root, whose vinyld runs as other users, the programs go below /var/cache/objmapper if those cannot enter the directory. What the programs need besides came with scripts/setup.sh (libedit, libjemalloc,
# libpcre2, gcc, …). Idempotent: a directory that is complete is left alone, without a look at the archive.
#
# DIRECTORY/env, to be sourced, has builds and tests use it. In its PATH each program has its own name and Varnish's
# (vinyld, varnishd), as in Debian's package, so that what runs it need not know which product it is.
set -euo pipefail
umask 022
me=setup-vinyl
# shellcheck source=scripts/lib/debian.sh
. "$(dirname "$0")/lib/debian.sh"

# The one place that names versions. The archive of a testing release keeps one version only: when it has moved on within the
# branch, the newest of the branch is taken, and a line says so.
readonly release=forky
readonly branch=9.0
readonly pinned=9.0.1-4
readonly packages=(vinyl-cache libvinylapi3 libvinylapi-dev)
# vinyltest is linked with a newer C library than Debian 13's. Any version of the release's will do.
readonly runtime=libc6

[ $# -eq 1 ] || die "usage: scripts/setup-vinyl.sh DIRECTORY"
mkdir -p "$1"
dir=$(realpath "$1")
# A character that a shell, pkg-config or a dynamic loader takes for a separator cannot be in the path.
[[ $dir != *[[:space:]:\;\"\'\$]* ]] || die "the directory '$dir' has a space, a quote or one of ':;\$' in its name: choose another"

# Whether every user can enter it: enterable DIRECTORY
enterable() {
    local at=$1
    while [ $(($(stat -c %a "$at") % 2)) -eq 1 ]; do
        [ "$at" != / ] || return 0
        at=$(dirname "$at")
    done
    return 1
}
home=$dir
if [ "$(id -u)" -eq 0 ] && ! enterable "$dir"; then
    home=/var/cache/objmapper/vinyl-$branch-$(sha256sum <<<"$dir" | cut -c1-16)
fi
prefix=$home/prefix

# Bound to the script: when it changes, the directory is made again.
stamp="$pinned $(sha256sum <"$0" | cut -c1-16) $dir $home"
if [ -f "$dir/complete" ] && [ "$(head -n1 "$dir/complete")" = "$stamp" ] && [ -d "$home/bin" ]; then
    say "ready: $(sed -n 2p "$dir/complete") in $home"
    exit 0
fi

[ "${ID:-}" = debian ] || die "unsupported system '${PRETTY_NAME:-unknown}': the packages are Debian's"
rm -rf "$dir/complete" "$prefix" "$home/libc" "$home/bin" "$home/pkgconfig"
mkdir -p "$dir"/apt/{lists/partial,cache/archives/partial} "$dir/packages"

# apt with sources and a state of its own; the system's configuration (proxies, …) holds.
deb822_source "deb deb-src" "$release" >"$dir/apt/$release.sources" || exit 1
cat >"$dir/apt/apt.conf" <<CONF
Dir::State "$dir/apt";
Dir::State::lists "$dir/apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$dir/apt/cache";
Dir::Etc::sourcelist "$dir/apt/$release.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Sandbox::User "";
CONF
export APT_CONFIG=$dir/apt/apt.conf
quiet() {
    "$@" >"$dir/apt/log" 2>&1 || { cat "$dir/apt/log" >&2; die "$* failed (above)"; }
}
say "apt-get update for Debian $release, with a state of its own in $dir/apt"
quiet apt-get -q update

versions=$(apt-cache madison "${packages[0]}" | awk -F ' *[|] *' '$3 ~ /Packages/ { print $2 }')
version=$pinned
if ! grep -qxF "$pinned" <<<"$versions"; then
    version=$(grep -E "^${branch//./[.]}[.]" <<<"$versions" | sort -V | tail -n1 || true)
    [ -n "$version" ] ||
        die "Debian $release has no ${packages[0]} $branch any more, only: ${versions:-nothing}." \
            "Add its branch (DESIGN.md, \"Add a Varnish branch\"), or keep a copy of the packages of $pinned"
    say "Debian $release has ${packages[0]} $version instead of $pinned: taking that; set 'pinned' in scripts/setup-vinyl.sh"
fi

say "downloading ${packages[*]} $version, and $runtime"
(cd "$dir/packages" && rm -f ./*.deb && quiet apt-get -q download "${packages[@]/%/=$version}" "$runtime")
mkdir -p "$prefix" "$home/libc"
for p in "${packages[@]}"; do dpkg -x "$dir/packages/${p}_"*.deb "$prefix"; done
dpkg -x "$dir/packages/${runtime}_"*.deb "$home/libc"
rm -f "$dir"/packages/*.deb

api=$(echo "$prefix"/usr/lib/*/pkgconfig/vinylapi.pc)
libdir=${api%/pkgconfig/*}
loader=$(echo "$home"/libc/usr/lib*/ld-linux-*.so.* | cut -d' ' -f1)
[ -f "$api" ] && [ -x "$loader" ] || die "the packages are not what this script expects: no $api, or no $loader"

mkdir "$home/pkgconfig" "$home/bin"
sed "s|^prefix=.*|prefix=$prefix/usr|" "$api" >"$home/pkgconfig/vinylapi.pc"

# program NAME SCRIPT: vinylNAME and varnishNAME
program() {
    printf '#!/bin/bash\n%s\n' "$2" >"$home/bin/vinyl$1"
    chmod 755 "$home/bin/vinyl$1"
    ln -s "vinyl$1" "$home/bin/varnish$1"
}
for p in adm hist log ncsa stat top; do
    program "$p" "LD_LIBRARY_PATH=$libdir\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH} exec $prefix/usr/bin/vinyl$p \"\$@\""
done
# The C library that belongs to the loader, then ours, then the system's.
system=/usr/lib/$(basename "$libdir"):/lib/$(basename "$libdir")
program test \
    "exec $loader --library-path $(echo "$home"/libc/usr/lib/*-linux-gnu):$libdir:$system $prefix/usr/bin/vinyltest \"\$@\""
# vinyld looks for VMODs and VCL where its package would be installed. As root, its default jail needs a user whom only the
# installation makes; the installed Varnish has one.
# `-j` has to come first.
# shellcheck disable=SC2016 # that shell expands it
program d 'jail=()
case "${1:-}" in
-V | -x* | "") exec '"$prefix"'/usr/sbin/vinyld "$@" ;;
-j) jail=("$1" "$2"); shift 2 ;;
-j*) jail=("$1"); shift ;;
*) [ "$(id -u)" -ne 0 ] || id vinyl >/dev/null 2>&1 || jail=(-j unix,user=varnish) ;;
esac
exec '"$prefix"'/usr/sbin/vinyld "${jail[@]}" -p vmod_path='"$libdir"'/vinyl-cache/vmods \
    -p vcl_path=/etc/vinyl-cache:'"$prefix"'/usr/share/vinyl-cache/vcl "$@"'

cat >"$dir/env" <<ENV
export PATH="$home/bin:\$PATH"
export PKG_CONFIG_LIBDIR="$home/pkgconfig" PKG_CONFIG_PATH=
export APT_CONFIG="$dir/apt/apt.conf" # for the source package
ENV
name=$("$home/bin/vinyld" -V 2>&1 | sed -n 's/.*(\(vinyl-cache-[^ ]*\) .*/\1/p')
[ -n "$name" ] || die "$prefix/usr/sbin/vinyld does not run: $("$home/bin/vinyld" -V 2>&1 | head -n1)"
"$home/bin/vinyltest" -h >"$dir/apt/log" 2>&1 || grep -q '^usage' "$dir/apt/log" ||
    { cat "$dir/apt/log" >&2; die "$prefix/usr/bin/vinyltest does not run (above)"; }
printf '%s\n%s\n' "$stamp" "$name (Debian $version)" >"$dir/complete"
say "ready: $name (Debian $version) in $home"
