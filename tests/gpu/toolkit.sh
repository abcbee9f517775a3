#!/usr/bin/env bash
# A CUDA 13.0 compiler with its libraries, from Python's packages: no GPU, no driver, no root. Prints the environment to build in.
#
#     eval "$(bash tests/gpu/toolkit.sh)"               (1.2 GB in ~/.cache/zoo-cuda-13.0, or in the folder given)
#     cargo build --release -p candle-zoo --features cuda
#
# 13.0 because a driver takes PTX of its own version and older, and 80 because every newer GPU takes PTX for it.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/zoo-cuda-13.0}"
packages=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)
if [ ! -x "$packages/bin/nvcc" ]; then
    python3 -m venv "$folder" >&2
    "$folder/bin/pip" install --quiet 'cuda-toolkit[nvcc,crt,cudart,nvrtc,cublas,curand,cccl]==13.0.*' >&2
    packages=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)
fi
# The packages have libraries under their versioned names; the linker asks for the plain ones.
for library in "$packages"/lib/*.so.*; do
    plain="${library%%.so.*}.so"
    [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
done
# The driver's own library comes with a GPU. Its stand-in has the names that cudarc calls, for the linker alone.
stubs="$packages/lib/stubs"
if [ ! -e "$stubs/libcuda.so" ]; then
    (cd "$root" && cargo fetch --locked >&2)
    version=$(grep -A1 '^name = "cudarc"' "$root/Cargo.lock" | sed -n 's/^version = "\(.*\)"/\1/p')
    sources=$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"cudarc-$version"/src/driver/sys)
    mkdir -p "$stubs"
    names=$(grep -rhoE '\bcu[A-Z][A-Za-z0-9_]*' "$sources" | sort -u)
    for name in $names; do echo "void $name(void) {}"; done |
        cc -w -shared -Wl,-soname,libcuda.so.1 -x c - -o "$stubs/libcuda.so"
fi
echo "export CUDA_HOME='$packages' NVCC='$packages/bin/nvcc' PATH='$packages/bin':\"\$PATH\""
echo "export CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000 LIBRARY_PATH='$packages/lib:$stubs'\"\${LIBRARY_PATH:+:\$LIBRARY_PATH}\""
