#!/bin/sh
# Writes what is missing of secrets/: random words, readable by their owner's containers. Prints none of them.
set -eu
folder="${1:-$(dirname "$0")/secrets}"
mkdir -p "$folder"
chmod 711 "$folder"
for name in service-token redis-password api-keys grafana-password; do
    [ -s "$folder/$name" ] && continue
    # letters and digits alone: the password is part of a URL
    head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c 40 > "$folder/$name"
    chmod 644 "$folder/$name" # compose mounts it as it is, and containers are other users
done
