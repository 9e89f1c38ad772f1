#!/bin/bash
# Compares what the cases say on a real KVM and on Martlet: compare.sh REAL MARTLET ACCEPTED
#
# ACCEPTED holds differences that may be there, as `diff` shows them, each group below a line that begins with "#" and says
# why. Status 1, and the cases in question, for a difference that is not accepted, an accepted one that is not there, and a
# group without a reason.
set -euo pipefail
export LC_ALL=C
real="$1" martlet="$2" accepted="$3"

failures=0
fail() {
    echo "$1"
    failures=$((failures + 1))
}

reasonless="$(awk '/^#/ { reason = 1 } /^$/ { reason = 0 } /^[-+]/ && !reason' "$accepted")"
[[ -z "$reasonless" ]] || fail "no reason is given for:"$'\n'"$reasonless"

differences="$({ diff --minimal --unified=0 "$real" "$martlet" || true; } | sed '1,2d' | { grep '^[-+]' || true; } | sort --unique)"
known="$({ grep '^[-+]' "$accepted" || true; } | sort --unique)"

unknown="$(comm -23 <(echo "$differences") <(echo "$known"))"
cases="$(sed 's/^.//; s/: .*//' <<<"$unknown" | sort --unique)"
for name in $cases; do
    fail "a difference that is not accepted: $name"
    # The case's lines, and of these what is not accepted.
    diff --unified --label "a real KVM" --label "Martlet" <(grep "^$name: " "$real") <(grep "^$name: " "$martlet") || true
    echo "of which are not accepted:"
    grep "^.$name: " <<<"$unknown" || true
done
stale="$(comm -13 <(echo "$differences") <(echo "$known"))"
[[ -z "$stale" ]] || fail "accepted, but not there any more:"$'\n'"$stale"
[[ $failures -eq 0 ]]
