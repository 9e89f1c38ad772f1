#!/bin/bash
# Breaks one rule at a time in a copy of the tree, and checks that the tests notice: mutants.sh [NAME]...
#
# The last line counts: "N killed, N survived". Fails if a mutant survives, and if one cannot be made or built, which
# says nothing about the tests. The copy and its build products are in .build/mutants.
set -uo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build test || exit 1

# name | what is broken | file | sed script that breaks it | tests that have to fail
mutants=(
    "emitter|[rbp] and [r13] need a displacement|Sources/Translator/Emitter.swift|s/ base\.number \& 7 != 5 / base.number \& 7 != 4 /|TranslatorTests.EmitterTests"
    "flag|AF is the carry out of bit 3|Sources/Translator/Instructions/ArithmeticFlags.swift|s/(a ^ b ^ difference) \& 0x10 /(a ^ b ^ difference) \& 0x20 /|TranslatorTests"
    "page-fault|reserved bits are in the error code|Sources/MMU/GuestWalk.swift|s/if reserved { code |= FaultCode\.reserved }//|DifferentialTests"
    "gate-error|the error code of a bad gate says that it is in the IDT|Sources/Translator/System/EventDelivery.swift|s/UInt32(event\.vector) \* 8 + 2/UInt32(event.vector) * 8/|DifferentialTests"
)

scratch="$PWD/.build/mutants"
tree="$scratch/tree"
# The guests' runner and what both suites need; the rest of the package is left out.
export MARTLET_CORE_TESTS="TranslatorTests DifferentialTests BareGuest"
export SWIFT_BACKTRACE=enable=no
# The tests look for the runner beside the command, and need nothing else of it.
export MARTLET_COMMAND="$scratch/build/$CONFIGURATION/BareGuest"
flags=(-c "$CONFIGURATION" --package-path "$tree" --scratch-path "$scratch/build")

build() { "$SWIFT" build "${flags[@]}" --build-tests >"$scratch/build.log" 2>&1; }

# Runs the tests that the argument names; their output goes to the log.
passes() {
    timeout 900 "$SWIFT" test "${flags[@]}" --skip-build --disable-xctest --no-parallel --filter "^${1//./\\.}[./]" \
        </dev/null >"$scratch/test.log" 2>&1
}

fail() {
    echo "martlet: $1" >&2
    [[ -z "${2-}" ]] || tail -n 20 "$2" >&2
    exit 2
}

rm -rf "$tree"
mkdir -p "$tree"
tar --create --exclude=./.build --exclude=./.git . | tar --extract --directory "$tree" || fail "cannot copy the tree"

echo "martlet: building the copy without mutants" >&2
build || fail "the copy does not build" "$scratch/build.log"
for suite in TranslatorTests DifferentialTests; do
    passes "$suite" || fail "$suite fails without mutants" "$scratch/test.log"
    grep -q -a -E 'Test run with .*[1-9][0-9]* tests? .*passed' "$scratch/test.log" || fail "$suite ran no test" "$scratch/test.log"
    if grep -q -a -E '^. +Test .* skipped' "$scratch/test.log"; then
        grep -a -E '^. +Test .* skipped' "$scratch/test.log" >&2
    fi
done

killed=0
survived=0
for mutant in "${mutants[@]}"; do
    # The scripts have no bars but for those of Swift's operators, which the fields around them leave intact.
    name="${mutant%%|*}"
    suite="${mutant##*|}"
    rest="${mutant#*|}"
    rule="${rest%%|*}"
    rest="${rest#*|}"
    file="${rest%%|*}"
    rest="${rest#*|}"
    script="${rest%|*}"
    [[ $# -eq 0 || " $* " == *" $name "* ]] || continue

    original="$scratch/original"
    cp "$tree/$file" "$original" || fail "$name: there is no $file"
    sed -i "$script" "$tree/$file" || fail "$name: not a sed script: $script"
    changed="$(diff "$original" "$tree/$file" | grep -c '^<')"
    [[ "$changed" -gt 0 ]] || fail "$name: nothing in $file matches: $script"
    build || fail "$name does not build" "$scratch/build.log"
    if passes "$suite"; then
        echo "martlet: $name survived $suite: $rule ($changed lines of $file)"
        survived=$((survived + 1))
    else
        status=$?
        # A crash is a failure too, but then there is no count.
        issues="$(grep -c -a 'recorded an issue' "$scratch/test.log")"
        echo "martlet: $name killed by $suite, status $status, $issues issues: $rule"
        killed=$((killed + 1))
    fi
    cp "$original" "$tree/$file"
done
[[ $((killed + survived)) -gt 0 ]] || fail "no mutant has that name: $*"
echo "$killed killed, $survived survived"
[[ $survived -eq 0 ]]
