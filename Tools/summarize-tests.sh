#!/bin/bash
# Counts the results in the log of a test run: summarize-tests.sh LOG STATUS.
#
# Prints "N passed, N failed, N skipped" as its last line; fails if a test failed, if the runner failed, if nothing ran,
# or, with MARTLET_REQUIRE_ALL=1, if a test was skipped that Tests/allowed-skips.txt does not name.
set -uo pipefail
# The runner marks its lines with symbols outside ASCII.
export LC_ALL=C.UTF-8
log="$1"
runner_status="$2"
allowed="${MARTLET_ALLOWED_SKIPS:-$(dirname "$0")/../Tests/allowed-skips.txt}"

# One line per finished test: symbol, "Test", name, verdict. "Test run with …" is the runner's own summary.
results="$(grep --text -E '^[^[:alnum:]]* *Test ' "$log" | grep --text -v -E ' Test run (with|started)')"
count() {
    grep --text -c -E "$1" <<<"$results" || true
}
passed="$(count '^. +Test .* passed after [0-9.]+ seconds')"
failed="$(count '^. +Test .* failed after [0-9.]+ seconds')"
skipped="$(count '^. +Test .* skipped(:.*|\.)?$')"

failure=0
if [[ "${MARTLET_REQUIRE_ALL:-0}" == 1 ]]; then
    while IFS= read -r line; do
        [[ -n "$line" ]] || continue
        name="$(sed -E 's/^. +Test "?(.*[^"])"? skipped.*$/\1/' <<<"$line")"
        if ! cut -d '|' -f 1 "$allowed" 2>/dev/null | sed 's/ *$//' | grep -q -x -F -- "$name"; then
            echo "martlet: skipped, and not named in $allowed: $line"
            failure=1
        fi
    done < <(grep --text -E '^. +Test .* skipped(:.*|\.)?$' <<<"$results")
fi
if [[ "$failed" -eq 0 && "$runner_status" -ne 0 ]]; then
    echo "martlet: the test runner ended with status $runner_status before all tests had finished"
    failed=1
fi
if [[ "$passed" -eq 0 && "$failed" -eq 0 ]]; then
    echo "martlet: no test ran"
    failure=1
fi
[[ "$failed" -eq 0 ]] || failure=1

# What failed and why, again, where whoever sees only the end of the output finds it.
if [[ "$failed" -ne 0 ]]; then
    grep --text -A 2 -E '^. +Test .* recorded an issue|^. +Test .* failed after|Fatal error|: error:' "$log" | tail -n 60
fi

echo "$passed passed, $failed failed, $skipped skipped"
exit "$failure"
