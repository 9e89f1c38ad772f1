#!/bin/bash
# Runs every test. The last line counts them: "N passed, N failed, N skipped".
#
# With MARTLET_REQUIRE_ALL=1 a skipped test fails the run unless Tests/allowed-skips.txt names it.
# Arguments go to `swift test` (for example --filter DevicesTests).
set -uo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build guest test || exit 1

echo "martlet: building the command and its tests" >&2
# Not built by `swift test`, whose testable imports would compile every target again with other flags than `make build`.
"$SWIFT" build -c "$CONFIGURATION" --product martlet || exit 1
"$SWIFT" build -c "$CONFIGURATION" --product martlet-kvm || exit 1
"$SWIFT" build -c "$CONFIGURATION" --build-tests || exit 1
for flavour in cloud standard; do
    "$PRODUCT" guest build --flavour "$flavour" ||
        echo "martlet: no $flavour guest; the tests that boot it will be skipped" >&2
done

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
# A crashing test must end, not wait in the interactive backtracer.
export SWIFT_BACKTRACE="${SWIFT_BACKTRACE:-interactive=no,color=no}"
export MARTLET_COMMAND="${MARTLET_COMMAND:-$PWD/$PRODUCT}"
# Line by line, so that a test that takes long, or hangs, can be seen.
run_tests() {
    stdbuf -oL "$SWIFT" test -c "$CONFIGURATION" --skip-build --disable-xctest "$@" </dev/null 2>&1 | tee -a "$log"
    return "${PIPESTATUS[0]}"
}
status=0
# A process for each target: the translator's and its tests' signal handlers belong to a process, and a crash loses no
# other target's results. Arguments choose tests by themselves.
if [[ $# -gt 0 ]]; then
    run_tests "$@" || status=$?
else
    for target in $(sed -n 's/.*name: "\([A-Za-z]*Tests\)".*/\1/p' Package.swift | sort); do
        echo "martlet: $target" >&2
        run_tests --no-parallel --filter "^$target\\." || status=$?
    done
fi

Tools/summarize-tests.sh "$log" "$status"
