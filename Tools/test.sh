#!/bin/bash
# Runs every test. The last line counts them: "N passed, N failed, N skipped".
#
# With MARTLET_REQUIRE_ALL=1 a skipped test fails the run unless Tests/allowed-skips.txt names it.
# Arguments go to `swift test` (for example --filter DevicesTests).
set -uo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build guest test || exit 1

# Testable imports would compile every target a second time, with other flags than `make build` uses.
flags=(-c "$CONFIGURATION" --disable-testable-imports)
echo "martlet: building the command and its tests" >&2
"$SWIFT" build -c "$CONFIGURATION" --product martlet || exit 1
"$SWIFT" build -c "$CONFIGURATION" --build-tests || exit 1
"$PRODUCT" guest build && "$PRODUCT" guest build --flavour standard || echo "martlet: no default guest; the tests that boot it will be skipped" >&2

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
# A crashing test must end, not wait in the interactive backtracer.
export SWIFT_BACKTRACE="${SWIFT_BACKTRACE:-interactive=no,color=no}"
export MARTLET_COMMAND="${MARTLET_COMMAND:-$PWD/$PRODUCT}"
"$SWIFT" test "${flags[@]}" --skip-build --disable-xctest "$@" </dev/null 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

Tools/summarize-tests.sh "$log" "$status"
