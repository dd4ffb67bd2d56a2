#!/bin/sh
# Keep what the machines have downloaded, so that `vagrant destroy` and `vagrant up` need no network. From the host:
#
#     vagrant/cache.sh save      into vagrant/.cache, which later machines get and use first
#     vagrant/cache.sh forget
set -eu
here=$(dirname "$0")

case ${1:-} in
    save)
        mkdir -p "$here/.cache"
        (cd "$here" && vagrant ssh-config node1) >"$here/.cache/ssh-config-node1"
        # What node1 has is all that any machine needs.
        ssh -q -F "$here/.cache/ssh-config-node1" node1 sudo /ipvsproxy/vagrant/provision/pack.sh >"$here/.cache/new.tar"
        tar -x -f "$here/.cache/new.tar" -C "$here/.cache"
        rm "$here/.cache/new.tar"
        du -sh "$here/.cache"
        ;;
    forget) rm -rf "$here/.cache" ;;
    *)
        sed -n 's/^# \{0,1\}//p' "$0" | sed 1d
        exit 2
        ;;
esac
