#!/usr/bin/env bash
# The containers of docker-compose.yml for real: builds the image, runs the demo on a master and two workers, looks at
# what master, workers and volume say about it, and runs it again to see that what stands is reused.
#
# Uses the Docker engine that answers. Where none does, root on Debian or Ubuntu gets one of its own for the duration:
# engine and docker-compose by apt, and Debian's own files in place of the public base image where that cannot be pulled.
#   HEADRACE_TEST_ENGINE   folder that keeps such an engine's images, so that the next run need not build them again
#   HEADRACE_TEST_WHEELS   folder of wheels for the build (pip's find-links); may hold folders of ~/.cache/headrace/wheels
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly BASE=python:3.11-slim-bookworm WORKERS=2 RUN_LIMIT_S=3600
readonly PROJECT="headrace-test-$$"
readonly AUTHORITIES=/etc/ssl/certs/ca-certificates.crt
scratch="$(mktemp -d)"
docker=docker
compose_files=(-f docker-compose.yml)
build_options=()
times=()
wheels_image=''
engine_pid=''
forward_policy=''
forwarding=''
had_bridge=''
began_s=$SECONDS

main() {
    trap clean_up EXIT
    trap 'echo "compose test: line $LINENO failed: $BASH_COMMAND" >&2' ERR
    trap 'exit 130' INT TERM
    find_engine
    timed "base image" provide_base
    offer_wheels
    offer_authorities
    export HEADRACE_IMAGE="$PROJECT"
    timed "image" build
    HEADRACE_MASTER_PORT="$(free_port)"
    HEADRACE_JOB_PORT="$(free_port)"
    export HEADRACE_MASTER_PORT HEADRACE_JOB_PORT
    timed "first run, $WORKERS workers" first_run
    check_result "$scratch/first.log"
    check_cluster
    check_volume
    timed "second run" second_run
    check_result "$scratch/second.log"
    check_reuse "$scratch/second.log"
    summary
}

# --- engine, base image and what this machine brings to the build

find_engine() {
    if ! docker info >/dev/null 2>&1; then
        start_engine
    fi
    compose_command=(docker-compose)
    if "$docker" compose version >/dev/null 2>&1; then
        compose_command=("$docker" compose)
    fi
    say "engine $("$docker" version --format '{{.Server.Version}}'), ${compose_command[*]} $(
        "${compose_command[@]}" version --short
    )"
}

start_engine() {
    [[ "$(id -u)" -eq 0 ]] || fail "no Docker engine answers: start one, or run this as root on Debian or Ubuntu"
    command -v apt-get >/dev/null || fail "no Docker engine answers, and there is no apt-get to install one with: start one"
    install_missing dockerd docker.io
    install_missing docker-compose docker-compose
    install_missing iptables iptables
    local root="${HEADRACE_TEST_ENGINE:-$scratch/engine}"
    mkdir -p "$root"
    root="$(realpath "$root")"
    docker=/usr/bin/docker # the engine's own client: another one earlier on the path may want plugins
    export DOCKER_HOST="unix://$scratch/docker.sock" DOCKER_BUILDKIT=1
    forward_policy="$(iptables -S FORWARD | awk '$1 == "-P" { print $3 }')"
    forwarding="$(cat /proc/sys/net/ipv4/ip_forward)"
    [[ ! -e /sys/class/net/docker0 ]] || had_bridge=yes
    # setsid: an interrupt must leave it alone until the containers are gone.
    setsid nohup dockerd --data-root "$root" --exec-root "$scratch/exec" --pidfile "$scratch/engine.pid" \
        -H "$DOCKER_HOST" >"$scratch/engine.log" 2>&1 &
    engine_pid=$!
    local tries
    for ((tries = 0; tries < 120; tries++)); do
        ! "$docker" info >/dev/null 2>&1 || return 0
        kill -0 "$engine_pid" 2>/dev/null || break
        sleep 1
    done
    tail -n 20 "$scratch/engine.log" >&2
    fail "the Docker engine did not start: the end of its log is above"
}

install_missing() { # install_missing PROGRAM PACKAGE
    command -v "$1" >/dev/null && return
    say "installing $2"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

provide_base() {
    "$docker" image inspect "$BASE" >/dev/null 2>&1 && return
    "$docker" pull --quiet "$BASE" >/dev/null 2>"$scratch/pull.log" && return
    [[ -n "$engine_pid" ]] || fail "cannot pull $BASE: $(tail -n 1 "$scratch/pull.log")"
    say "cannot pull $BASE, so it is made from Debian's packages (some minutes)"
    install_missing debootstrap debootstrap
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$scratch/base" \
        >"$scratch/debootstrap.log" || fail "debootstrap failed: $(tail -n 3 "$scratch/debootstrap.log")"
    ln -s python3 "$scratch/base/usr/bin/python"
    tar -C "$scratch/base" -c . | "$docker" import --change 'CMD ["python3"]' - "$BASE" >/dev/null
    rm -rf "$scratch/base"
}

offer_wheels() { # pip's find-links of this machine as an image that the Dockerfile takes wheels from
    local folders folder found=()
    folders="${HEADRACE_TEST_WHEELS:-${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}}"
    for folder in $folders; do
        [[ ! -d "$folder" ]] || found+=("$folder")
    done
    [[ ${#found[@]} -gt 0 ]] || return 0
    mkdir -p "$scratch/context/wheels"
    for folder in "${found[@]}"; do
        cp -rLn "$folder/." "$scratch/context/wheels/"
    done
    wheels_image="$PROJECT-wheels"
    # Owner, order and dates are set, so that the same wheels are the same layer the next time.
    tar -C "$scratch/context" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -c wheels |
        "$docker" import - "$wheels_image" >/dev/null
    rm -rf "$scratch/context"
    build_options+=(--build-arg "WHEELS=$wheels_image")
}

offer_authorities() { # where this machine trusts more certificate authorities than Debian does, so must the containers
    [[ -n "$(find /usr/local/share/ca-certificates -name '*.crt' -print -quit 2>/dev/null)" ]] || return 0
    build_options+=(--secret "id=ca,src=$AUTHORITIES")
    printf 'services:\n  trainer:\n    volumes:\n      - %s:%s:ro\n' "$AUTHORITIES" "$AUTHORITIES" >"$scratch/authorities.yml"
    compose_files+=(-f "$scratch/authorities.yml")
}

build() {
    local setting
    for setting in HEADRACE_TORCH_INDEX_URL PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
        [[ -z "${!setting:-}" ]] || build_options+=(--build-arg "$setting=${!setting}")
    done
    DOCKER_BUILDKIT=1 "$docker" build --progress plain "${build_options[@]}" -t "$HEADRACE_IMAGE" . \
        >"$scratch/build.log" 2>&1 && return
    tail -n 40 "$scratch/build.log" >&2
    fail "the image cannot be built: the end of its log is above"
}

# --- the two runs

first_run() {
    compose up -d --no-build --scale "spark-worker=$WORKERS" >"$scratch/up.log" 2>&1 || {
        cat "$scratch/up.log" >&2
        fail "compose up failed: its output is above"
    }
    local trainer code
    trainer="$(compose ps -q -a trainer 2>/dev/null || compose ps -q trainer)"
    code="$(timeout "$RUN_LIMIT_S" "$docker" wait "$trainer")" || code="none after $RUN_LIMIT_S s"
    "$docker" logs "$trainer" >"$scratch/first.log" 2>&1
    [[ "$code" == 0 ]] || fail_with_log "the trainer's exit code is $code, not 0" "$scratch/first.log"
}

second_run() { # `run`, so that steps given by hand are seen to work too; --no-deps: the cluster stands
    timeout "$RUN_LIMIT_S" "${compose_command[@]}" "${compose_files[@]}" -p "$PROJECT" run --rm -T --no-deps trainer \
        >"$scratch/second.log" 2>&1 </dev/null || fail_with_log "the second run's exit code is $?" "$scratch/second.log"
}

# --- what must hold

check_result() { # check_result LOG: the demo came to its end and printed its tables
    local line
    for line in 'Row ledger' '100,000 accepted' 'ndcg@10' 'two_tower' 'demo: done in'; do
        grep -qF "$line" "$1" || fail_with_log "the demo did not print '$line'" "$1"
    done
}

check_cluster() {
    curl_json "http://127.0.0.1:$HEADRACE_MASTER_PORT/json/" >"$scratch/master.json"
    local worker
    for worker in $(compose ps -q spark-worker); do
        "$docker" exec "$worker" python -c \
            'import urllib.request; print(urllib.request.urlopen("http://localhost:8081/json/").read().decode())' \
            >"$scratch/worker-$worker.json"
    done
    python3 - "$WORKERS" "$scratch/master.json" "$scratch"/worker-*.json <<'PYTHON' || fail "the cluster did not do the work"
import json
import sys
from pathlib import Path

num_workers, master, *workers = int(sys.argv[1]), *(json.loads(Path(path).read_text()) for path in sys.argv[2:])
done = {app["id"]: app["name"] for app in master["completedapps"] if app["state"] == "FINISHED"}
held = [{executor["appid"] for executor in worker["finishedexecutors"]} for worker in workers]
wrong = []
if master["aliveworkers"] != num_workers or len(workers) != num_workers:
    wrong.append(f"{master['aliveworkers']} workers alive, not {num_workers}")
if sorted(done.values()) != ["headrace ingest", "headrace prepare"]:
    wrong.append(f"the master saw {sorted(done.values())}, not one ingest and one prepare")
wrong += [f"worker {number} had no executor of {set(done) - apps}" for number, apps in enumerate(held) if set(done) - apps]
for line in wrong:
    print(line, file=sys.stderr)
print(f"    master: {', '.join(done.values())}, each with executors on all {len(held)} workers")
sys.exit(bool(wrong))
PYTHON
}

curl_json() { python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=30).read().decode())' "$1"; }

check_volume() { # what the trainer published is in the volume that the workers mount
    compose exec -T spark-worker python -c \
        'import json; m = json.load(open("/data/demo/snapshot/manifest.json")); assert m["kind"] == "snapshot", m["kind"]' \
        </dev/null || fail "no manifest of the snapshot in the volume"
    compose exec -T spark-worker headrace check /data/demo/snapshot </dev/null >"$scratch/check.log" 2>&1 ||
        fail_with_log "the snapshot in the volume is not whole" "$scratch/check.log"
}

check_reuse() { # check_reuse LOG: raw log, two Spark jobs and two runs were found done
    local line
    for line in 'raw holds ml-100k already' 'ingest: /data/demo/events stands already' \
        'prepare: /data/demo/snapshot stands already' '/data/demo/two_tower stands already' \
        '/data/demo/matrix_factorisation stands already'; do
        grep -qF "$line" "$1" || fail_with_log "the second run did not reuse: no '$line'" "$1"
    done
}

summary() {
    local size
    size="$("$docker" image inspect --format '{{.Size}}' "$HEADRACE_IMAGE")"
    sed -n '/Row ledger/,/demo: done in/p' "$scratch/first.log"
    printf '%s\n' '' "${times[@]}"
    echo "image: $((size / 1000000)) MB"
    echo "passed in $((SECONDS - began_s)) s: exit code 0 twice, executors on $WORKERS workers, whole snapshot, reuse"
}

# --- means

compose() { "${compose_command[@]}" "${compose_files[@]}" -p "$PROJECT" "$@"; }

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

timed() { # timed WHAT COMMAND...
    local what="$1" start_s=$SECONDS
    shift
    say "$what"
    "$@"
    times+=("$what: $((SECONDS - start_s)) s")
}

say() { echo "compose test: $*"; }

fail() {
    echo "compose test: $*" >&2
    exit 1
}

fail_with_log() { # fail_with_log WHAT LOG
    tail -n 60 "$2" >&2
    compose ps >&2 || true
    fail "$1: the end of its log is above"
}

clean_up() {
    local code=$?
    set +e
    trap '' INT TERM
    if [[ -n "${compose_command[*]:-}" && -n "${HEADRACE_IMAGE:-}" ]]; then
        compose down -v --remove-orphans -t 5 >/dev/null 2>&1
        "$docker" image rm -f "$HEADRACE_IMAGE" ${wheels_image:+"$wheels_image"} >/dev/null 2>&1
    fi
    [[ -z "$engine_pid" ]] || stop_engine
    rm -rf "$scratch"
    exit "$code"
}

stop_engine() {
    kill "$engine_pid" 2>/dev/null
    wait "$engine_pid" 2>/dev/null
    local mount
    while read -r mount; do umount "$mount"; done < <(awk -v root="$scratch/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort -r)
    [[ -n "$had_bridge" ]] || ip link delete docker0 2>/dev/null
    [[ -z "$forward_policy" ]] || iptables -P FORWARD "$forward_policy"
    [[ "$forwarding" != 0 ]] || echo 0 >/proc/sys/net/ipv4/ip_forward
}

main
