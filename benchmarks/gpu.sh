#!/usr/bin/env bash
# Measures labelling on one GPU in at most eight minutes, without Ray, and writes dated files. It asserts nothing.
#
#   benchmarks/gpu.sh OUT [WHEELS]
#
# OUT is the folder for the results. WHEELS is a folder of wheels for Python 3.12, for a machine without a network:
#
#   pip download --only-binary=:all: --no-deps --python-version 3.12 --platform manylinux_2_28_x86_64 \
#     --platform manylinux2014_x86_64 -d WHEELS safetensors timm sam2 pillow pycocotools pydantic pydantic-core \
#     annotated-types typing-inspection fsspec httpx httpcore h11 anyio idna certifi pyarrow rich tenacity tqdm \
#     cachetools psutil scipy cloudpickle
#
# torch and numpy are the machine's own. Each benchmark has a limit of its own; what it had not finished is left out.
set -u
out=${1:?where to write the results} wheels=${2:-} end=$((SECONDS + 470))
cd "$(dirname "$0")/.." || exit
mkdir -p "$out"
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit
  export PYTHONPATH="$site"
fi

measure() {  # SECONDS NAME SETTING...
  local limit=$1 name=$2 words=() left=$((end - SECONDS))
  shift 2
  for setting in "$@"; do words+=(--set "$setting"); done
  [ "$left" -gt 15 ] || { echo "$name $*: no time left"; return; }
  timeout "$((limit < left ? limit : left))" python3 -m benchmarks.run "$name" --out "$out" --set device=cuda "${words[@]}" ||
    echo "$name $*: exit status $?"
}

timeout 60 python3 -m pytest -q -m gpu -p no:cacheprovider --noconftest tests/fss_models/test_execution.py >"$out/gpu_tests.txt" 2>&1
small='size=[640,480]' large='size=[4032,3024]'
for preset in base_plus large; do
  for precision in float32 bfloat16; do
    measure 45 device_pipeline method=sansa "preset=$preset" "precision=$precision" batch=16 count=128 "$small" repeats=2
  done
done
measure 60 device_pipeline method=sansa preset=base_plus precision=bfloat16 compile=true batch=16 count=128 "$small" repeats=2
measure 40 device_pipeline precision=bfloat16 batch=64 count=256 "$small" repeats=2
measure 40 device_pipeline precision=bfloat16 preprocessing=fast batch=32 count=64 "$large" repeats=2
measure 60 official_loop precision=bfloat16 compile=true images=64 official=16 batch=16
measure 40 official_loop precision=float32 images=32 official=16 batch=16
