#!/bin/sh
# Write to standard output, as an archive, what another cluster would download: packages and their lists, Kubernetes'
# images, and the files of ipvsproxy's image. For vagrant/cache.sh; network.sh, node.sh and image.sh unpack it.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/apt/archives" "$folder/apt/lists"
cp /var/cache/apt/archives/*.deb "$folder/apt/archives"
find /var/lib/apt/lists -maxdepth 1 -type f ! -name lock -exec cp -t "$folder/apt/lists" {} +
cp /etc/apt/keyrings/*.asc "$folder"
# shellcheck disable=SC2046  # a list of names, which hold no blanks
ctr -n k8s.io images export "$folder/images.tar" $(ctr -n k8s.io images ls -q | grep '^registry.k8s.io/[^@]*$') >&2
tar -c -f "$folder/image.tar" -C "$SOURCE/.cache/image" root content
tar -c -C "$folder" .
