#!/usr/bin/env bash
# What a training step asks of a GPU, counted without one: zoo's build for CUDA runs over stand_in.c, where nothing is computed.
#
#     eval "$(bash tests/gpu/toolkit.sh)" && cargo build --release -p candle-zoo --features cuda
#     bash tests/gpu/calls.sh char-gpt --preset cpu [--set train.dtype=bf16 …]
#
# Prints the calls of one step that is neither logged nor evaluated: 20 steps beside 40. Then the milliseconds that a step takes
# the processor, the driver's own not among them.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
zoo="${CARGO_TARGET_DIR:-$root/target}/release/zoo"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cc -O2 -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$folder/libcuda.so.1" "$root/tests/gpu/stand_in.c"
for library in libcublas.so.13 libcurand.so.10; do ln -s libcuda.so.1 "$folder/$library"; done
export LD_LIBRARY_PATH="$folder"
model="${1:?a model}"
shift
for steps in 20 40; do
    ZOO_CALLS="$folder/$steps" "$zoo" train "$model" "$@" --device cuda --steps "$steps" --out "$folder/run-$steps" \
        --set train.health_every=1000000 --set train.eval_every=1000000 --set train.log_every=1000000 \
        >"$folder/log" 2>&1 || { tail -n 5 "$folder/log" >&2; exit 1; }
done
awk 'NR == FNR { before[$2 " " $3] = $1; next }
    { n = ($1 - before[$2 " " $3]) / 20; if (n > 0 && $2 != "bytes") printf "%8.2f  %s %s\n", n, $2, $3 }
    $2 == "bytes" { printf "%8.2f  MB at most\n", $1 / 1e6 }' "$folder/20" "$folder/40" | sort -rn
"$zoo" bench "$model" "$@" --device cuda --seconds 2
