#!/bin/sh
# Other services reach this one at the address it listens on; the default is the container's own address.
set -eu
: "${BATON_HOST:=$(hostname -i | cut -d ' ' -f 1)}"
export BATON_HOST BATON_ADMIN_HOST="${BATON_ADMIN_HOST:-$BATON_HOST}"
# Secrets may be files (compose, swarm): if NAME_FILE names a file, NAME is set to its contents.
for name in BATON_SERVICE_TOKEN REDIS_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    [ -z "$file" ] || export "$name=$(cat "$file")"
    unset "${name}_FILE"
done
[ -z "${REDIS_PASSWORD:-}" ] || export BATON_REDIS_URL="redis://:$REDIS_PASSWORD@${REDIS_HOST:-redis}:6379/0"
unset REDIS_PASSWORD
exec baton "$@"
