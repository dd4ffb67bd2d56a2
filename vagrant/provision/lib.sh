# shellcheck shell=sh disable=SC2034  # the scripts look at `changed`
# Sourced by the other scripts of this folder, which may be run again and again. SOURCE is the project's tree on the
# machine, LAB what the machines hand to each other.
SOURCE=${SOURCE:-/ipvsproxy}
LAB=${LAB:-/srv/lab}
# apt_need: packages that are installed already need no network.
# shellcheck source=tools/progress.sh
. "$SOURCE/tools/progress.sh"
# shellcheck source=tools/apt.sh
. "$SOURCE/tools/apt.sh"

say() { echo "${MACHINE:-lab}: $*"; }

put() {  # FILE: make standard input its content; `changed` is set if that was a change
    mkdir -p "$(dirname "$1")"
    cat >"$1.new"
    changed=no
    if cmp -s "$1.new" "$1"; then
        rm "$1.new"
    else
        mv "$1.new" "$1"
        changed=yes
        say "wrote $1"
    fi
}

set_line() {  # FILE KEY VALUE [LINES]: give a key of containerd's configuration another value; it must be there
    grep -q "^ *$2 = " "$1" || { say "$1 has no $2" >&2; return 1; }
    sed -i "${4:-}s|^\( *$2 = \).*|\1$3|" "$1"
}
