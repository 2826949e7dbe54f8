#!/bin/sh
# Makes secrets/ beside this file, once: Ray's token, the S3 server's user and Grafana's password. Prints no secrets.
set -eu
cd "$(dirname "$0")"
umask 077
if [ -e secrets ]; then
    echo "secrets/ exists already; nothing was changed" >&2
    exit 0
fi
draw() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
mkdir secrets
draw 32 >secrets/ray_token
draw 12 >secrets/grafana_password
key=fss secret=$(draw 20)
printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$key" "$secret" >secrets/s3.env
printf '{"identities":[{"name":"fss","credentials":[{"accessKey":"%s","secretKey":"%s"}],"actions":["Admin","Read","List","Tagging","Write"]}]}\n' \
    "$key" "$secret" >secrets/s3_identities.json
printf 'FSS_UID=%s\nFSS_GID=%s\n' "$(id -u)" "$(id -g)" >.env
echo "made secrets/ and .env" >&2
