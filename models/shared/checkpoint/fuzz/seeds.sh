#!/bin/sh
# Fills corpus/ with the fixtures: `sh seeds.sh` in this folder.
set -eu
fixtures=../tests/fixtures
for target in safetensors pytorch numpy gguf; do mkdir -p corpus/$target; done
cp $fixtures/*.safetensors corpus/safetensors/
cp $fixtures/*.gguf corpus/gguf/
# The first byte says whether the rest is a whole file (odd) or what is to be wrapped in an archive (even).
for file in $fixtures/*.pt; do
    name=$(basename "$file")
    { printf '\001'; cat "$file"; } > "corpus/pytorch/$name"
    { printf '\000'; unzip -p "$file" '*/data.pkl' 2>/dev/null || true; } > "corpus/pytorch/$name.pkl"
done
for file in $fixtures/*.npz $fixtures/*.npy; do
    { printf '\001'; cat "$file"; } > "corpus/numpy/$(basename "$file")"
done
for file in $fixtures/*.npy; do
    { printf '\000'; cat "$file"; } > "corpus/numpy/$(basename "$file").wrapped"
done
