# shellcheck shell=bash
# What every script here shares: strict mode, the repo root, messages, and the few things bash does not have.
#
# Sourced, never run. Sourcing it turns on strict mode and sets ROOT and CARGO_TARGET_DIR, and does nothing else: no process is
# started and no file is written.

set -euo pipefail
shopt -s inherit_errexit

# shellcheck disable=SC2034 # read by the scripts that source this file
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

# Outside the tree: a work tree stays small to copy and several checkouts share one build of the dependencies.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/lockstep/target}"

# Kafka 4 needs Java 17; the schema registry needs a newer one (scripts/registry.sh).
# shellcheck disable=SC2034 # read by the scripts that source this file
JAVA_VERSION_MIN=17

# Ports are picked below Linux's default range for outgoing connections (32768 up), so that no client can sit on the port of
# a server that is down for a moment.
PORT_MIN=20000
PORT_MAX=31999

# Longer than all downloads take on a slow line; who waits longer waits for something that hangs.
LOCK_SECONDS_MAX=600

# Everything made here is readable by the servers' user, except what is closed on purpose.
umask 022

# say TEXT: one line for the person at the terminal. stdout is kept for answers that other programs read.
say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# die TEXT [HINT...]: what was found, then what to type.
die() {
    local hint
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    shift
    for hint in "$@"; do
        printf '  help: %s\n' "$hint" >&2
    done
    exit 1
}

has() {
    command -v -- "$1" >/dev/null 2>&1
}

# run_as USER COMMAND...: directly when we are that user. Otherwise as root, with a clean environment and from /, because the
# caller's directory is often closed to other users.
run_as() {
    local user=$1
    shift
    if [[ $(id -un) == "$user" ]]; then
        "$@"
    else
        (cd / && setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --reset-env -- "$@")
    fi
}

# wait_until SECONDS COMMAND...: polls until COMMAND succeeds; fails when the time is over.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# port_taken PORT: does anyone on this machine listen there? Read from the kernel, since neither ss nor lsof is always there.
port_taken() {
    local port
    printf -v port '%04X' "$1"
    grep -qsE "^ *[0-9]+: [0-9A-F]+:$port [0-9A-F]+:[0-9A-F]{4} 0A " /proc/net/tcp /proc/net/tcp6
}

# free_port: prints a random port that nobody listens on right now. Whoever needs it to stay free has to remember it
# (scripts/services does).
free_port() {
    local port
    for _ in {1..100}; do
        port=$(shuf -i "$PORT_MIN-$PORT_MAX" -n 1)
        if ! port_taken "$port"; then
            printf '%s\n' "$port"
            return
        fi
    done
    die "no free port between $PORT_MIN and $PORT_MAX in 100 tries"
}

# services_user: who the servers run as. Postgres refuses to run as root, so root hands over to an unprivileged user.
services_user() {
    if ((EUID != 0)); then
        id -un
    elif id postgres >/dev/null 2>&1; then
        printf 'postgres\n'
    else
        printf 'lockstep-services\n'
    fi
}

# ensure_user USER: adds the servers' user where there is none; only root ever needs that.
ensure_user() {
    if ! id "$1" >/dev/null 2>&1; then
        say "adding the system user $1, because Postgres refuses to run as root"
        useradd --system --user-group --no-create-home --home-dir / --shell /usr/sbin/nologin "$1"
    fi
}

# reachable USER DIR: can that user enter DIR? A home under mode 700 is the usual reason why not.
reachable() {
    run_as "$1" test -x "$2"
}

# cache_dir USER: prints where downloads are kept, once per machine. USER must be able to run what is in there; when root's own
# cache is closed to it, the system's cache takes its place.
cache_dir() {
    local dir="${XDG_CACHE_HOME:-$HOME/.cache}/lockstep"
    mkdir -p -- "$dir"
    if ! reachable "$1" "$dir"; then
        dir=/var/cache/lockstep
        mkdir -p -- "$dir"
    fi
    printf '%s\n' "$dir"
}

# with_cache_lock CACHE COMMAND...: one at a time per machine. The lock is descriptor 8; what outlives us must not inherit it.
with_cache_lock() {
    local cache=$1
    shift
    (flock -w "$LOCK_SECONDS_MAX" 8 || die "another download holds $cache/lock" && "$@") 8>"$cache/lock"
}

# java_version JAVA: prints its major version, or 0 if it does not run.
java_version() {
    local text
    text=$("$1" -version 2>&1) || { echo 0 && return; }
    [[ $text =~ version\ \"([0-9]+) ]] && echo "${BASH_REMATCH[1]}" || echo 0
}

# find_java CACHE USER [VERSION]: prints the first java that USER can run and that is new enough: the user's choice, the
# system's, then the one that scripts/setup downloaded. Fails if there is none.
find_java() {
    local java min=${3:-$JAVA_VERSION_MIN}
    for java in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} "$(command -v java || true)" /usr/lib/jvm/*/bin/java "$1/jdk/bin/java"; do
        if run_as "$2" test -x "$java" && (($(java_version "$java") >= min)); then
            readlink -f -- "$java"
            return
        fi
    done
    return 1
}
