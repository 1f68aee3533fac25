#!/usr/bin/env bash
#
# Ends with 0 if this container's service is ready, for a container's health check. It is bash alone,
# because the image has no curl: couponctl check looks at Redis and MongoDB, and not at the service.
#
#   healthcheck PORT [PATH]        /readyz unless another path is named

set -euo pipefail
readonly PORT=${1:?usage: healthcheck PORT [PATH]} URL_PATH=${2:-/readyz}
# Longer than the service itself takes to say that it is not ready.
readonly ANSWER_WAIT_SECONDS_MAX=4

exec 3<>"/dev/tcp/127.0.0.1/$PORT"
printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$URL_PATH" >&3
IFS= read -r -t "$ANSWER_WAIT_SECONDS_MAX" status <&3
# What `docker inspect` shows of a failed check.
printf '%s\n' "${status%$'\r'}"
[[ $status == 'HTTP/1.1 200 '* ]]
