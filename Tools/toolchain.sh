# Sourced by the other tools: goes to the root of the repository and checks for the Swift toolchain.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
SWIFT="${SWIFT:-swift}"
CONFIGURATION="${CONFIGURATION:-release}"
PRODUCT="${PRODUCT:-.build/$CONFIGURATION/martlet}"

if ! command -v "$SWIFT" >/dev/null; then
    echo "martlet: no Swift toolchain: '$SWIFT' is not in PATH; install Swift 6.3 from https://www.swift.org/install/" >&2
    exit 1
fi
