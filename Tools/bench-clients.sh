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
    echo "$EPOCHREALTIME $start" | awk '{ printf "%.6f\n", $1 - $2 }'
}
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
row() { printf '| %s | %s | %s | %s |\n' "$1" "$2" "$3" "$4"; }
martlet() { "$PRODUCT" kvm -- "$@"; }
# Seconds as three digits and a unit; a dash for nothing.
readable() {
    awk -v t="${1%s}" 'BEGIN {
        if (t == "") { print "–"; exit }
        split("ns µs ms s", unit, " ")
        t *= 1e9
        for (i = 1; i < 4 && t >= 999.5; i++) t /= 1000
        printf "%.3g %s\n", t, unit[i]
    }'
}
nanoseconds() { # FIELD NAME FILE: those of a line "NAME NANOSECONDS..."
    readable "$(awk -v f="$1" -v n="$2" '$1 == n { print $f "e-9" }' "$scratch/$3")"
}

for name in exits kicks; do
    gcc -O2 -o "$scratch/$name" "Benchmarks/Clients/$name.c" -lpthread
    martlet "$scratch/$name" >"$scratch/$name.martlet"
    timeout 60 "$scratch/$name" >"$scratch/$name.kernel" 2>/dev/null || true
done
"$scratch/kicks" thread >"$scratch/kicks.thread"
exit_row() { row "$1" "$(nanoseconds 2 "$2" exits.martlet)" "$(nanoseconds 2 "$2" exits.kernel) \`/dev/kvm\` here" "$3"; }
kicks() { # FIELD ACTIVITY SYSTEM: of the three ways
    local name
    for name in immediate mask handler; do nanoseconds "$1" "$name-$2" "kicks.$3"; done | paste -s -d '|' | sed 's/|/, /g'
}
echo "Load average at the start: $(cut -d ' ' -f 1 /proc/loadavg)"
echo
echo '| figure | Martlet | compared with | at most |'
echo '|---|---:|---:|---|'
exit_row 'empty `KVM_RUN`' empty '300 ns'
exit_row 'port output, exit and back' port '500 ns'
exit_row 'read of a device, exit and back' memory '600 ns'
# A handler sets immediate_exit; KVM_SET_SIGNAL_MASK lets a signal through; a handler does nothing.
for activity in computes halts; do
    figure="a signal ends \`KVM_RUN\`, the guest $activity: \`immediate_exit\`, mask, bare handler; median"
    aim='50 µs'
    for column in 2 3; do
        row "$figure" "$(kicks $column $activity martlet)" \
            "$(kicks $column $activity kernel) \`/dev/kvm\` here; $(nanoseconds $column thread-$activity kicks.thread) a thread without KVM" "$aim"
        figure='the same, 99 of 100'
        aim=''
    done
done

# The library's part of a program's start.
with="$(for _ in $(seq 21); do seconds martlet /bin/true; done | median)"
without="$(for _ in $(seq 21); do seconds "$PRODUCT" kvm --help; done | median)"
LD_PRELOAD="$(dirname "$PRODUCT")/libmartlet-kvm.so"
loaded="$(for _ in $(seq 21); do LD_PRELOAD="$LD_PRELOAD" seconds /bin/true; done | median)"
plain="$(for _ in $(seq 21); do LD_PRELOAD='' seconds /bin/true; done | median)"
unset LD_PRELOAD
difference() { readable "$(awk -v a="$1" -v b="$2" 'BEGIN { print a - b }')"; }
row 'loading the library' "$(difference "$loaded" "$plain")" "$(difference "$with" "$without") with the command" '3 ms'

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
row 'creating a vCPU (`kvm_create_max_vcpus`)' "$(readable "$(awk -v t="$time" -v n=$count 'BEGIN { print t / n }')")" \
    '142 µs Linux on a processor' '142 µs'
selftest dirty_log_perf_test -b 64M >"$scratch/dirty" 2>&1
field() { awk -F': ' -v k="$1" 'index($0, k) { print $2; exit }' "$scratch/dirty"; }
row '`dirty_log_perf_test -b 64M`, populate' "$(readable "$(field 'Populate memory time')")" '190 ms Linux' '190 ms'
row 'the same, a dirty pass' "$(readable "$(field 'Iteration 1 dirty memory time')")" '140 ms Linux' '140 ms'

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
row 'QEMU boots the cloud kernel and powers off (q35)' "$(readable "$(median <"$scratch/boot.martlet")")" \
    "$(readable "$(median <"$scratch/boot.tcg")") QEMU's translator" "QEMU's translator"

# Slots change; a test's figure is the time of one iteration. The test of "map" refuses more than 8,194 slots.
numbers=(32 512 8194 32763)
for number in "${numbers[@]}"; do
    selftest memslot_perf_test -s "$number" -l 1 -r 1 >"$scratch/slots.$number" 2>&1 || true
done
slots() { # TEST NUMBER
    readable "$(awk -v name="Testing $1 performance" '/^Testing/ { is_it = index($0, name) == 1 }
        is_it && match($0, /avg [0-9.]+s/) { print substr($0, RSTART + 4, RLENGTH - 4) }' "$scratch/slots.$2")"
}
echo
echo '| `memslot_perf_test`, an iteration | 32 slots | 512 | 8,194 | 32,763 | at most: Linux |'
echo '|---|---:|---:|---:|---:|---|'
while IFS='|' read -r name linux; do
    printf '| %s |' "$name"
    for number in "${numbers[@]}"; do printf ' %s |' "$(slots "$name" "$number")"; done
    printf ' %s |\n' "$linux"
done <<'END'
map|121 ms
unmap|96 ms
unmap chunked|1.3–61 ms
move active area|102–259 µs
move inactive area|85–317 µs
RW|1.1 s
END
echo
echo "Load average at the end: $(cut -d ' ' -f 1 /proc/loadavg)"
