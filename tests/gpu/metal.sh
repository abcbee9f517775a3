#!/usr/bin/env bash
# Type-checks the Rust side of Metal where there is no Mac: nothing is linked or run.
#
#     bash tests/gpu/metal.sh
#
# Apple's frameworks are bound by crates that refuse other systems for two reasons: objc2 wants a runtime to be named
# (GNUstep's does here), and `#[link(kind = "framework")]` is an error off Apple. Copies without those lines stand in.
set -euo pipefail
cd "$(dirname "$0")/../.."
root="$PWD" check="$PWD/target/metal"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}"
cargo fetch --locked --quiet
rm -rf "$check"
mkdir -p "$check/src"
cp Cargo.lock "$check"
{
    echo '[package]'
    echo 'name = "metal-check"'
    echo 'edition = "2024"'
    echo '[lib]'
    echo '[workspace]'
    echo '[dependencies]'
    for crate in objc2 block2; do echo "$crate = { version = \"*\", features = [\"gnustep-2-1\"] }"; done
    for crate in layers training; do
        echo "zoo-$crate = { path = \"$root/models/shared/$crate\", features = [\"metal\"] }"
    done
    for crate in char-gpt deepsif llama stock-lstm trading-transformer; do
        echo "zoo-$crate = { path = \"$root/models/$crate\", features = [\"metal\"] }"
    done
    echo '[patch.crates-io]'
    for crate in objc2-metal objc2-foundation objc2-core-foundation; do
        version=$(grep -A1 "^name = \"$crate\"" Cargo.lock | sed -n 's/^version = "\(.*\)"/\1/p')
        source=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$crate-$version" | tail -n 1)
        cp -r "$source" "$check/$crate"
        find "$check/$crate" -name '*.rs' -exec sed -i '/link(.*kind = "framework"/d' {} +
        echo "$crate = { path = \"$crate\" }"
    done
    # The same profile, so that what clippy has checked is not checked again.
    sed -n '/^\[profile\.dev/,$p' Cargo.toml
} > "$check/Cargo.toml"
touch "$check/src/lib.rs"
cargo check --manifest-path "$check/Cargo.toml"
