#!/usr/bin/env bash
# Builds the image and tries the Compose services for real: a sweep, a champion, its service, labels, a lost worker,
# a lost head, Prometheus. Prints a line for each step, and figures at the end; removes all that it started.
#   bash infra/check.sh    about 20 minutes on two cores besides the build; needs Docker, Compose (1.29 or 2) and curl
# Options:
#   --no-build    use the image FSS_IMAGE as it is
#   --keep        leave containers, volumes and the folder CHECK_DIR in place
#   --drop-image  remove the image at the end
# Variables, all optional:
#   FSS_IMAGE      name of the image (fss:check)
#   BUILD_OPTIONS  more options of `docker build`, such as "--network host" or "--build-arg TORCH_INDEX=URL"
#   COMPOSE        the Compose command ("docker compose", else "docker-compose")
#   PROMETHEUS     a Prometheus binary of this machine, such as Debian's, to run in place of the image prom/prometheus
#   CHECK_DIR      folder for secrets while it runs, and for check.log (out/check)
#   CHECK_WAIT_S   seconds that a step may wait for something (600)
# The project is called fss-check, so a project fss with its volumes stays as it is; but both use ports 5000, 8000, 8265
# and 8333 of this machine, so the other one must be down.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."

image=${FSS_IMAGE:-fss:check} project=fss-check wait_s=${CHECK_WAIT_S:-600}
folder=${CHECK_DIR:-out/check}
log=/dev/null build=yes keep='' drop_image='' files=(-f compose.yaml)

# ---- steps, figures, the end

step='checking what is needed' began='' sampler='' figures=()

run() { # run NAME COMMAND...: one step, its output in the log
    step=$1 began=$EPOCHREALTIME
    shift
    printf '== %s\n' "$step" >>"$log"
    "$@" >>"$log" 2>&1
    took=$(seconds "$began")
    printf '%7.1f s  %s\n' "$took" "$step"
}
seconds() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }
figure() { figures+=("$(printf '%-46s %s' "$1" "$2")"); }
fail() { echo "error: $1" >&2; exit 1; } # before anything is started
until_true() { # until_true WHAT COMMAND...: wait for it
    local what=$1 deadline=$((SECONDS + wait_s))
    shift
    until "$@"; do
        if ((SECONDS > deadline)); then
            echo "not in $wait_s s: $what"
            return 1
        fi
        sleep 1
    done
}
end() {
    [ -z "$sampler" ] || kill "$sampler" 2>/dev/null || true
    if [ -n "$keep" ]; then
        echo "kept: project $project, $folder"
        return
    fi
    if [ -d "$folder/infra" ]; then
        docker ps -aq --filter "label=com.docker.compose.project=$project" | xargs -r docker rm -f >>"$log" 2>&1 || true
        compose --profile champion --profile monitoring down -v --remove-orphans >>"$log" 2>&1 || true
        rm -rf "$folder/infra"
    fi
    [ -z "$drop_image" ] || docker image rm "$image" >>"$log" 2>&1 || true
}
at_exit() {
    local code=$?
    if [ "$code" -ne 0 ]; then
        echo "error: $step: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c1-300 || true) (log: $log)" >&2
        docker ps -a --filter "label=com.docker.compose.project=$project" >>"$log" 2>&1 || true
        [ ! -d "$folder/infra" ] || compose logs --no-color --tail=40 >>"$log" 2>&1 || true
    fi
    end
    exit "$code"
}

# ---- what is needed

read_options() {
    local option
    for option in "$@"; do
        case $option in
            --no-build) build='' ;;
            --keep) keep=yes ;;
            --drop-image) drop_image=yes ;;
            -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
            *) echo "error: unknown option $option (see --help)" >&2; exit 2 ;;
        esac
    done
}
need() { # Docker, Compose, curl, free ports
    local port
    command -v docker >/dev/null || fail 'docker is not installed'
    docker info >/dev/null 2>&1 || fail 'the Docker daemon does not answer (docker info)'
    command -v curl >/dev/null || fail 'curl is not installed'
    if [ -z "${COMPOSE:-}" ]; then
        if docker compose version >/dev/null 2>&1; then COMPOSE='docker compose'
        elif command -v docker-compose >/dev/null; then COMPOSE=docker-compose
        else fail 'neither docker compose nor docker-compose is installed'; fi
    fi
    for port in 5000 8000 8265 8333; do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then fail "port $port of this machine is in use"; fi
    done
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    log=$folder/check.log
    : >"$log"
}
compose() { # shellcheck disable=SC2086 # COMPOSE may be two words
    (cd "$folder/infra/compose" && FSS_IMAGE=$image $COMPOSE -p "$project" "${files[@]}" "$@")
}
prepare() { # a copy of the files, with secrets of its own
    rm -rf "$folder/infra"
    mkdir -p "$folder/infra"
    tar -c --exclude=secrets --exclude=.env -C infra compose monitoring kuberay | tar -x -C "$folder/infra"
    sh "$folder/infra/compose/make_secrets.sh"
    if [ -n "${PROMETHEUS:-}" ]; then
        files+=(-f prometheus.yaml)
        cat >"$folder/infra/compose/prometheus.yaml" <<YAML
services:
  prometheus:
    image: $image
    user: "0"
    entrypoint: [/opt/prometheus]
    working_dir: /prometheus
    volumes: ["$(realpath "$PROMETHEUS"):/opt/prometheus:ro"]
YAML
    fi
}

# ---- the cluster

secret() { cat "$folder/infra/compose/secrets/$1"; }
containers() { # containers SERVICE: their ids; not those of `compose run`
    docker ps -q --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.oneoff=False \
        --filter "label=com.docker.compose.service=$1"
}
api() { # api PATH: an answer of the head's dashboard, on the published port
    curl -fsS --max-time 10 -H "Authorization: Bearer $(secret ray_token)" "http://127.0.0.1:8265$1"
}
alive() { api /api/v0/nodes | grep -o '"state": *"ALIVE"' | wc -l; }
has_nodes() { [ "$(alive 2>/dev/null)" = "$1" ]; }
up() { compose up -d --no-recreate --scale ray-worker=2; }
healthy() {
    until_true 'three Ray nodes' has_nodes 3
    until_true 'MLflow' curl -fsS -o /dev/null http://127.0.0.1:5000/health
}
start() {
    up
    healthy
}
client() { docker exec -e RAY_API_SERVER_ADDRESS=http://ray-head:8265 "$project-client" "$@"; }
start_client() { # a container that is neither head nor worker, for the commands of a person
    compose run -d --no-deps --name "$project-client" ray-worker sleep infinity
    client fss submit --id doctor --working-dir '' doctor
}
submit() { # submit ID COMMAND...: followed to its end
    local id=$1
    shift
    client fss submit --id "$id" --working-dir '' "$@"
}
submit_only() {
    local id=$1
    shift
    client fss submit --id "$id" --working-dir '' --no-follow "$@"
}
follow() { client fss jobs logs "$1" --follow; }
sample_memory() { # container and memory without the cache of files, every few seconds
    while :; do
        docker stats --no-stream --format '{{.Name}} {{.MemUsage}}' >>"$folder/memory.txt" 2>/dev/null || true
        sleep 2
    done
}
peak() { # peak SERVICE: GiB, the most of any of its containers
    awk -v s="$1" '$1 ~ s { v = $2; f = v ~ /GiB/ ? 1 : v ~ /MiB/ ? 1 / 1024 : 0; sub(/[A-Za-z]+/, "", v); v *= f
        if (v > m) m = v } END { printf "%.2f GiB", m }' "$folder/memory.txt"
}
lose() { # lose CONTAINER: as if its machine were gone, with all files on it
    docker rm -f "$1"
}

# ---- the work, as small as it can be while all parts take part

chunk=2 # photos of a part
recipe=(--recipe debug --set data.source.images=1200 --set 'sweep.folds=[0, 1, 2, 3]' --set train.steps=60
    --set train.checkpoint_every=10 --set train.log_every=10 --set project=check --set "label.chunk=$chunk"
    --set calibrate.sets=0)
labelling=(label "${recipe[@]}" --workspace s3://fss/champion --images s3://fss/photos
    --supports s3://fss/supports/supports.json)
python_() { docker exec -i "$project-client" python - "$@"; }

wait_for_files() { # wait_for_files URL TEXT COUNT: until so many names below URL contain TEXT
    python_ "$@" "$wait_s" <<'PY'
import sys
import time

from pipelines.base.storage import Store

url, text, count, wait_s = sys.argv[1:]
deadline = time.monotonic() + float(wait_s)
while sum(text in name for name in Store(url).list()) < int(count):
    if time.monotonic() > deadline:
        sys.exit(f"not in {wait_s} s: {count} files {text!r} in {url}")
    time.sleep(0.3)
PY
}
same_results() { # same_results WORKSPACE WORKSPACE: runs, bundles, scores and lists are equal; prints how many
    python_ "$@" <<'PY'
import sys

from pipelines.base.storage import Store

found = []
for workspace in sys.argv[1:]:
    store = Store(workspace + "/runs")
    rows = {n.split("/")[0]: store.read_json(n) for n in store.list(suffix="/result.json")}
    found.append({run: (r["bundle_id"], r["miou"], r["list_hash"]) for run, r in rows.items()})
if not found[0] or found[0] != found[1]:
    sys.exit(f"results differ: {found}")
print(len(found[0]))
PY
}
same_parts() { # same_parts LABELS LABELS: the parts are equal, byte by byte; prints how many
    python_ "$@" <<'PY'
import sys

from pipelines.base.storage import Store

first, second = map(Store, sys.argv[1:])
parts = first.list("parts")
if not parts or parts != second.list("parts"):
    sys.exit(f"{len(parts)} parts and {len(second.list('parts'))}")
if different := [p for p in parts if first.read_bytes(p) != second.read_bytes(p)]:
    sys.exit(f"{len(different)} of {len(parts)} parts differ, the first is {different[0]}")
print(len(parts))
PY
}
rate() { # rate LABELS: photos a second between the first part and the last
    python_ "$1" "$chunk" <<'PY'
import sys

from pipelines.base.storage import Store

store = Store(sys.argv[1])
times = sorted(store.fs.modified(store.path(part)).timestamp() for part in store.list("parts"))
print(f"{int(sys.argv[2]) * (len(times) - 1) / max(1e-3, times[-1] - times[0]):.1f}")
PY
}
photos() { # writes held-out photos and marked ones; prints how many photos there are
    python_ <<'PY'
from jobs.demo_inputs import choose_class, write_photos, write_supports
from pipelines.base.workspace import Workspace
from pipelines.data.shardset import Shards

shards = Shards(Workspace("s3://fss/champion").shards("shapes"))
write_supports(shards, choose_class(shards), "s3://fss/supports")
print(write_photos(shards, "s3://fss/photos"))
PY
}
ask_prometheus() { # prints the number of series, of the dashboard's expressions that had data, and of all of these
    docker cp infra/monitoring/grafana/dashboards/fss.json "$project-client:/tmp/dashboard.json"
    python_ "$wait_s" <<'PY'
import json
import sys
import time
import urllib.parse
import urllib.request

with open("/tmp/dashboard.json") as file:
    expressions = [target["expr"] for panel in json.load(file)["panels"] for target in panel["targets"]]


def ask(expr, kind="query", **span):
    url = f"http://prometheus:9090/api/v1/{kind}?" + urllib.parse.urlencode({"query": expr, **span})
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)["data"]["result"]


deadline = time.monotonic() + float(sys.argv[1])
while [row["value"][1] for row in ask("up")].count("1") < 3:
    if time.monotonic() > deadline:
        sys.exit(f"Prometheus reaches fewer than three nodes: {ask('up')}")
    time.sleep(1)
hours = {"start": time.time() - 10_000, "end": time.time(), "step": 5}  # a sweep's metrics end with it
silent = [expr for expr in expressions if not ask(expr, "query_range", **hours)]
for expr in silent:
    print("no data:", expr)
print(ask('count({job="ray"})')[0]["value"][1], len(expressions) - len(silent), len(expressions))
PY
}
value() { tail -n 1 "$log"; }

sweep_with_a_lost_worker() {
    submit_only sweep sweep run "${recipe[@]}" --out s3://fss/champion
    wait_for_files s3://fss/champion/runs checkpoint_0 1
    lose "$(containers ray-worker | head -n 1)"
    up
    follow sweep
}
label() { # label ID OUT [OPTION...]
    submit "$1" "${labelling[@]}" --out "$2" "${@:3}"
}
label_with_a_lost_worker() {
    submit_only label-lost "${labelling[@]}" --out s3://fss/labels/lost --engine actors
    wait_for_files s3://fss/labels/lost/parts .parquet 5
    lose "$(containers ray-worker | head -n 1)"
    up
    follow label-lost
}
serve() {
    compose --profile champion up -d --no-recreate champion
    until_true 'the service' curl -fsS -o /dev/null http://127.0.0.1:8000/v1/health
    local token
    token=$(sed -n 's/^FSS_TOKEN=//p' "$folder/infra/compose/secrets/service.env")
    curl -fsS -H "Authorization: Bearer $token" http://127.0.0.1:8000/v1/jobs
    [ "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/v1/jobs)" = 401 ]
}
bundle() { curl -fsS http://127.0.0.1:8000/v1/health | grep -o '"bundle_id": *"[^"]*"'; }
serves_another() {
    local now
    now=$(bundle) && [ "$now" != "$1" ]
}
new_champion() { # the first that the workspace has: until now the service had the shipped one
    local before
    before=$(bundle)
    submit promote promote "${recipe[@]}" --out s3://fss/champion
    until_true 'the new champion in the service' serves_another "$before"
}
lose_the_head() { # in a sweep
    submit_only lost-head sweep run "${recipe[@]}" --out s3://fss/headless
    wait_for_files s3://fss/headless/runs checkpoint_0 1
    lose "$(containers ray-head)"
    up
}

main() {
    local count seconds_label series with_data expressions service
    read_options "$@"
    need
    trap at_exit EXIT
    trap 'exit 130' INT TERM
    if [ -n "$build" ]; then
        # shellcheck disable=SC2086 # several options
        run 'build the image' docker build ${BUILD_OPTIONS:-} -f infra/image/Dockerfile -t "$image" .
        figure 'build' "$took s"
    fi
    run 'make a copy of the files, and secrets' prepare
    figure 'image' "$(docker image inspect -f '{{.Size}}' "$image" | awk '{ printf "%.2f GB", $1 / 1e9 }')"
    run 'start S3, MLflow, the head, two workers' start
    figure 'until all answer' "$took s"
    : >"$folder/memory.txt"
    sample_memory &
    sampler=$!
    run 'submit: doctor' start_client
    run 'start Prometheus' compose --profile monitoring up -d --no-recreate prometheus
    run 'sweep, a worker lost in it' sweep_with_a_lost_worker
    figure 'sweep of 8 runs, a worker lost' "$took s"
    run 'the same sweep, undisturbed' submit sweep-quiet sweep run "${recipe[@]}" --out s3://fss/quiet
    figure 'sweep of 8 runs, undisturbed' "$took s"
    run 'compare their results' same_results s3://fss/champion s3://fss/quiet
    figure 'results equal after a lost worker' "$(value)"
    run 'serve the shipped champion on port 8000' serve
    figure 'service' "answers after $took s"
    run 'write photos' photos
    count=$(value)
    run "label $count photos with actors" label label-quiet s3://fss/labels/quiet --engine actors
    seconds_label=$took
    run 'measure' rate s3://fss/labels/quiet
    figure "labels of $count photos, actors" "$(value) photos/s; $seconds_label s with the start of actors"
    run "label $count photos, a worker lost in it" label_with_a_lost_worker
    figure 'labels, a worker lost' "$took s"
    run 'compare the parts' same_parts s3://fss/labels/quiet s3://fss/labels/lost
    figure 'parts equal after a lost worker, in bytes' "$(value)"
    run "label $count photos through the service" label label-service s3://fss/labels/service \
        --service http://ray-head:8000
    seconds_label=$took
    run 'measure' rate s3://fss/labels/service
    figure "labels of $count photos, service" "$(value) photos/s; $seconds_label s in all"
    run 'compare the parts' same_parts s3://fss/labels/quiet s3://fss/labels/service
    figure 'parts of service and actors equal, in bytes' "$(value)"
    run 'ask Prometheus' ask_prometheus
    read -r series with_data expressions < <(value)
    figure 'series of three nodes in Prometheus' "$series"
    figure "the dashboard's expressions that had data" "$with_data of $expressions"
    run 'promote, and wait until it is served' new_champion
    figure 'a new champion, until it is served' "$took s"
    run 'lose the head in a sweep' lose_the_head
    run 'wait for the nodes' healthy
    figure 'three nodes again after a lost head' "$took s"
    run 'submit the same sweep again' submit lost-head sweep run "${recipe[@]}" --out s3://fss/headless
    figure 'the sweep, submitted again' "$took s"
    run 'compare the results' same_results s3://fss/headless s3://fss/quiet
    figure 'results equal after a lost head' "$(value)"
    for service in ray-head ray-worker mlflow s3; do figure "peak memory, $service" "$(peak "$service")"; done
    step='the end'
    printf '\n'
    printf '%s\n' "${figures[@]}"
}

[ "${BASH_SOURCE[0]}" != "$0" ] || main "$@"
