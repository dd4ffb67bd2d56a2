#!/bin/sh
# What every node needs before kubeadm: kernel modules and settings, containerd, kubeadm's packages, and a CNI that
# is configuration only (Debian's bridge and host-local plugins; the routes between nodes are in lab-network).
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"

put /etc/modules-load.d/lab.conf <<'END'
overlay
br_netfilter
ip_vs
ip_vs_rr
nf_conntrack
nf_tables
dummy
END
xargs modprobe -a </etc/modules-load.d/lab.conf

# ipvsproxy makes settings of its own; these are every node's, whatever the service proxy.
put /etc/sysctl.d/90-lab.conf <<'END'
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
net.bridge.bridge-nf-call-iptables = 1
net.bridge.bridge-nf-call-ip6tables = 1
END
sysctl --quiet --load=/etc/sysctl.d/90-lab.conf

# The kubelet does not start beside swap.
swapoff -a
sed -i '/\sswap\s/s/^[^#]/# &/' /etc/fstab

apt_need apparmor ca-certificates containernetworking-plugins curl

# Kubernetes 1.36 wants containerd 2, which neither Debian 12 nor 13 has: then it is Docker's package, runc included.
# The other one cannot be installed beside it, so another KUBERNETES needs new machines.
containerd=containerd
if [ "${KUBERNETES#1.}" -ge 36 ]; then
    containerd=containerd.io
    key=/etc/apt/keyrings/containerd.asc
    mkdir -p /etc/apt/keyrings
    [ -s $key ] || cp /var/cache/lab/containerd.asc $key 2>/dev/null ||
        curl --fail --silent --show-error --location --retry 3 --output $key "$CONTAINERD_PACKAGES/gpg"
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    echo "deb [signed-by=$key] $CONTAINERD_PACKAGES $codename stable" | put /etc/apt/sources.list.d/containerd.list
    [ -z "$(apt_missing $containerd)" ] || [ -d /var/cache/lab/apt ] || apt_refresh
fi
apt_need $containerd

packages=$KUBERNETES_PACKAGES/v$KUBERNETES/deb
key=/etc/apt/keyrings/kubernetes.asc
mkdir -p /etc/apt/keyrings
[ -s $key ] || cp /var/cache/lab/kubernetes.asc $key 2>/dev/null ||
    curl --fail --silent --show-error --location --retry 3 --output $key "$packages/Release.key"
echo "deb [signed-by=$key] $packages/ /" | put /etc/apt/sources.list.d/kubernetes.list
[ -z "$(apt_missing kubelet kubeadm kubectl)" ] || [ -d /var/cache/lab/apt ] || apt_refresh
apt_need kubelet kubeadm kubectl
apt-mark -qq hold kubelet kubeadm kubectl

# As containerd would have it, but: systemd owns the cgroups, as the kubelet expects; the plugins are where Debian puts
# them; the pause image is the one that kubeadm knows. An option that is not there is an error, not a surprise later.
config=/etc/containerd/config.toml
pause=$(kubeadm config images list --kubernetes-version "$(kubeadm version -o short)" | grep /pause:)
containerd config default >/tmp/config.toml
set_line /tmp/config.toml SystemdCgroup true
if grep -q '^version = 2' /tmp/config.toml; then
    set_line /tmp/config.toml sandbox_image "\"$pause\""
else
    set_line /tmp/config.toml sandbox "'$pause'"
fi
# containerd 2.1 has a list of folders; other plugins of it have a bin_dir, too.
if grep -q '^ *bin_dirs = ' /tmp/config.toml; then
    set_line /tmp/config.toml bin_dirs "['/usr/lib/cni']"
else
    set_line /tmp/config.toml bin_dir "'/usr/lib/cni'" '/\.cni\]/,/^ *$/'
fi
put $config </tmp/config.toml
[ "$changed" = no ] || systemctl restart containerd
rm -f /tmp/config.toml
systemctl enable --quiet containerd kubelet
if [ -e /var/cache/lab/images.tar ] && ! ctr -n k8s.io images ls -q | grep -q /pause:; then
    ctr -n k8s.io images import /var/cache/lab/images.tar >/dev/null
fi
put /etc/crictl.yaml <<'END'
runtime-endpoint: unix:///run/containerd/containerd.sock
END

# hairpinMode lets a pod reach itself through a Service. Leases live below /run: no container survives a reboot.
put /etc/cni/net.d/10-lab.conflist <<END
{
  "cniVersion": "1.0.0",
  "name": "lab",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "hairpinMode": true,
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni/networks",
        "ranges": [
          [{"subnet": "$POD_CIDR4"}],
          [{"subnet": "$POD_CIDR6"}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    }
  ]
}
END
say "ready for kubeadm $(kubeadm version -o short)"
