#!/usr/bin/env bash
# Restarts the containers of services one after the other, each once its predecessor is healthy again and has been for
# SETTLE_SECONDS: whoever sends it requests looks for it every few seconds, and has no other one when the next one goes.
#   deploy/compose/rolling-restart.sh router worker
# COMPOSE and DOCKER name other programs than Docker's; the files are those of two replicas.
set -euo pipefail
cd "$(dirname "$0")/../.."
read -ra compose <<< "${COMPOSE:-docker compose -f docker-compose.yml -f deploy/compose/replicas.yml}"
docker=${DOCKER:-docker}
wait_seconds=${WAIT_SECONDS:-300}
settle_seconds=${SETTLE_SECONDS:-5}

for service in "$@"; do
    containers=$("${compose[@]}" ps -q "$service")
    [ -n "$containers" ] || { echo "no container of $service runs" >&2; exit 1; }
    for container in $containers; do
        # Without -t it would be killed after ten seconds, whatever the compose file says of its time to drain.
        "$docker" restart -t 45 "$container" > /dev/null
        deadline=$((SECONDS + wait_seconds))
        until [ "$("$docker" inspect -f '{{.State.Health.Status}}' "$container")" = healthy ]; do
            [ $SECONDS -lt $deadline ] || { echo "$service ${container:0:12} did not become healthy" >&2; exit 1; }
            sleep 1
        done
        sleep "$settle_seconds"
        echo "$service ${container:0:12} restarted"
    done
done
