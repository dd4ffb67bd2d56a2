#!/bin/sh
# The control plane by kubeadm, without kube-proxy, and ipvsproxy as the DaemonSet of deploy/.
set -eu
# shellcheck source=vagrant/provision/lib.sh
. "$(dirname "$0")/lib.sh"
export KUBECONFIG=/etc/kubernetes/admin.conf
folder=/etc/kubernetes/lab
extra=--extra-config=/var/lib/kube-proxy/extra.conf

# Nodes have their pod networks by number (Vagrantfile), so the controller that would allot them stays off. The token
# does not expire: nodes may be added at any time, from this LAN only.
put $folder/init.yaml <<END
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
bootstrapTokens:
  - token: $TOKEN
    ttl: 0s
    usages: [signing, authentication]
    groups: ["system:bootstrappers:kubeadm:default-node-token"]
localAPIEndpoint:
  advertiseAddress: $ADDRESS4
nodeRegistration:
  name: $MACHINE
  criSocket: unix:///run/containerd/containerd.sock
  kubeletExtraArgs:
    - name: node-ip
      value: $ADDRESS4,$ADDRESS6
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: $(kubeadm version -o short)
networking:
  podSubnet: $PODS4,$PODS6
  serviceSubnet: $SERVICES4,$SERVICES6
controllerManager:
  extraArgs:
    - name: allocate-node-cidrs
      value: "false"
proxy:
  disabled: true
END
if [ ! -e $KUBECONFIG ]; then
    # proxy.disabled keeps kube-proxy away from later upgrades, too; the flag documents it for readers of this script.
    kubeadm init --config $folder/init.yaml --skip-phases=addon/kube-proxy
fi
install -d -o vagrant -g vagrant /home/vagrant/.kube
install -m 600 -o vagrant -g vagrant $KUBECONFIG /home/vagrant/.kube/config

# With tenants: namespaces may have the label ipvsproxy.io/tenant (docs/tenants.md).
rm -rf $folder/base $folder/tenants
cp -r "$SOURCE/deploy/kustomize/base" "$SOURCE/deploy/kustomize/tenants" $folder
put $folder/kustomization.yaml <<END
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - tenants
images:
  - name: ipvsproxy
    newName: docker.io/library/ipvsproxy
    newTag: $(cat "$LAB/image.tag")
patches:
  - path: cluster.yaml
  - path: extra.yaml
  - target: {kind: DaemonSet, name: ipvsproxy}
    patch: |
      - {op: add, path: /spec/template/spec/initContainers/0/args/-, value: $extra}
      - {op: add, path: /spec/template/spec/containers/0/args/-, value: $extra}
END
put $folder/extra.yaml <<END
apiVersion: v1
kind: ConfigMap
metadata:
  name: ipvsproxy
  namespace: kube-system
data:
  extra.conf: |
    apiVersion: ipvsproxy.io/v1alpha1
    kind: IPVSProxyConfiguration
    tenantLabel: ipvsproxy.io/tenant
END
sed -e "s|clusterCIDR:.*|clusterCIDR: $PODS4,$PODS6|" -e "s|server:.*|server: https://$ADDRESS4:6443|" \
    "$SOURCE/deploy/kustomize/example/cluster.yaml" | put $folder/cluster.yaml
waited=0
until kubectl get --raw /readyz >/dev/null 2>&1; do
    waited=$((waited + 2))
    [ $waited -le 300 ] || { say "the API server is not ready after 5 minutes" >&2; exit 1; }
    sleep 2
done
# A new tag makes a new pod on this node now, and on each other one when it has fetched the image.
kubectl apply --kustomize $folder

# The other nodes take the image from here.
put /etc/systemd/system/lab-files.service <<END
[Unit]
Description=Files for the other nodes of the lab
After=lab-network.service

[Service]
DynamicUser=yes
ExecStart=/usr/bin/python3 -m http.server --bind $ADDRESS4 --directory $LAB 8099
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --quiet --now lab-files
kubectl wait --for=condition=Ready --timeout=300s "node/$MACHINE"
