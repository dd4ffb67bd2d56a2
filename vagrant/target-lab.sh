# shellcheck shell=sh disable=SC2034  # A, B and IMAGE are for the script that sources this
# Sourced by tour.sh: the target is the namespace lab. tests/lab/tour.py, which has built it and started this
# script, answers one line at a time: words in through the pipe LAB/requests, lines and ". STATUS" back through LAB/replies.
A=node1
B=node2
IMAGE=none
exec 3>"$LAB/requests" 4<"$LAB/replies"

call() {
    printf '%s\n' "$*" >&3
    while IFS= read -r reply <&4; do
        case $reply in
            '. '*) return "${reply#. }" ;;
            *) printf '%s\n' "$reply" ;;
        esac
    done
    return 1
}

apply() {
    file=$(mktemp)
    cat >"$file"
    call apply "$file"
    rm "$file"
}

prepare() { :; }
namespace() { call namespace "$@"; }
tenant_dns() { call tenant_dns "$@"; }
finish() { :; }
wait_for_pods() { :; }
field() { call field "$@"; }
load_balance() { call load_balance "$@"; }
address() { call address "$@"; }
addresses() { call addresses "$@"; }
ask() { call ask "$@"; }
route() { call route "$@"; }
look_up() { call look_up "$@"; }
on() { call on "$@"; }
proxy() { call proxy "$@"; }
hairpin_mode() { call hairpin_mode "$@"; }
