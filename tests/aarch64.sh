#!/usr/bin/env bash
# Tests kernels and ops on 64-bit Arm (NEON) under emulation: bash tests/aarch64.sh
#
# Needs Linux with qemu-user, gcc and g++ for aarch64 (Debian: qemu-user gcc-aarch64-linux-gnu g++-aarch64-linux-gnu) and
# rustup target add aarch64-unknown-linux-gnu. Emulation is slow; what is built stays in target/aarch64.
set -euo pipefail
cd "$(dirname "$0")/.."
triple=aarch64-linux-gnu
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/aarch64}" CARGO_INCREMENTAL=0
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$triple-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/$triple"
export CC_aarch64_unknown_linux_gnu=$triple-gcc CXX_aarch64_unknown_linux_gnu=$triple-g++
# By this compiler the tests run GPU kernels on the CPU.
export CXX=$triple-g++
cargo test --locked --target aarch64-unknown-linux-gnu -p zoo-kernels -p zoo-layers --lib --tests --no-fail-fast "$@"
