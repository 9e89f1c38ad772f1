#!/bin/bash
# Installs the Debian packages that are missing from the sets named as arguments: build, guest, test, bench,
# bench-core, oracle.
#
# Uses root or sudo, and only if something is missing; otherwise prints the command to run and fails.
set -euo pipefail

declare -A packages=(
    [build]="libc6-dev libzydis-dev liblzma-dev libzstd-dev liblz4-dev zlib1g-dev"
    [guest]="apt dpkg tar xz-utils busybox-static"
    [test]="apt binutils cpio dpkg e2fsprogs gcc gdb grub-common grub-pc-bin linux-source-6.1 lz4 make mmdebstrap
        qemu-system-x86 qemu-utils uidmap util-linux xz-utils zstd"
    [oracle]="binutils cpio gcc qemu-system-x86"
    [bench-core]="liburcu-dev"
    [bench]="cpio gcc libc6-dev qemu-system-x86 zlib1g-dev"
)

is_installed() {
    [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "martlet: this is not a Debian system; packages needed: ${packages[*]}" >&2
    exit 0
fi

missing=()
for set in "$@"; do
    for package in ${packages[$set]}; do
        if ! is_installed "$package" && [[ " ${missing[*]-} " != *" $package "* ]]; then
            missing+=("$package")
        fi
    done
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $EUID -eq 0 ]]; then
    as_root=(env DEBIAN_FRONTEND=noninteractive)
elif command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
else
    echo "martlet: missing Debian packages: ${missing[*]}" >&2
    echo "martlet: run this as root, then try again:" >&2
    echo "    apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}" >&2
    exit 1
fi

install_missing() {
    "${as_root[@]}" apt-get install --yes --no-install-recommends "${missing[@]}" </dev/null >&2
}

echo "martlet: installing ${missing[*]}" >&2
# A fresh container has no package lists, and old lists name versions that the archive no longer has.
if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then
    "${as_root[@]}" apt-get update </dev/null >&2
    install_missing
elif ! install_missing; then
    "${as_root[@]}" apt-get update </dev/null >&2
    install_missing
fi
