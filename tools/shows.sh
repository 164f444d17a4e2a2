#!/usr/bin/env bash
# Show, outside pytest, that the main job works: one line each, `ok` or `FAIL`, with what was seen.
#   tools/shows.sh            in a clone; a home and ports of its own, nothing of yours is touched
# Needs curl; uses skopeo and unshare where they are (and says so where they are not).
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export FLEXINFER_HOME="$work/home"
python=${PYTHON:-python3}
free() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
export FLEXINFER_SERVE__PORT=$(free) FLEXINFER_SERVE__ADMIN_PORT=$(free) FLEXINFER_PREFECT__PORT=$(free)
url="http://127.0.0.1:$FLEXINFER_SERVE__PORT/v1"
flexinfer=".venv/bin/flexinfer"
failed=0
up=0

say() { printf '%-4s %s\n' "$1" "$2"; [ "$1" = FAIL ] && failed=$((failed + 1)); return 0; }
check() { if [ "$1" -eq 0 ]; then say ok "$2"; else say FAIL "$2"; fi; }
now() { date +%s.%N; }
since() { "$python" -c "import sys, time; print(f'{time.time() - float(sys.argv[1]):.1f} s')" "$1"; }
engines() { pgrep -f "programs/llamacpp.py.*$work" 2>/dev/null | wc -l; }
wait_for() { # seconds, command…: until it holds
  local left=$(($1 * 5)); shift
  until "$@" >/dev/null 2>&1; do left=$((left - 1)); [ "$left" -le 0 ] && return 1; sleep 0.2; done
}
start() { # log, command…
  local log=$1; shift
  "$@" >"$log" 2>&1 </dev/null & up=$!
  wait_for 300 grep -q '^ready http' "$log"
}
stop() { kill -TERM "$up" 2>/dev/null; wait "$up" 2>/dev/null; up=0; }
finish() { [ "$up" -ne 0 ] && stop; rm -rf "$work"; }
trap finish EXIT
ask() { # model, more JSON
  curl -s -m 300 "$url/chat/completions" -H 'content-type: application/json' -d \
    '{"model":"'"$1"'","messages":[{"role":"user","content":"What is the capital of France? Answer briefly."}],"max_tokens":16,"temperature":0'"${2:-}"'}'
}
no_engine() { [ "$(engines)" -eq 0 ]; }
model_file="$FLEXINFER_HOME/models/smollm2-135m-instruct.yaml"

began=$(now)
start "$work/up.log" make up
check $? "make up: $(grep '^ready http' "$work/up.log" || tail -n 1 "$work/up.log") ($(since "$began"), with downloads)"

no_engine; check $? "before any request: $(engines) engine processes"

answer=$(ask smollm2-135m-instruct)
case $answer in *Paris*) r=0 ;; *) r=1 ;; esac; check $r "chat: $(printf %s "$answer" | grep -o '"content":"[^"]*"' | head -n 1)"

last=$(ask smollm2-135m-instruct ',"stream":true' | grep -v '^[[:space:]]*$' | tail -n 1)
[ "$last" = "data: [DONE]" ]; check $? "stream ends with: $last"

"$flexinfer" artifact ls --json >"$work/ls.json"
"$python" - "$work/ls.json" <<'E' >"$work/seen"; check $? "artifact ls --json: $(cat "$work/seen")"
import json, sys
one = next(a for a in json.load(open(sys.argv[1])) if a["reference"].endswith(":q8-0"))
print(one["reference"], one["digest"], one["format"], one["quantization"], one["sizeBytes"], "bytes,", len(one["evidence"]), "evidence")
assert one["digest"].startswith("sha256:") and one["format"] == "gguf" and one["quantization"] == "Q8_0"
assert one["sizeBytes"] > 0 and one["evidence"]
E
reference=smollm2-135m-instruct:q8-0
digest=$("$python" -c 'import json, sys; print(next(a["digest"] for a in json.load(open(sys.argv[1])) if a["reference"] == sys.argv[2]))' "$work/ls.json" "$reference")
if command -v skopeo >/dev/null; then
  skopeo inspect --raw "oci:$FLEXINFER_HOME/store:$reference" >"$work/manifest.json"
  [ "sha256:$(sha256sum <"$work/manifest.json" | cut -d' ' -f1)" = "$digest" ]
  check $? "skopeo inspect --raw reads the manifest of $digest"
else
  say "-" "skopeo is not here: the manifest is read from blobs/"
  cp "$FLEXINFER_HOME/store/blobs/sha256/${digest#sha256:}" "$work/manifest.json"
fi
"$python" - "$work/manifest.json" "$FLEXINFER_HOME/store" <<'E' >"$work/seen"; check $? "$(cat "$work/seen")"
import hashlib, json, sys
layers = json.load(open(sys.argv[1]))["layers"]
for layer in layers:
    with open(f"{sys.argv[2]}/blobs/sha256/{layer['digest'][7:]}", "rb") as file:
        assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == layer["digest"]
print(len(layers), "layers: every sha256 equals its file's")
E

sed -i 's/idleTimeout: [0-9a-z]*/idleTimeout: 10s/; s/coldStartTimeout: [0-9a-z]*/coldStartTimeout: 300s/' "$model_file"
sleep 2
wait_for 60 no_engine
starts() { cat "$FLEXINFER_HOME"/logs/operator.log* 2>/dev/null | grep -c '"event": "replica_started"'; }
before=$(starts)
pids=
for i in $(seq 20); do ask smollm2-135m-instruct >"$work/answer.$i" & pids="$pids $!"; done
wait $pids
good=$(grep -l Paris "$work"/answer.* | wc -l)
[ "$good" -eq 20 ] && [ $(($(starts) - before)) -eq 1 ]
check $? "20 clients on a sleeping model: $(($(starts) - before)) engine start, $good answers of 20"

began=$(now); wait_for 15 no_engine; check $? "idleTimeout 10s: $(engines) engines after $(since "$began")"
case $(ask smollm2-135m-instruct) in *Paris*) r=0 ;; *) r=1 ;; esac; check $r "the next request is answered"

blob=$("$python" -c 'import json, sys; print(max(json.load(open(sys.argv[1]))["layers"], key=lambda l: l["size"])["digest"][7:])' "$work/manifest.json")
source=$(ls -S "$FLEXINFER_HOME"/store/blobs/sha256/* | sed -n 2p)
cp "$source" "$work/never-in-a-catalog.gguf"; chmod 644 "$work/never-in-a-catalog.gguf"
"$flexinfer" run "$work/never-in-a-catalog.gguf" >"$work/run.log" 2>&1
answer=$(ask never-in-a-catalog)
case $answer in *Paris*) r=0 ;; *) r=1 ;; esac
check $r "flexinfer run of a GGUF of no catalog: $(printf %s "$answer" | grep -o '"content":"[^"]*"')"

"$flexinfer" build smollm2-135m-instruct/q4-0 >"$work/build.log" 2>&1; check $? "build q4-0: $(tail -n 1 "$work/build.log" | cut -c1-120)"
began=$(now); "$flexinfer" build smollm2-135m-instruct/q4-0 >"$work/build.log" 2>&1
check $? "again, $(since "$began"): $(tail -n 1 "$work/build.log" | cut -c1-120)"

wait_for 60 no_engine
"$python" - "$FLEXINFER_HOME/store/blobs/sha256/$blob" <<'E'
import os, sys
os.chmod(sys.argv[1], 0o644)
with open(sys.argv[1], "r+b") as file:
    file.seek(50_000_000)
    byte = file.read(1)[0]
    file.seek(50_000_000)
    file.write(bytes([byte ^ 1]))
E
"$flexinfer" artifact verify "$reference" >"$work/verify.log" 2>&1; code=$?
[ "$code" -eq 7 ] && grep -q "$blob" "$work/verify.log"
check $? "one bit flipped: verify exits with $code and says $(grep -o "sha256:$blob" "$work/verify.log" | head -n 1 | cut -c1-27)…"
answer=$(ask smollm2-135m-instruct)
for _ in $(seq 60); do case $answer in *Paris*) break ;; esac; sleep 2; answer=$(ask smollm2-135m-instruct); done
case $answer in *Paris*) r=0 ;; *) r=1 ;; esac
[ "$(sha256sum <"$FLEXINFER_HOME/store/blobs/sha256/$blob" | cut -d' ' -f1)" = "$blob" ] || r=1
check $r "the quarantined blob is fetched again and the model serves"

began=$(now); stop; took=$(since "$began")
left=$(pgrep -f "$work" | wc -l)
[ "$left" -eq 0 ] && [ "${took%%.*}" -le 10 ]; check $? "stopped in $took, $left processes left"

if unshare -n true 2>/dev/null; then
  began=$(now)
  start "$work/up2.log" unshare -n sh -c 'ip link set lo up; exec make up'
  check $? "second make up without a network: $(grep '^ready http' "$work/up2.log" || tail -n 1 "$work/up2.log") ($(since "$began"))"
  pid=$("$python" -c 'import json, sys; print(json.load(sys.stdin)["pid"])' <"$FLEXINFER_HOME/run/up.lock" 2>/dev/null) && kill -TERM "$pid"
  wait "$up" 2>/dev/null; up=0
else
  say "-" "no network namespaces here: the second start has the network"
  began=$(now); start "$work/up2.log" make up; check $? "second make up ($(since "$began"))"; stop
fi

make -s dev-environment >"$work/dev.log" 2>&1
.venv/bin/python -m pytest -q -x tests/core/oci -k contract >"$work/contract.log" 2>&1
check $? "Target's contract suite: $(tail -n 1 "$work/contract.log")"
[ "$failed" -eq 0 ] && echo "all shown" || echo "$failed FAILED"
exit "$((failed > 0))"
