#!/bin/sh
# Give the image in LAB to the kubelet's containerd, unless it has it.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"
name=docker.io/library/ipvsproxy:$(cat "$LAB/image.tag")
if ! ctr -n k8s.io images ls -q | grep -qx "$name"; then
    ctr -n k8s.io images import "$LAB/image.tar" >/dev/null
    say "imported $name"
fi
