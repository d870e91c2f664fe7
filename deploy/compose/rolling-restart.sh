#!/usr/bin/env bash
# Restarts the containers of services one after the other, each once its predecessor is healthy again:
#   deploy/compose/rolling-restart.sh router worker
# DOCKER names the client (docker); COMPOSE_ARGS the files, by default those of two replicas.
set -euo pipefail
cd "$(dirname "$0")/../.."
DOCKER=${DOCKER:-docker}
COMPOSE_ARGS=${COMPOSE_ARGS:--f docker-compose.yml -f deploy/compose/replicas.yml}
WAIT_SECONDS=${WAIT_SECONDS:-300}

for service in "$@"; do
    # shellcheck disable=SC2086  # several arguments
    containers=$("$DOCKER" compose $COMPOSE_ARGS ps -q "$service")
    [ -n "$containers" ] || { echo "no container of $service runs" >&2; exit 1; }
    for container in $containers; do
        # Without -t it would be killed after ten seconds, whatever the compose file says of its time to drain.
        "$DOCKER" restart -t 45 "$container" >/dev/null
        deadline=$((SECONDS + WAIT_SECONDS))
        until [ "$("$DOCKER" inspect -f '{{.State.Health.Status}}' "$container")" = healthy ]; do
            [ $SECONDS -lt $deadline ] || { echo "$service ${container:0:12} did not become healthy" >&2; exit 1; }
            sleep 1
        done
        echo "$service ${container:0:12} restarted"
    done
done
