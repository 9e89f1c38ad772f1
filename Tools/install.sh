#!/bin/bash
# Installs the built command and its shell completions under the prefix given as the only argument.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"

prefix="$1"
completions() {
    "$PRODUCT" --generate-completion-script "$1" >"$2.new"
    install -D --mode=644 "$2.new" "$3"
    rm "$2.new"
}

install -D --mode=755 "$PRODUCT" "$prefix/bin/martlet"
install -D --mode=644 "$(dirname "$PRODUCT")/libmartlet-kvm.so" "$prefix/lib/martlet/libmartlet-kvm.so"
strip --strip-unneeded "$prefix/lib/martlet/libmartlet-kvm.so" 2>/dev/null || true
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
completions bash "$scratch/bash" "$prefix/share/bash-completion/completions/martlet"
completions zsh "$scratch/zsh" "$prefix/share/zsh/site-functions/_martlet"
completions fish "$scratch/fish" "$prefix/share/fish/vendor_completions.d/martlet.fish"
install -D --mode=644 LICENSE "$prefix/share/doc/martlet/LICENSE"
echo "martlet: installed to $prefix/bin/martlet" >&2
