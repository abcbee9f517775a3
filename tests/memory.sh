#!/usr/bin/env bash
# Looks for undefined behaviour and races: bash tests/memory.sh [miri|address|thread]...
#
# Needs a nightly toolchain: rustup component add miri rust-src --toolchain nightly. Kernels run at the scalar level in Miri, which has no
# others, and at every level of the machine elsewhere. All of it takes an hour or two on two cores; what is built stays in target/memory.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/memory}" CARGO_INCREMENTAL=0
host=$(rustc -vV | sed -n 's/^host: //p')
ops=(-p zoo-layers --test every_op --test misuse --test waiting)

for check in "${@:-miri address thread}"; do
    for one in $check; do
        echo "== $one"
        case $one in
        miri)
            # rayon's threads never end; crossbeam's queues, on which they wait, keep to Tree Borrows, not to Stacked Borrows.
            export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks -Zmiri-tree-borrows" RAYON_NUM_THREADS=2
            # The largest tests take hours there; every_op has their products, smaller.
            cargo +nightly miri test -p zoo-kernels --lib -- cpu:: autograd:: --skip every_tile_shape --skip rounded_factors \
                --skip affine_map --skip number_of_threads
            cargo +nightly miri test -p zoo-layers --test every_op
            ;;
        address)
            export RUSTFLAGS="-Zsanitizer=address"
            cargo +nightly test --target "$host" "${ops[@]}"
            cargo +nightly test --target "$host" -p zoo-kernels -p zoo-kernels-emulator --lib
            cargo +nightly test --target "$host" -p zoo-checkpoint --features hdf5,text --lib --test formats --test wild
            ;;
        thread)
            # The standard library has to be told of, too.
            export RUSTFLAGS="-Zsanitizer=thread" TSAN_OPTIONS="suppressions=$PWD/tests/thread.supp"
            cargo +nightly test -Zbuild-std --target "$host" "${ops[@]}"
            ;;
        *)
            echo "$one: expected miri, address or thread"
            exit 2
            ;;
        esac
    done
done
