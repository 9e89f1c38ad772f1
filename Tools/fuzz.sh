#!/bin/bash
# Builds the fuzz targets with libFuzzer and runs each for SECONDS (60).
#
# fuzz.sh                  all
# fuzz.sh loader|translator|requests [ARGUMENT…]
#                          one; arguments are libFuzzer's, or a file to run once
#
# Inputs that were worth keeping stay in .build/fuzz/<target>; one that crashes, hangs or leaks is saved in
# .build/fuzz/found, and the last lines say how to run it again.
set -uo pipefail
source "$(dirname "$0")/toolchain.sh"

seconds="${SECONDS_EACH:-60}"
# A crash must end the process at once, not start the backtracer of Swift's runtime.
export SWIFT_BACKTRACE=enable=no

# The address sanitizer and translated code both want SIGSEGV: who runs guests does without, between guard pages.
declare -A product=([loader]=FuzzLoader [translator]=FuzzTranslator [requests]=FuzzRequests)
declare -A sanitizer=([loader]=--sanitize=address [translator]= [requests]=)
declare -A options=(
    [loader]="-max_len=16384 -timeout=20 -rss_limit_mb=3000"
    [translator]="-max_len=512 -timeout=10 -dict=Fuzz/x86.dict"
    [requests]="-max_len=1920 -timeout=20 -rss_limit_mb=6000"
)

build() {
    # shellcheck disable=SC2086
    "$SWIFT" build --package-path Fuzz --scratch-path ".build/fuzz-$1" -c release --product "${product[$1]}" \
        ${sanitizer[$1]} -Xswiftc -sanitize=fuzzer >&2
}

binary() { echo ".build/fuzz-$1/release/${product[$1]}"; }

run() {
    local name="$1" corpus=".build/fuzz/$1" found=".build/fuzz/found"
    mkdir -p "$corpus" "$found"
    echo "martlet: fuzzing the $name for $seconds seconds" >&2
    local before
    before="$(ls "$found")"
    # shellcheck disable=SC2086
    "$(binary "$name")" ${options[$name]} -max_total_time="$seconds" -artifact_prefix="$found/$name-" \
        -print_final_stats=1 "$corpus" "Fuzz/Corpus/${name^}" </dev/null >".build/fuzz/$name.log" 2>&1
    local status=$?
    grep -E '^stat::(number_of_executed_units|average_exec_per_sec)|DONE' ".build/fuzz/$name.log" >&2
    if [[ $status -ne 0 ]]; then
        grep -v -E '# Uses: |^#[0-9]' ".build/fuzz/$name.log" | tail -40 >&2
        comm -13 <(sort <<<"$before") <(ls "$found" | sort) | while IFS= read -r file; do
            echo "martlet: to run it again: Tools/fuzz.sh $name $found/$file" >&2
        done
        echo "martlet: fuzzing the $name ended with status $status; the log is .build/fuzz/$name.log" >&2
    fi
    return $status
}

case "${1:-all}" in
all)
    status=0
    for name in loader translator requests; do
        build "$name" && run "$name" || status=1
    done
    exit $status
    ;;
loader | translator | requests)
    name="$1"
    shift
    build "$name" || exit 1
    if [[ $# -eq 0 ]]; then run "$name"; else
        # shellcheck disable=SC2086
        exec "$(binary "$name")" ${options[$name]} "$@"
    fi
    ;;
*)
    echo "usage: Tools/fuzz.sh [loader|translator|requests [ARGUMENT…]]" >&2
    exit 2
    ;;
esac
