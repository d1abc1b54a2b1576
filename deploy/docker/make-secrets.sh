#!/bin/sh
# Creates the files that are missing in secrets/, with random words that the containers can read. Prints none of them.
set -eu
folder="${1:-$(dirname "$0")/secrets}"
mkdir -p "$folder"
chmod 711 "$folder"
for name in service-token redis-password api-keys grafana-password; do
    [ -s "$folder/$name" ] && continue
    # only letters and digits, because the password becomes part of a URL
    head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c 40 > "$folder/$name"
    chmod 644 "$folder/$name" # compose mounts the file with its mode, and containers run as other users
done
