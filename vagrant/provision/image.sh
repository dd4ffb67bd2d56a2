#!/bin/sh
# The image of ipvsproxy from the working tree, into containerd and to where the other nodes fetch it. No container
# engine builds it: tools/image-root makes its files (debootstrap, then deploy/install.sh), image-archive.py packs them.
# When only our own code has changed, that is exchanged, which needs no network. The tag is the content's: a node that
# runs the tag runs the code.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$SOURCE"
cache=$SOURCE/.cache/image
root=$cache/root
sources() { find ipvsproxy nft -type f ! -path '*/__pycache__/*' | LC_ALL=C sort; }
digest() { cat "$@" | sha256sum | cut -c 1-12; }

# What a former cluster has made, if it was kept: see vagrant/cache.sh.
if [ ! -d "$root" ] && [ -e /var/cache/lab/image.tar ]; then
    mkdir -p "$cache"
    tar -x -f /var/cache/lab/image.tar -C "$cache"
fi

base=$(digest deploy/Dockerfile deploy/install.sh deploy/sbom.py deploy/requirements.lock pyproject.toml)
# shellcheck disable=SC2046  # a list of words
tag=$(digest deploy/Dockerfile deploy/install.sh deploy/sbom.py deploy/requirements.lock pyproject.toml $(sources))
if [ "$(cat "$cache/content" 2>/dev/null)" != "$base" ]; then
    say "making the image's files, some minutes"
    apt_need python3-venv debootstrap
    tools/image-root
    echo "$base" >"$cache/content"
fi
if [ "$(cat "$LAB/image.tag" 2>/dev/null)" != "$tag" ]; then
    site=$(echo "$root"/opt/ipvsproxy/lib/python3*/site-packages)
    for package in ipvsproxy nft; do
        rm -rf "${site:?}/$package"
    done
    # shellcheck disable=SC2046  # a list of words
    tar -c $(sources) | tar -x -C "$site"
    chroot "$root" /opt/ipvsproxy/bin/python -m compileall -q "${site#"$root"}/ipvsproxy" "${site#"$root"}/nft"
    mkdir -p "$LAB"
    python3 vagrant/provision/image-archive.py "$root" "docker.io/library/ipvsproxy:$tag" "$LAB/image.tar"
    echo "$tag" >"$LAB/image.tag"
fi
"$SOURCE/vagrant/provision/import.sh"
