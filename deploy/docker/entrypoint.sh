#!/bin/sh
# A service is found by the address that it listens on: where none is given, the container's own.
set -eu
: "${BATON_HOST:=$(hostname -i | cut -d ' ' -f 1)}"
export BATON_HOST BATON_ADMIN_HOST="${BATON_ADMIN_HOST:-$BATON_HOST}"
# Secrets may come as files (compose, swarm): NAME_FILE names the file, and the variable gets what is in it.
for name in BATON_SERVICE_TOKEN REDIS_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    [ -z "$file" ] || export "$name=$(cat "$file")"
    unset "${name}_FILE"
done
[ -z "${REDIS_PASSWORD:-}" ] || export BATON_REDIS_URL="redis://:$REDIS_PASSWORD@${REDIS_HOST:-redis}:6379/0"
unset REDIS_PASSWORD
exec baton "$@"
