#!/usr/bin/env bash
# Everything that a machine with a GPU can show. What it prints and finds is kept in target/gpu/DEVICE.
#
#     bash tests/gpu/all.sh metal        on a Mac, with Rust
#     bash tests/gpu/all.sh cuda         where a GPU and a toolkit are; or with the programs of pack.sh beside this script
#
#  1. zoo doctor --system: the device opens, and computes
#  2. the tests of all ops on that device, in f32, bf16 and f16; on CUDA again under memcheck and racecheck, if there is a
#     compute-sanitizer
#  3. each model's training beside the CPU's: the loss of each of 20 steps within 1 %, in bf16 within 5 %
#  4. step times in f32, tf32 and bf16, of ops in f32 and bf16, and what a profiler sees of one model, if there is nsys
#  5. on CUDA, with a python that has torch (PYTHON names it): PyTorch's times in the same types, as it is, compiled and with
#     graphs, and a table of both
#  6. with TEXT=tiny_shakespeare.txt: the preset baby to its end, f32 and bf16, its time and its loss; by PyTorch, too
set -uo pipefail
device="${1:?cuda or metal}"
here="$(cd "$(dirname "$0")" && pwd)"
# absolute PATH: it is used elsewhere.
absolute() {
    case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac
}
TEXT="${TEXT:+$(absolute "$TEXT")}"
python="${PYTHON:-python3}"
case "$python" in */*) python="$(absolute "$python")" ;; esac
if [ -x "$here/zoo" ]; then
    zoo="$here/zoo" ops="$here/ops" results="$here/results" fixtures="$here/fixtures"
else
    cd "$here/../.." || exit 1
    cargo build --release -p candle-zoo --features "$device" --locked || exit 1
    ops=$(cargo test --release -p zoo-layers --features "$device" --lib --locked --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    zoo="${CARGO_TARGET_DIR:-$PWD/target}/release/zoo" results="$PWD/target/gpu/$device"
    fixtures="$PWD/tests/fixtures"
fi
rm -rf "$results" && mkdir -p "$results" && cd "$results" || exit 1
failed=0
# The kernels run on the device here, not on the processor by way of a C++ compiler.
export CXX=none

# step NAME COMMAND…: keeps what it prints, says how it went, goes on.
step() {
    local name="$1" begin=$SECONDS
    shift
    if "$@" >"$name.log" 2>&1; then
        echo "ok      $name ($((SECONDS - begin)) s)"
    else
        echo "FAILED  $name ($((SECONDS - begin)) s): $results/$name.log"
        tail -n 5 "$name.log"
        failed=1
    fi
}

# losses RUN: the loss of each step.
losses() {
    sed -n 's/^{"step":[0-9]*,"loss":\([-0-9.e]*\),.*/\1/p' "$1/metrics.jsonl"
}

# beside TOLERANCE MODEL PRESET TYPE: the losses of a training there and on the CPU.
beside() {
    local tolerance="$1" model="$2" preset="$3" dtype="$4"
    local run="$model-$preset-$dtype"
    local shared="--preset $preset --steps 20 --set train.log_every=1 --set train.health_every=5"
    rm -rf "$run" "$run-cpu"
    # shellcheck disable=SC2086
    "$zoo" train "$model" $shared --device "$device" --set train.dtype="$dtype" --out "$run" || return 1
    # shellcheck disable=SC2086
    "$zoo" train "$model" $shared --out "$run-cpu" || return 1
    paste <(losses "$run") <(losses "$run-cpu") | awk -v tolerance="$tolerance" '
        { print; d = $1 - $2; if (d < 0) d = -d; if (!(d <= tolerance * ($2 < 0 ? -$2 : $2))) bad = 1 }
        END { exit bad || NR < 20 }'
}

works() {
    "$zoo" doctor --system && "$zoo" doctor --system | grep -q -- "--device $device *works"
}

step doctor works
step ops "$ops" --test-threads=1
if [ "$device" = cuda ] && command -v compute-sanitizer >/dev/null; then
    step memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$ops" --test-threads=1 ops::
    step racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$ops" --test-threads=1 ops::
else
    echo "skipped: memcheck and racecheck (no compute-sanitizer, or not CUDA)"
fi
while read -r model preset; do
    step "train-$model-$preset" beside 0.01 "$model" "$preset" f32
    step "train-$model-$preset-bf16" beside 0.05 "$model" "$preset" bf16
done <<END
stock-lstm default
char-gpt cpu
trading-transformer running
deepsif small
deepsif tiny
END
step bench-f32 "$zoo" bench --device "$device" --seconds 4 --json
step bench-tf32 "$zoo" bench --device "$device" --seconds 4 --set train.dtype=tf32 --json
step bench-bf16 "$zoo" bench --device "$device" --seconds 4 --set train.dtype=bf16 --json
step ops-f32 "$zoo" bench --ops --device "$device" --json
step ops-bf16 "$zoo" bench --ops --device "$device" --set train.dtype=bf16 --json
if [ "$device" = cuda ] && command -v nsys >/dev/null; then
    step trace nsys profile --stats=true --force-overwrite=true --output=trace \
        "$zoo" train char-gpt --preset cpu --steps 50 --device cuda --out traced
else
    echo "skipped: a trace (no nsys, or not CUDA)"
fi

peer="$fixtures/bench_torch.py"
if [ "$device" = cuda ] && "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    torch=1
    for dtype in f32 tf32 bf16; do
        for mode in "" default reduce-overhead; do
            # shellcheck disable=SC2086
            step "torch-$dtype${mode:+-$mode}" "$python" "$peer" --device cuda --dtype "$dtype" ${mode:+--compile "$mode"}
        done
        for preset in lstm post-ln; do
            step "$preset-adamw-$dtype" "$zoo" bench deepsif --preset "$preset" --set train.optimizer=adamw \
                --set train.dtype="$dtype" --device cuda --json
        done
    done
    step compare "$python" "$fixtures/compare_torch.py" .
    cat compare.log
else
    torch=
    echo "skipped: PyTorch's times (no python with torch for CUDA; PYTHON names one)"
fi

# baby NAME TYPE: a training to its end, and its judgement.
baby() {
    time "$zoo" train char-gpt --preset baby --data "$TEXT" --device "$device" --set train.dtype="$2" --out "$1" &&
        "$zoo" eval char-gpt --checkpoint "$1" --data "$TEXT" --device "$device"
}
if [ -n "${TEXT:-}" ]; then
    step baby-f32 baby baby-f32 f32
    step baby-bf16 baby baby-bf16 bf16
    if [ -n "$torch" ]; then
        step torch-baby "$python" "$peer" --recipe --preset baby --data "$TEXT" --device cuda --dtype bf16 --compile
    fi
    tail -n 4 baby-*.log torch-baby.log 2>/dev/null
else
    echo "skipped: baby (TEXT names no text)"
fi
exit $failed
