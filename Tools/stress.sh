#!/bin/bash
# Runs the tests of what threads share with their seeded stress tests prolonged, plain and then under the thread sanitizer.
#
# stress.sh [TARGET]...    the test targets below by default
# SECONDS_EACH is how long each stress test runs (60); MARTLET_SEED repeats a run whose seed was printed.
set -uo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build test || exit 1

targets=("$@")
[[ $# -gt 0 ]] || targets=(
    RCUTests VCPUTablesTests GuestMemoryTests MMUTests AddressSpaceTests UserspaceKVMTests KernelKVMTests
    MachineMemoryTests)
export MARTLET_STRESS_SECONDS="${SECONDS_EACH:-60}"
export SWIFT_BACKTRACE=enable=no

echo "martlet: building the tests" >&2
MARTLET_CORE_TESTS="${targets[*]}" "$SWIFT" build -c "$CONFIGURATION" --scratch-path .build/stress --build-tests >&2 || exit 1
status=0
for target in "${targets[@]}"; do
    log=".build/stress/$target.log"
    echo "martlet: $target, $MARTLET_STRESS_SECONDS s for each stress test" >&2
    MARTLET_CORE_TESTS="${targets[*]}" "$SWIFT" test -c "$CONFIGURATION" --scratch-path .build/stress --skip-build \
        --disable-xctest --no-parallel --filter "^$target\\." </dev/null >"$log" 2>&1
    result=$?
    # Seeds, what the tests tell about their work, and what failed.
    grep -a -E 'MARTLET_SEED=|^[a-z][a-z ]*: |✘|Test run with|Fatal|crashed' "$log"
    if [[ $result -ne 0 ]]; then
        echo "martlet: $target failed with status $result; the log is $log" >&2
        status=1
    fi
done
echo "martlet: the same under the thread sanitizer" >&2
MARTLET_CORE_TESTS="${targets[*]}" Tools/sanitize.sh thread || status=1
exit $status
