#!/bin/bash
# Measures clients of KVM on Martlet, and where there is one on the kernel's /dev/kvm, or on QEMU's translator; prints a table.
#
# MARTLET_BENCH_RUNS (5) is how often each boot is repeated, interleaved.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build guest test >&2
"$SWIFT" build -c "$CONFIGURATION" --product martlet >&2
"$SWIFT" build -c "$CONFIGURATION" --product martlet-kvm >&2
"$PRODUCT" guest build >&2
guest="${XDG_CACHE_HOME:-$HOME/.cache}/martlet/guests/cloud"
runs="${MARTLET_BENCH_RUNS:-5}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export SWIFT_BACKTRACE=enable=no

seconds() { # COMMAND...: how long it takes
    local start="$EPOCHREALTIME"
    "$@" >/dev/null 2>&1 </dev/null
    echo "$EPOCHREALTIME $start" | awk '{ printf "%.3f\n", $1 - $2 }'
}
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
row() { printf '| %s | %s | %s | %s |\n' "$1" "$2" "$3" "$4"; }
martlet() { "$PRODUCT" kvm -- "$@"; }

gcc -O2 -o "$scratch/exits" Benchmarks/Clients/exits.c
martlet "$scratch/exits" >"$scratch/exits.martlet"
timeout 60 "$scratch/exits" >"$scratch/exits.kernel" 2>/dev/null || true
exit_time() { awk -v n="$1" '$1 == n { print $2 " ns" }' "$scratch/exits.$2"; }

echo '| figure | Martlet | compared with | at most |'
echo '|---|---:|---:|---|'
row 'empty `KVM_RUN`' "$(exit_time empty martlet)" "$(exit_time empty kernel) /dev/kvm here" '300 ns'
row 'port output, exit and back' "$(exit_time port martlet)" "$(exit_time port kernel) /dev/kvm here" '500 ns'
row 'read of a device, exit and back' "$(exit_time memory martlet)" "$(exit_time memory kernel) /dev/kvm here" '600 ns'

# The library's part of a program's start.
with="$(for _ in $(seq 21); do seconds martlet /bin/true; done | median)"
without="$(for _ in $(seq 21); do seconds "$PRODUCT" kvm --help; done | median)"
LD_PRELOAD="$(dirname "$PRODUCT")/libmartlet-kvm.so"
loaded="$(for _ in $(seq 21); do LD_PRELOAD="$LD_PRELOAD" seconds /bin/true; done | median)"
plain="$(for _ in $(seq 21); do LD_PRELOAD='' seconds /bin/true; done | median)"
unset LD_PRELOAD
row 'loading the library' "$(awk -v a="$loaded" -v b="$plain" 'BEGIN { printf "%.1f ms", (a - b) * 1000 }')" \
    "$(awk -v a="$with" -v b="$without" 'BEGIN { printf "%.1f ms with the command", (a - b) * 1000 }')" '3 ms'

archive=/usr/src/linux-source-6.1.tar.xz
tar --directory "$scratch" --strip-components=1 --extract --file "$archive" \
    linux-source-6.1/tools linux-source-6.1/scripts/subarch.include
tests="$scratch/tools/testing/selftests/kvm"
# `make bench-clients` must not tell the tests' make that it is not the first.
unset MAKELEVEL MAKEFLAGS MFLAGS MAKEOVERRIDES
make --directory "$tests" --jobs=2 KHDR_INCLUDES= EXTRA_CFLAGS='-DTEST_ASSERT_EQ=ASSERT_EQ -include linux/stddef.h' \
    >"$scratch/build.log" 2>&1
preload="$(realpath "$(dirname "$PRODUCT")")/libmartlet-kvm.so"
selftest() { (cd "$tests" && LD_PRELOAD="$preload" "./$@"); }

count=8192
time="$(seconds selftest kvm_create_max_vcpus)"
row 'creating a vCPU (`kvm_create_max_vcpus`)' "$(awk -v t="$time" -v n=$count 'BEGIN { printf "%.0f µs", t * 1e6 / n }')" \
    '142 µs Linux on a processor' '142 µs'
selftest dirty_log_perf_test -b 64M >"$scratch/dirty" 2>&1
field() { awk -F': ' -v k="$1" 'index($0, k) { print $2; exit }' "$scratch/dirty"; }
row '`dirty_log_perf_test -b 64M`, populate' "$(field 'Populate memory time')" '0.19 s Linux' '0.19 s'
row 'the same, a dirty pass' "$(field 'Iteration 1 dirty memory time')" '0.14 s Linux' '0.14 s'
# Slots change; the last figure of each line is the time of one iteration.
for number in 32 512 8194 32763; do
    selftest memslot_perf_test -s $number -l 1 -r 1 >"$scratch/slots" 2>&1 || true
    result="$(awk '/^Testing/ { name = $0; sub(/^Testing /, "", name); sub(/ performance.*/, "", name) }
        /avg/ { match($0, /avg [0-9.]+s/); times = times (times ? "; " : "") name " " substr($0, RSTART + 4, RLENGTH - 4) }
        END { print times }' "$scratch/slots")"
    row "\`memslot_perf_test\`, $number slots" "$result" '121 ms, 96 ms, 1.3–61 ms, 102–259 µs, 85–317 µs, 1.1 s Linux' 'Linux'
done

boot() { # ACCELERATOR PREFIX...
    local accelerator="$1"
    shift
    "$@" qemu-system-x86_64 -accel "$accelerator" -M q35 -m 512 -nodefaults -display none -serial stdio -no-reboot \
        -kernel "$guest/vmlinuz" -initrd "$guest/initramfs.cpio" -append 'console=ttyS0 panic=-1 martlet.run=true'
}
for _ in $(seq "$runs"); do
    seconds boot kvm martlet >>"$scratch/boot.martlet"
    seconds boot tcg env >>"$scratch/boot.tcg"
done
row 'QEMU boots the cloud kernel and powers off (q35)' "$(median <"$scratch/boot.martlet") s" \
    "$(median <"$scratch/boot.tcg") s QEMU's translator" "QEMU's translator"
