#!/bin/bash
# Machines on this machine, as namespaces: each has a network, processes, a home and a /tmp/ray of its own, and an sshd if there is one.
#   unshare --mount --net --pid --fork --kill-child --mount-proc bash machines.sh FOLDER COUNT COMMAND...
# They are 10.77.0.1 and so on, and end with COMMAND, which runs beside them. FOLDER/NUMBER/pid: a process of the machine, for nsenter.
set -euo pipefail

own_files() { # own_files FOLDER: the home and /tmp/ray of this mount namespace
    mkdir -p "$1/home/.ssh" "$1/ray" /tmp/ray
    { echo "root:x:0:0::$1/home:/bin/bash"; echo 'sshd:x:100:65534::/run/sshd:/usr/sbin/nologin'; grep -v '^root:\|^sshd:' /etc/passwd; } >"$1/passwd"
    mount --bind "$1/passwd" /etc/passwd
    mount --bind "$1/ray" /tmp/ray
    mount -t tmpfs none /run
    mkdir -m 755 /run/sshd
    ip link set lo up
}

if [ "$1" = machine ]; then # machine FOLDER NUMBER: this process becomes the machine
    own_files "$2/$3"
    until ip link set eth0 up 2>/dev/null; do sleep 0.05; done # it comes from outside
    ip addr add "10.77.0.$3/24" dev eth0
    ip route add default via 10.77.0.254
    sshd=$(command -v sshd) || exec sleep infinity
    exec "$sshd" -D -e -f /dev/null -h "$2/host_key" -o AuthorizedKeysFile="$2/key.pub" -o StrictModes=no \
        -o PidFile=none -o SetEnv="PATH=$PATH" 2>"$2/$3/sshd.log"
fi

folder=$1 count=$2
shift 2
mkdir -p "$folder"
[ -z "$(command -v sshd)" ] || for key in key host_key; do ssh-keygen -q -t ed25519 -N '' -f "$folder/$key"; done
own_files "$folder/0"
ip link add name lan type bridge
ip addr add 10.77.0.254/24 dev lan
ip link set lan up
for number in $(seq "$count"); do
    mkdir -p "$folder/$number"
    unshare --mount --net --pid --fork --kill-child --mount-proc bash "$0" machine "$folder" "$number" &
    until pgrep -P $! >"$folder/$number/pid"; do sleep 0.05; done
    until [ "$(readlink "/proc/$(cat "$folder/$number/pid")/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
    ip link add name "to$number" type veth peer name eth0 netns "$(cat "$folder/$number/pid")"
    ip link set "to$number" master lan up
done
export HOME="$folder/0/home"
"$@"
