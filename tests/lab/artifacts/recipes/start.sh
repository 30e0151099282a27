#!/usr/bin/env bash
# Starts Open WebUI the way the published image does: HOST and PORT from the environment, data in /app/backend/data,
# the secret key from WEBUI_SECRET_KEY or, kept beside the data, from a file made on the first start.
set -euo pipefail
umask 077
cd /app/backend
if [ -z "${WEBUI_SECRET_KEY:-}" ]; then
  key_file="${WEBUI_SECRET_KEY_FILE:-/app/backend/.webui_secret_key}"
  [ -s "$key_file" ] || head -c 24 /dev/urandom | base64 >"$key_file"
  WEBUI_SECRET_KEY="$(cat "$key_file")"
  export WEBUI_SECRET_KEY
fi
exec python3 -m uvicorn open_webui.main:app --host "${HOST:-0.0.0.0}" --port "${PORT:-8080}" \
  --forwarded-allow-ips '*' --workers "${UVICORN_WORKERS:-1}"
