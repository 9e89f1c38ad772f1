#!/bin/bash
# Runs a command where there is no /dev/kvm, as a user without privileges: without-kvm.sh USER COMMAND ARGUMENT...
#
# USER is a user number, or "-" to stay who one is. Needs root: a mount namespace gets a /dev of its own.
set -euo pipefail
user="$1"
shift
if [[ "${MARTLET_WITHOUT_KVM:-}" != inside ]]; then
    exec env MARTLET_WITHOUT_KVM=inside unshare --mount --propagation private -- "$BASH" "$0" "$user" "$@"
fi
unset MARTLET_WITHOUT_KVM
new="$(mktemp -d)"
mount -t tmpfs -o mode=755 none "$new"
for node in null zero full random urandom tty; do
    touch "$new/$node"
    mount --bind "/dev/$node" "$new/$node"
done
mkdir "$new/pts" "$new/shm"
mount --bind /dev/pts "$new/pts"
mount -t tmpfs -o mode=1777 none "$new/shm"
ln -s pts/ptmx "$new/ptmx"
ln -s /proc/self/fd "$new/fd"
ln -s /proc/self/fd/0 "$new/stdin"
ln -s /proc/self/fd/1 "$new/stdout"
ln -s /proc/self/fd/2 "$new/stderr"
[[ ! -e /dev/userfaultfd ]] || { touch "$new/userfaultfd"; mount --bind /dev/userfaultfd "$new/userfaultfd"; }
mount --move "$new" /dev
rmdir "$new"
if [[ -e /dev/kvm ]]; then
    echo "without-kvm.sh: there still is a /dev/kvm" >&2
    exit 99
fi
if [[ "$user" == - ]]; then exec "$@"; fi
exec setpriv --reuid="$user" --regid="$user" --clear-groups --inh-caps=-all -- "$@"
