#!/bin/bash
# Measures the core's structures against C libraries; arguments name the parts (see Benchmarks/Core/Sources/bench-core).
#
# MARTLET_BENCH_RUNS is the number of interleaved rounds (301).
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build bench-core
"$SWIFT" build --package-path Benchmarks/Core --scratch-path .build/bench-core -c release >&2
exec .build/bench-core/release/bench-core "$@"
