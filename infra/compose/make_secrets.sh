#!/bin/sh
# Makes secrets/ beside this file, once: the tokens of Ray and of the service, the S3 server's user, Grafana's password.
# Prints no secrets. Run by root, it gives them to the user who called sudo, or to user 1000: no container runs as root.
set -eu
cd "$(dirname "$0")"
umask 077
if [ -e secrets ]; then
    echo "secrets/ exists already; nothing was changed" >&2
    exit 0
fi
uid=$(id -u) gid=$(id -g)
if [ "$uid" -eq 0 ]; then
    uid=${SUDO_UID:-1000} gid=${SUDO_GID:-1000}
    if [ "$uid" -eq 0 ]; then uid=1000 gid=1000; fi
fi
draw() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
mkdir secrets
draw 32 >secrets/ray_token
draw 12 >secrets/grafana_password
printf 'FSS_TOKEN=%s\n' "$(draw 32)" >secrets/service.env
key=fss secret=$(draw 20)
printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$key" "$secret" >secrets/s3.env
printf '{"identities":[{"name":"fss","credentials":[{"accessKey":"%s","secretKey":"%s"}],"actions":["Admin","Read","List","Tagging","Write"]}]}\n' \
    "$key" "$secret" >secrets/s3_identities.json
printf 'COMPOSE_PROJECT_NAME=fss\nFSS_UID=%s\nFSS_GID=%s\n' "$uid" "$gid" >.env
if [ "$(id -u)" -eq 0 ]; then chown -R "$uid:$gid" secrets .env; fi
echo "made secrets/ and .env" >&2
