# shellcheck shell=sh
# Sourced by the other tools: install distribution packages, but only the missing ones, and refresh the
# package lists only when an installation does not work without it (one unrelated broken source must not
# stop a machine that already has everything).

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt_missing() {
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^[hi]i' || printf '%s ' "$package"
    done
}

apt_refresh() {
    echo "refreshing the package lists"
    as_root apt-get -qq update || echo "warning: some package sources could not be read" >&2
}

apt_need() {
    missing=$(apt_missing "$@")
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "please install, by the means of this distribution: $missing" >&2
        return 1
    fi
    echo "installing $missing"
    # shellcheck disable=SC2086  # a list of words
    apt_install $missing >/dev/null 2>&1 || { apt_refresh; apt_install $missing; }
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@"
}
