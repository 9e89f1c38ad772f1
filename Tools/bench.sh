#!/bin/bash
# Runs the benchmarks (see Benchmarks/Sources/bench/Options.swift) with the default guest's kernel; arguments are passed on.
#
# MARTLET_BENCH_RUNS is how often everything runs (default 7), MARTLET_BENCH_FIGURES a list of figures separated by commas, and
# MARTLET_BENCH_RESULTS=1 writes the tables to Benchmarks/RESULTS.md as well.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build guest bench
folder="$PWD/.build/bench"
mkdir -p "$folder/root/bin"

if [[ -z "${MARTLET_COMMAND:-}" ]]; then
    "$SWIFT" build -c "$CONFIGURATION" --product martlet >&2
    MARTLET_COMMAND="$PWD/$PRODUCT"
fi
"$MARTLET_COMMAND" guest build >&2
"$SWIFT" build --package-path Benchmarks --scratch-path "$folder/swift" -c release >&2

gcc -std=gnu17 -O2 -fno-math-errno -Wall -Wextra -static -o "$folder/root/bin/workloads" Benchmarks/Workloads/*.c -lz -pthread
# The kernel unpacks one archive after the other: the default guest's, then this one.
guest="${XDG_CACHE_HOME:-$HOME/.cache}/martlet/guests/cloud"
{
    cat "$guest/initramfs.cpio"
    (cd "$folder/root" && echo bin/workloads | cpio --quiet --create --format=newc --owner=0:0)
} >"$folder/initramfs.cpio"

arguments=(
    --martlet "$MARTLET_COMMAND" --kernel "$guest/vmlinuz" --initramfs "$folder/initramfs.cpio"
    --workloads "$folder/root/bin/workloads" --runs "${MARTLET_BENCH_RUNS:-7}"
)
[[ -z "${MARTLET_BENCH_FIGURES:-}" ]] || arguments+=(--figures "$MARTLET_BENCH_FIGURES")
[[ -z "${MARTLET_BENCH_RESULTS:-}" ]] || arguments+=(--results "$PWD/Benchmarks/RESULTS.md")
exec "$folder/swift/release/bench" "${arguments[@]}" "$@"
