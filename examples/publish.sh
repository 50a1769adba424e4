#!/bin/sh
# A backend says something in the chat. BONGSU_API_KEY is the key that the server printed when it started.
curl --fail-with-body -sS -H "X-API-Key: $BONGSU_API_KEY" \
    -d '{"channel": "chat:lobby", "data": {"text": "The beacon is lit."}}' \
    "${BONGSU_URL:-http://127.0.0.1:8000}/api/publish"
