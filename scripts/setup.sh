#!/usr/bin/env bash
# Installs what the build, the tests and the demo need on Debian 12 or 13: a stock Varnish >= 7.7 with
# its headers, H2O, libclang for bindgen, pkg-config; and the packages that are given as arguments (nginx: for the
# benchmarks). Idempotent: what is there is left alone.
#
# Debian 12's own Varnish (7.1) cannot load a storage engine, so there Varnish comes from Debian 13's
# archive, and Debian 13 has no H2O any more, so there H2O comes from Debian 12's; both pinned at priority 100:
# nothing else moves unless it is asked for by release. The archive's address is the one that this system already uses.
set -euo pipefail

readonly need_varnish=7.7
# The release whose archive has what the system's own lacks: Debian 12's Varnish is too old, Debian 13 has no H2O.
readonly varnish_release=trixie
readonly h2o_release=bookworm

me=setup
# shellcheck source=scripts/lib/debian.sh
. "$(dirname "$0")/lib/debian.sh"

# All that can be refused is refused before anything is changed.
check_rust() {
    local need have
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
    export PATH="$PATH:${HOME:-/root}/.cargo/bin"
    command -v cargo >/dev/null ||
        die "cargo is missing: install Rust >= $need first, with Debian's package rustup ('rustup default stable') or from rustup.rs"
    have=$(rustc --version | awk '{ print $2 }')
    printf '%s\n%s\n' "$need" "$have" | sort -V -C ||
        die "Rust $have is too old: >= $need is needed; install it with Debian's package rustup ('rustup default stable') or from rustup.rs"
}
check_rust

if [ "$(id -u)" -eq 0 ]; then sudo=(); else
    command -v sudo >/dev/null || die "installing packages needs root: run as root, or install sudo"
    sudo=(sudo)
fi

case "${ID:-}:${VERSION_ID:-}" in
    debian:12|debian:13) ;;
    *) die "unsupported system '${PRETTY_NAME:-unknown}': supported are Debian 12 and 13." \
           "Elsewhere install Varnish >= $need_varnish with headers (libvarnishapi-dev), h2o, libclang and pkg-config by hand, then run 'make build'" ;;
esac

export DEBIAN_FRONTEND=noninteractive
apt_quiet() {
    local log; log=$(mktemp)
    # The debconf frontend talks too much; the log is shown only when something fails.
    if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1; then
        cat "$log" >&2; rm -f "$log"; die "apt-get $* failed (above)"
    fi
    rm -f "$log"
}
updated=
update_once() {
    [ -n "$updated" ] && return
    say "apt-get update"
    # A third-party source of this machine that does not answer is not ours to judge: go on if the
    # packages we need can be had all the same.
    "${sudo[@]}" apt-get -qq update >/dev/null 2>&1 || say "apt-get update reported errors; going on"
    updated=1
}

version_at_least() { dpkg --compare-versions "$1" ge "$2"; }
installed_version() { dpkg-query -W -f='${Version}' "$1" 2>/dev/null || true; }

# Makes the packages of another release of Debian available, at a priority at which nothing moves unless it is asked for.
add_release() {
    local release=$1
    local list=/etc/apt/sources.list.d/objmapper-$release.sources
    local source
    source=$(deb822_source "deb deb-src" "$release") || exit 1
    say "adding Debian $release (pinned at priority 100) in $list"
    printf '%s\n' "$source" | "${sudo[@]}" tee "$list" >/dev/null
    "${sudo[@]}" tee "/etc/apt/preferences.d/objmapper-$release" >/dev/null <<PIN
Package: *
Pin: release n=$release
Pin-Priority: 100
PIN
    updated=; update_once
}

install_varnish() {
    local have; have=$(installed_version varnish)
    local dev;  dev=$(installed_version libvarnishapi-dev)
    if [ -n "$have" ] && version_at_least "$have" $need_varnish && [ -n "$dev" ]; then return; fi
    update_once
    if [ "$VERSION_ID" = 12 ]; then
        add_release $varnish_release
        say "installing varnish and libvarnishapi-dev from Debian $varnish_release (libc6, base-files and the compiler's runtime libraries are upgraded with them)"
        apt_quiet install -t $varnish_release --no-install-recommends -y varnish libvarnishapi-dev
    else
        say "installing varnish and libvarnishapi-dev"
        apt_quiet install --no-install-recommends -y varnish libvarnishapi-dev
    fi
}

install_rest() {
    local missing=() p
    for p in h2o libclang-dev pkg-config make gcc libc6-dev python3 curl iproute2 ca-certificates xz-utils "$@"; do
        [ -n "$(installed_version "$p")" ] || missing+=("$p")
    done
    [ ${#missing[@]} -eq 0 ] && return
    update_once
    if [ "$VERSION_ID" = 13 ] && [ -z "$(installed_version h2o)" ]; then add_release $h2o_release; fi
    say "installing ${missing[*]}"
    apt_quiet install --no-install-recommends -y "${missing[@]}"
}

# Debian's packages start their services. The tests and the demo start programs of their own on ports of their own, so
# a service that came only with this run is stopped again; one that was here before is left alone.
readonly services=(varnish h2o nginx)
had_services=
for p in "${services[@]}"; do
    [ -n "$(installed_version "$p")" ] && had_services+=" $p "
done
stop_new_services() {
    [ -d /run/systemd/system ] || return 0
    local p
    for p in "${services[@]}"; do
        case "$had_services" in *" $p "*) continue ;; esac
        if systemctl is-enabled --quiet "$p" 2>/dev/null || systemctl is-active --quiet "$p" 2>/dev/null; then
            say "stopping and disabling the service $p that the package started"
            "${sudo[@]}" systemctl disable --now --quiet "$p"
        fi
    done
}

# In this order: once libc6 is Debian 13's, a compiler of Debian 12 cannot be added any more, only upgraded with it.
install_rest "$@"
install_varnish
stop_new_services
have=$(pkg-config --modversion varnishapi 2>/dev/null || true)
[ -n "$have" ] || die "pkg-config does not find varnishapi although libvarnishapi-dev is installed"
version_at_least "$have" $need_varnish || die "varnishapi $have is too old: >= $need_varnish is needed"
say "ready: Varnish $have, $(h2o --version 2>/dev/null | head -n1), $(cargo --version)"
