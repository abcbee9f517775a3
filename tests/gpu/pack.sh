#!/usr/bin/env bash
# Builds zoo and the tests of its ops for CUDA, on a machine that needs no GPU, into one archive for a machine that has one.
#
#     eval "$(bash tests/gpu/toolkit.sh)" && bash tests/gpu/pack.sh          writes target/gpu/zoo-cuda.tar.xz
#
# There: unpack it and run `bash all.sh cuda` in its folder. It needs the driver and, from CUDA 13, libcublas, libcublasLt and
# libcurand.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=target/gpu/zoo-cuda
rm -rf "$folder"
mkdir -p "$folder"
cargo build --release -p candle-zoo --features cuda --locked
tests=$(cargo test --release -p zoo-layers --features cuda --lib --locked --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
strip -o "$folder/zoo" "${CARGO_TARGET_DIR:-target}/release/zoo"
strip -o "$folder/ops" "$tests"
cp tests/gpu/all.sh "$folder"
mkdir "$folder/fixtures"
cp tests/fixtures/{bench_torch,compare_torch,deepsif,trading_transformer,numbers_and_files}.py "$folder/fixtures"
tar -cJf "$folder.tar.xz" -C target/gpu zoo-cuda
ls -l "$folder" "$folder.tar.xz"
