#!/bin/bash
# Runs martlet on a real KVM, that of a Linux kernel in a QEMU machine whose processor, translated by QEMU, has AMD's
# virtualization: what /dev/kvm does there, `--accel kernel` must live with.
#
# oracle.sh          what `guests` and `clients` do, in one boot
# oracle.sh guests   boots guests with `--accel kernel` and looks at what they print, then at what `auto` chooses
# oracle.sh clients  runs the small clients of Tests/ClientTests/Oracle there and on Martlet, and compares what they say; also
#                    with the transcript that the tests use, which `oracle.sh clients --record` makes anew
# oracle.sh tests    runs the tests that compare the kernel's KVM with the one in user space
#
# MARTLET_ORACLE_SECONDS is how long the machine may run (default 900). Status 0 also if packages are missing: it says so.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"

skip() {
    echo "martlet: the oracle is skipped: $1" >&2
    exit 0
}

what="${*:-guests and clients}"
case "$what" in
guests | clients | "clients --record" | "guests and clients" | tests) ;;
*)
    echo "usage: Tools/oracle.sh [guests | clients [--record] | tests]" >&2
    exit 2
    ;;
esac

Tools/packages.sh build guest oracle || skip "the packages named above are missing"
command -v qemu-system-x86_64 >/dev/null || skip "there is no qemu-system-x86_64"

"$SWIFT" build -c "$CONFIGURATION" --product martlet >&2
programs=("$PRODUCT")
[[ "$what" != *clients* ]] || "$SWIFT" build -c "$CONFIGURATION" --product martlet-kvm >&2
if [[ "$what" == tests ]]; then
    MARTLET_CORE_TESTS=KernelKVMTests "$SWIFT" build -c "$CONFIGURATION" --build-tests >&2
    programs+=(".build/$CONFIGURATION/martletPackageTests.xctest")
fi
[[ "$what" != guests* ]] || "$PRODUCT" guest build >&2
"$PRODUCT" guest build --flavour standard >&2

cache="${XDG_CACHE_HOME:-$HOME/.cache}/martlet"
host="$cache/guests/standard"
guest="$cache/guests/cloud"
scratch="$(mktemp -d)"
machine=""
console=""
cleanup() {
    # `timeout` passes its end on to QEMU.
    if [[ -n "$machine" ]] && kill -TERM "$machine" 2>/dev/null; then wait "$machine" || true; fi
    [[ -z "$console" ]] || kill "$console" 2>/dev/null || true
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The modules belong to the kernel that the standard guest has.
read -r package version <"$host/manifest"
modules="$cache/oracle/${package}_$version"
if [[ ! -e "$modules/complete" ]]; then
    echo "martlet: downloading $package $version for its KVM modules" >&2
    mkdir -p "$scratch/package" "$modules"
    (cd "$scratch/package" && apt-get download "$package=$version" >&2) \
        || skip "$package $version cannot be downloaded; 'martlet guest build --flavour standard --update' gets a current one"
    dpkg-deb --fsys-tarfile "$scratch"/package/*.deb | tar --extract --directory "$scratch/package" --wildcards './lib/modules/*'
    for module in rng-core ccp irqbypass kvm kvm-amd; do
        # What is built into the kernel is no file.
        find "$scratch/package" -name "$module.ko" -exec cp {} "$modules/" \;
    done
    rm -rf "$scratch/package"
    [[ -e "$modules/kvm-amd.ko" ]] || skip "$package $version has no kvm-amd.ko"
    touch "$modules/complete"
fi

# The programs with their libraries, the guest and the script that runs them, behind the standard guest's own archive.
root="$scratch/root/oracle"
mkdir -p "$root/lib" "$root/guest"
cp "$modules"/*.ko "$root/"
if [[ "$what" == guests* ]]; then cp "$guest/vmlinuz" "$guest/initramfs.cpio" "$root/guest/"; fi
clients=Tests/ClientTests/Oracle
if [[ "$what" == *clients* ]]; then
    build_clients() {
        gcc -O1 -Wall -Werror -D_GNU_SOURCE "$@" "$clients"/*.c -lpthread
    }
    build_clients -static -o "$root/clients"
    build_clients -o "$scratch/clients"
fi
for program in "${programs[@]}"; do
    cp "$program" "$root/"
    ldd "$program" | awk '$2 == "=>" { print $3 } $1 ~ "^/" { print $1 }' | xargs -I{} cp --dereference --update {} "$root/lib/"
done
strip --strip-debug "$root"/martlet* "$root"/lib/*.so* 2>/dev/null || true
{
    cat <<'SCRIPT'
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
cd /oracle
for module in rng-core ccp irqbypass kvm kvm-amd; do
    [ ! -e $module.ko ] || insmod $module.ko || echo "oracle: no $module"
done
load() {
    program="$1"
    shift
    lib/ld-linux-x86-64.so.2 --library-path lib "./$program" "$@"
}
run() {
    name="$1"
    shift
    echo "oracle: $name begins"
    load martlet run --verbose --memory 256M --kernel guest/vmlinuz --initramfs guest/initramfs.cpio "$@" </dev/null
    echo "oracle: $name: status $?"
}
SCRIPT
    if [[ "$what" == tests ]]; then
        cat <<'SCRIPT'
load martletPackageTests.xctest --testing-library swift-testing --no-parallel </dev/null
echo "oracle: tests: status $?"
SCRIPT
    fi
    if [[ "$what" == *clients* ]]; then
        cat <<'SCRIPT'
# Of the kernel's messages none but those of a crash, as they would end up in the middle of a line.
echo 1 >/proc/sys/kernel/printk
./clients >/tmp/clients
status=$?
sed 's/^/clients> /' /tmp/clients
echo "oracle: clients: status $status"
SCRIPT
    fi
    if [[ "$what" == guests* ]]; then
        cat <<'SCRIPT'
load martlet doctor
run kernel --accel kernel --append martlet.batch
run kernel-smp --accel kernel --cpus 2 --append 'martlet.run="grep -c ^processor /proc/cpuinfo"'
run auto --append martlet.batch
SCRIPT
    fi
    echo "poweroff -f"
} >"$root/init"
chmod +x "$root/init"
{
    cat "$host/initramfs.cpio"
    (cd "$scratch/root" && find oracle | cpio --quiet --create --format=newc --owner=0:0)
} >"$scratch/initramfs.cpio"

echo "martlet: booting $package in QEMU; this takes minutes" >&2
: >"$scratch/console"
timeout --foreground --kill-after=5 "${MARTLET_ORACLE_SECONDS:-900}" qemu-system-x86_64 -accel tcg,tb-size=512 -cpu max,+svm -M q35 -m 2048 \
    -nodefaults -display none -serial stdio -no-reboot -kernel "$host/vmlinuz" -initrd "$scratch/initramfs.cpio" \
    -append 'console=ttyS0 panic=-1 tsc=reliable quiet rdinit=/oracle/init' </dev/null >"$scratch/console" 2>"$scratch/errors" &
machine=$!
# In the background, as a signal is handled only between two commands, or while the shell waits for one of these.
tail --follow --lines=+1 --pid="$machine" "$scratch/console" | sed --unbuffered '/^clients> /d' &
console=$!
status=0
wait "$machine" || status=$?
machine=""
wait "$console" || true
console=""
[[ ! -s "$scratch/errors" ]] || cat "$scratch/errors" >&2

failures=0
# Looks for a line of the console.
expect() {
    # Not `--quiet`, with which `tr` may be left without a reader, and the pipe fails.
    if ! tr -d '\r' <"$scratch/console" | grep --extended-regexp "$2" >/dev/null; then
        echo "martlet: the oracle: $1: no line '$2'" >&2
        failures=$((failures + 1))
    fi
}
if [[ "$what" == tests ]]; then expect tests '^oracle: tests: status 0$'; fi
if [[ "$what" == *clients* ]]; then
    expect clients '^oracle: clients: status 0$'
    tr -d '\r' <"$scratch/console" | sed --quiet 's/^clients> //p' >"$scratch/real"
    if ! "$PRODUCT" kvm -- "$scratch/clients" >"$scratch/martlet"; then
        echo "martlet: the oracle: the clients fail on Martlet" >&2
        failures=$((failures + 1))
    fi
    if [[ "$what" == *--record && $failures -eq 0 && $status -eq 0 ]]; then
        cp "$scratch/real" "$clients/real-kvm.txt"
    elif ! diff --unified "$clients/real-kvm.txt" "$scratch/real"; then
        echo "martlet: the oracle: this KVM does not say what the transcript has; 'Tools/oracle.sh clients --record' makes it anew" >&2
        failures=$((failures + 1))
    fi
    "$clients/compare.sh" "$scratch/real" "$scratch/martlet" "$clients/accepted.txt" || failures=$((failures + 1))
fi
if [[ "$what" == guests* ]]; then
    expect "--accel kernel" '^martlet: accel: kernel: '
    expect "a guest on the kernel's KVM" '^oracle: kernel: status 0$'
    expect "what it prints" '^Linux martlet '
    expect "two processors" '^oracle: kernel-smp: status 0$'
    expect "two processors" '^martlet.status=0$'
    expect "its choice" '^martlet: accel: (kernel|user space): '
    expect "a guest on the core of its choice" '^oracle: auto: status 0$'
fi
if [[ $status -ne 0 ]]; then
    echo "martlet: the oracle: QEMU ended with status $status (124: out of time, see MARTLET_ORACLE_SECONDS)" >&2
    failures=$((failures + 1))
fi
[[ $failures -eq 0 ]] || exit 1
echo "martlet: the oracle: all as expected" >&2
