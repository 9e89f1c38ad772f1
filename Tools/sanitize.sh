#!/bin/bash
# Builds the tests of the core with a sanitizer, runs them, and fails on any report.
#
# sanitize.sh [thread|address]...   both by default
# MARTLET_CORE_TESTS="A B" names the test targets instead of the lists below.
#
# The thread sanitizer watches what threads share: RCU, vCPU tables, memory slots and maps, interrupt delivery, requests to
# vCPUs, and descriptors of both backends.
# The address sanitizer watches what handles foreign bytes by hand: loader, devices, and the interface's structures.
# Neither sees memory accesses of translated code, so the translator's own tests are in no list; its fuzz target runs
# between guard pages.
set -uo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build test || exit 1

declare -A tests=(
    [thread]="HostTests RCUTests VCPUTablesTests GuestMemoryTests MMUTests AddressSpaceTests InterruptsTests UserspaceKVMTests KernelKVMTests MachineMemoryTests"
    [address]="HostTests GuestMemoryTests InterruptsTests DevicesTests KVMInterfaceTests MachineTests"
)
# A report must end the process, not start the backtracer of Swift's runtime.
export SWIFT_BACKTRACE=enable=no
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1 exitcode=66}"
# The processes of the loader's tests end with what they have loaded.
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0 allow_user_segv_handler=1}"

status=0
for sanitizer in "${@:-thread address}"; do
    for name in $sanitizer; do
        if [[ -z "${tests[$name]-}" ]]; then
            echo "usage: Tools/sanitize.sh [thread|address]..." >&2
            exit 2
        fi
        list="${MARTLET_CORE_TESTS:-${tests[$name]}}"
        scratch=".build/sanitize-$name"
        flags=(-c "$CONFIGURATION" --sanitize="$name" --scratch-path "$scratch")
        echo "martlet: building for the $name sanitizer: $list" >&2
        MARTLET_CORE_TESTS="$list" "$SWIFT" build "${flags[@]}" --build-tests >&2 || exit 1
        for target in $list; do
            log="$scratch/$target.log"
            MARTLET_CORE_TESTS="$list" "$SWIFT" test "${flags[@]}" --skip-build --disable-xctest --no-parallel \
                --filter "^$target\\." </dev/null >"$log" 2>&1
            result=$?
            if [[ $result -ne 0 ]] || grep -q -a -E 'ERROR: AddressSanitizer|WARNING: ThreadSanitizer' "$log"; then
                cat "$log"
                echo "martlet: the $name sanitizer: $target failed with status $result; the log is $log" >&2
                status=1
            else
                echo "martlet: the $name sanitizer: $target: $(grep -a 'Test run with' "$log" | tail -n 1 | sed 's/^[^T]*//')"
            fi
        done
    done
done
exit $status
