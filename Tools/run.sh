#!/bin/bash
# Boots the default guest: to an interactive shell on a terminal, otherwise `uname -a` and power-off.
set -euo pipefail
source "$(dirname "$0")/toolchain.sh"

Tools/packages.sh build guest
"$SWIFT" build -c "$CONFIGURATION" --product martlet >&2
"$PRODUCT" guest build

if [[ -t 0 ]]; then
    echo "martlet: booting; Ctrl-A x leaves the guest" >&2
    exec "$PRODUCT" run
else
    exec "$PRODUCT" run --append martlet.batch
fi
