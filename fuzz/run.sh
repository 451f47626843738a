#!/bin/sh
# Builds one fuzz target with AddressSanitizer and coverage, and runs it: with the stable compiler, without cargo-fuzz.
#
#   fuzz/run.sh socks5 -max_total_time=600
#
# New inputs go to fuzz/corpus, findings to fuzz/artifacts. Options are libFuzzer's.
set -eu
cd "$(dirname "$0")/.."
name=$1
shift
triple=$(rustc -vV | sed -n 's/^host: //p')
target_dir=${CARGO_TARGET_DIR:-target/fuzz-asan}

# The flags that cargo-fuzz passes. RUSTC_BOOTSTRAP makes a stable compiler take those that begin with -Z.
RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Cforce-frame-pointers -Ccodegen-units=1" \
    RUSTC_BOOTSTRAP=1 cargo build --locked --release --manifest-path fuzz/Cargo.toml --target "$triple" \
    --target-dir "$target_dir" --bin "$name"

mkdir -p "fuzz/corpus/$name" "fuzz/artifacts/$name"
[ ! -f "fuzz/dict/$name.dict" ] || set -- "-dict=fuzz/dict/$name.dict" "$@"
exec "$target_dir/$triple/release/$name" "fuzz/corpus/$name" "fuzz/seeds/$name" \
    "-artifact_prefix=fuzz/artifacts/$name/" -print_final_stats=1 "$@"
