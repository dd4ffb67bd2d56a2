# shellcheck shell=sh
# Sourced by the other tools, after progress.sh: install distribution packages, but only the missing ones, and refresh
# the package lists only when an installation does not work without it (one unrelated broken source must not stop a
# machine that already has everything).

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt_missing() {
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^[hi]i' || printf '%s ' "$package"
    done
}

# Who holds the lock that a program of apt, or the dpkg that it started, did not get; nothing if it failed for another
# reason.
apt_lock_holder() {
    sed -n -e 's/^E: Could not get lock //p' -e 's/^dpkg: error: \(.* lock was locked by .*\)/\1/p' "$apt_log" |
        head -n 1
}

# While another program holds a lock, as on each new virtual machine that still updates itself, try again. (apt's own
# DPkg::Lock::Timeout waits for the locks of dpkg, not for those of lists and archives.) 75 means that it took too long.
apt_wait() {  # COMMAND...
    waited=0
    until "$@"; do
        holder=$(apt_lock_holder)
        [ -n "$holder" ] || return 1
        [ "$waited" -lt "${APT_WAIT_SECONDS:-1800}" ] || return 75
        echo "waiting for another package manager: $holder" >"$apt_log"
        sleep 5
        waited=$((waited + 5))
    done
}

apt_do() {  # WHAT COMMAND...
    apt_what=$1
    shift
    apt_log=$(mktemp)
    with_progress "$apt_what" "$apt_log" apt_wait "$@" && apt_status=0 || apt_status=$?
    rm -f "$apt_log"
    return "$apt_status"
}

# Its messages are read, so they must be in English.
apt_get() {
    as_root env LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 "$@"
}

apt_refresh() {
    apt_do "refreshing the package lists" apt_get update ||
        echo "warning: some package sources could not be read" >&2
}

apt_install() {
    apt_do "installing $*" apt_get --no-install-recommends install "$@"
}

apt_need() {
    missing=$(apt_missing "$@")
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "please install, by the means of this distribution: $missing" >&2
        return 1
    fi
    # shellcheck disable=SC2086  # a list of words
    apt_install $missing 2>/dev/null || {
        [ $? -ne 75 ] || { echo "the package manager was busy for too long to install: $missing" >&2; return 75; }
        apt_refresh
        apt_install $missing
    }
}

# shellcheck disable=SC2034  # for those who source this
# nftables: the lab plays other programs of a node with it; the proxy only uses the library.
LAB_PACKAGES="python3 python3-venv python3-nftables nftables iproute2 iputils-ping kmod ca-certificates"
# shellcheck disable=SC2034
# What kube-proxy calls and ipvsproxy never does: tests leave a node with it as kube-proxy would.
KUBE_PROXY_PACKAGES="iptables ipset ipvsadm"

# The programs of apt, as they are, or where SUITE names one of Debian's suites (trixie, bookworm-backports) with that as
# their only source. Its lists are kept below .cache: those of this machine stay as they are.
APT_OF=$PWD/.cache/apt
apt_of() {
    program=$1
    shift
    [ -n "${SUITE:-}" ] || { "$program" "$@"; return; }
    "$program" -o Dir::Etc::SourceList="$APT_OF/$SUITE/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$APT_OF/$SUITE/lists" -o Dir::Cache="$APT_OF/$SUITE/cache" "$@"
}

apt_of_get() {
    (export LC_ALL=C.UTF-8; apt_of apt-get -q -o Acquire::Retries=3 "$@")
}

# The archive of Debian that this machine has its packages from; nothing on other distributions.
apt_mirror() {
    # shellcheck disable=SC2016  # apt's own words
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1
}

# debootstrap, which knows an archive of its own.
debian_root() {
    # shellcheck disable=SC2086  # no word at all when it is empty
    as_root debootstrap --variant=minbase "$@" ${IPVSPROXY_MIRROR:-}
}

apt_of_refresh() {
    [ -n "${SUITE:-}" ] || { apt_refresh; return; }
    mirror=${IPVSPROXY_MIRROR:-$(apt_mirror)}
    [ -n "$mirror" ] || { echo "IPVSPROXY_MIRROR must name an archive of Debian, for $SUITE" >&2; return 1; }
    mkdir -p "$APT_OF/$SUITE/lists/partial" "$APT_OF/$SUITE/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $SUITE main" \
        >"$APT_OF/$SUITE/sources.list"
    apt_do "reading the package lists of $SUITE" apt_of_get update
}

# The value of IPVSPROXY_KERNEL as a suite: `backports` are those for this release of Debian.
suite_of() {
    # shellcheck source=/dev/null
    case $1 in
        backports) (. /etc/os-release && echo "$VERSION_CODENAME-backports") ;;
        *) echo "$1" ;;
    esac
}
