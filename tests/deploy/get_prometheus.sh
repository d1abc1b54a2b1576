#!/bin/sh
# Puts prometheus and promtool of Debian's package beside the Python of .venv (or into $1); installs nothing, starts nothing.
set -eu
target=${1:-$(dirname "$0")/../../.venv/bin}
target=$(cd "$target" && pwd)
[ -x "$target/promtool" ] && [ -x "$target/prometheus" ] && exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update && apt-get -qq download prometheus; }
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/prometheus ./usr/bin/promtool
mv usr/bin/prometheus usr/bin/promtool "$target"
