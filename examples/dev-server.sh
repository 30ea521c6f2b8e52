#!/usr/bin/env bash
# Runs a check against a dev server that is gone afterwards, however this script ends.
#
#   examples/dev-server.sh 'python3 -m http.server 8123 --bind 127.0.0.1' http://127.0.0.1:8123/ 'curl -sf'
set -euo pipefail
server=${1:-python3 -m http.server 8123 --bind 127.0.0.1}
url=${2:-http://127.0.0.1:8123/}
check=${3:-curl -sf -o /dev/null}
name=dev-server-$$

# The lease is the second line of defence: if this script is killed by SIGKILL, the server still ends.
agent-run --quiet --name "$name" --ttl 10m --log "${TMPDIR:-/tmp}/$name.log" -- sh -c "exec $server" >/dev/null &
trap 'agent-run stop "$name" >/dev/null' EXIT

for _ in $(seq 100); do
  if curl -s -o /dev/null "$url"; then
    $check "$url"
    echo "ok: $url answered"
    exit
  fi
  agent-run status "$name" >/dev/null || { echo "the server ended; its log:"; agent-run logs "$name"; exit 1; }
  sleep 0.1
done
echo "no answer from $url; the server's log:"
agent-run logs "$name"
exit 1
