# Shared by the rig's scripts: folders, names, small helpers. Sourced, never run.
# Everything that runs lives in $RUN (short path: unix sockets allow 107 bytes), everything big in $RIG,
# what may be reused by other clones (images as tar files) in $CACHE.
set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RIG=$ROOT/.rig
ID=$(printf %s "$ROOT" | sha256sum | cut -c1-8)
RUN=/tmp/kiln-rig-$ID
CACHE=${KILN_RIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kiln-rig}
IMAGE=kiln-test/debian:bookworm
BUSYBOX=kiln-test/busybox:1
BRIDGE=kiln$ID

say() { printf 'rig: %s\n' "$*" >&2; }
die() { printf 'rig: error: %s\n' "$*" >&2; exit 1; }

# Start time of a process in clock ticks: with the pid it names one process for ever.
start_time() { [ -r "/proc/$1/stat" ] && sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# note_pid NAME PID: remembers a process that the rig started.
note_pid() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$RUN/$1.pid"; }

# running NAME: prints its pid and succeeds if the process that was noted still runs.
running() {
  local pid since
  [ -f "$RUN/$1.pid" ] && read -r pid since <"$RUN/$1.pid" && [ -n "$since" ] && [ "$(start_time "$pid")" = "$since" ] && echo "$pid"
}

# stop NAME SIGNAL SECONDS: ends that process and no other.
stop() {
  local pid i
  pid=$(running "$1") || { rm -f "$RUN/$1.pid"; return 0; }
  kill -"$2" "$pid" 2>/dev/null || true
  for ((i = 0; i < $3 * 10; i++)); do
    running "$1" >/dev/null || break
    sleep 0.1
  done
  if running "$1" >/dev/null; then
    say "$1 (pid $pid) did not stop within $3 s: killed"
    kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$RUN/$1.pid"
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
  local i limit=$1
  shift
  for ((i = 0; i < limit * 10; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  return 1
}

free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return 0; }
  done
  die "no free port found between 20000 and 32000"
}

# The newest Postgres server that is installed.
pg_bin() {
  local bin
  bin=$(find /usr/lib/postgresql/*/bin -name initdb 2>/dev/null | sort -V | tail -n 1)
  [ -n "$bin" ] && dirname "$bin"
}

# docker, aimed at the engine that the tests use.
engine() { DOCKER_HOST=${KILN_TEST_DOCKER:-unix://$RUN/docker.sock} DOCKER_CONFIG=$RUN/docker-config docker "$@"; }

# `exec 9>&-`: daemons must not inherit the lock.
lock() {
  mkdir -p "$RUN"
  exec 9>"$RUN/lock"
  flock -w 900 9 || die "another rig script of this folder runs for more than 15 minutes (lock $RUN/lock)"
}
