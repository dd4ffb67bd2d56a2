# shellcheck shell=sh
# Sourced by the other tools: what may take more than ten seconds reports what it does, and every ten seconds that it goes
# on. These are whole lines, on a terminal and in the log of a build server alike.

# What a running command has come to, in a few words: the last line of its log.
last_line() {
    tail -n 1 "$1" | tr -d '\r' | cut -c 1-160
}

# In the background, where SIGINT is ignored: it ends by itself, within a second, after the process has.
say_it_goes_on() {  # WHAT LOG PROCESS
    seconds=0
    while sleep 1 && kill -0 "$3"; do
        seconds=$((seconds + 1))
        [ $((seconds % ${PROGRESS_SECONDS:-10})) -eq 0 ] || continue
        state=$("${PROGRESS:-last_line}" "$2")
        echo "$1: $seconds s${state:+, $state}" >&3
    done
}

# Run a command whose output goes to a file. When it fails, the end of the file is shown. The status is the command's.
# PROGRESS names the function that tells what it has come to, called with the file.
with_progress() {  # WHAT LOG COMMAND...
    progress_what=$1
    progress_log=$2
    shift 2
    echo "$progress_what"
    : >"$progress_log"
    say_it_goes_on "$progress_what" "$progress_log" "$$" 3>&1 </dev/null >/dev/null 2>&1 &
    progress_pid=$!
    # Appended, so that the command may empty it.
    "$@" >>"$progress_log" 2>&1 && progress_status=0 || progress_status=$?
    kill "$progress_pid" 2>/dev/null || :
    wait "$progress_pid" 2>/dev/null || :
    [ "$progress_status" -eq 0 ] || tail -n 20 "$progress_log" >&2
    return "$progress_status"
}

# Two runs of a tool, such as one of `make guest` and one of `make integration`, follow each other.
one_at_a_time() {  # FILE
    mkdir -p "$(dirname "$1")"
    exec 9>"$1"
    flock --nonblock 9 || with_progress "waiting for another run of $(basename "$0")" "$1.log" flock 9
}
