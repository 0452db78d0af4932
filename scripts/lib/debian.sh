# Sourced by the set-up scripts: messages, and what they ask of Debian's package manager.
# The sourcing script sets `me`, the name in front of its messages.

say() { printf '%s: %s\n' "$me" "$*"; }
die() { printf '%s: error: %s\n' "$me" "$*" >&2; exit 1; }

[ -r /etc/os-release ] || die "no /etc/os-release: this script knows Debian 12 and 13 only"
# shellcheck disable=SC1091
. /etc/os-release

# Debian's main archive at the address that this system already uses.
archive_address() {
    local site
    site=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -v r="${VERSION_CODENAME:-}" '$2 == r && $3 == "main" { print $1; exit }')
    [ -n "$site" ] || die "no source for Debian '${VERSION_CODENAME:-?}' main is configured; add one and run again"
    printf '%s\n' "$site"
}

# A source of packages for apt: deb822_source TYPES RELEASE
deb822_source() {
    local site
    # A failure within a command substitution does not end the script by itself.
    site=$(archive_address) || exit 1
    printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "$1" "$site" "$2" /usr/share/keyrings/debian-archive-keyring.gpg
}
