#!/bin/sh
# Fetch the image from the control plane and join it. A node that has joined only fetches what is new.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"
files=http://$CONTROL4:8099
mkdir -p "$LAB"
curl --fail --silent --show-error --retry 30 --retry-delay 2 --retry-connrefused --output "$LAB/image.tag.new" \
    "$files/image.tag" || { say "node1 does not answer: is it up?" >&2; exit 1; }
if ! cmp -s "$LAB/image.tag.new" "$LAB/image.tag"; then
    curl --fail --silent --show-error --output "$LAB/image.tar" "$files/image.tar"
fi
mv "$LAB/image.tag.new" "$LAB/image.tag"
"$SOURCE/vagrant/provision/import.sh"

# The token proves who the API server is: good enough where no other machine is on the LAN, and nothing has to be copied.
put /etc/kubernetes/lab/join.yaml <<END
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    apiServerEndpoint: $CONTROL4:6443
    token: $TOKEN
    unsafeSkipCAVerification: true
nodeRegistration:
  name: $MACHINE
  criSocket: unix:///run/containerd/containerd.sock
  kubeletExtraArgs:
    - name: node-ip
      value: $ADDRESS4,$ADDRESS6
END
[ -e /etc/kubernetes/kubelet.conf ] || kubeadm join --config /etc/kubernetes/lab/join.yaml
