# shellcheck shell=sh disable=SC2154  # IMAGE is the target's
# Sourced by tour.sh and compare.sh: the pods that answer. NAME is in the namespace "tour", NAMESPACE/NAME elsewhere.

namespace_of() { case $1 in */*) echo "${1%/*}" ;; *) echo tour ;; esac; }

pod_manifest() {  # NAME NODE: it answers with its name, and whom it saw asking
    cat <<END
---
apiVersion: v1
kind: Pod
metadata:
  name: ${1#*/}
  namespace: $(namespace_of "$1")
  labels: {app: web, pod: ${1#*/}}
spec:
  nodeName: $2
  terminationGracePeriodSeconds: 1
  containers:
    - name: who
      image: $IMAGE
      imagePullPolicy: IfNotPresent
      command: [/opt/ipvsproxy/bin/python, /who/who.py, serve, ${1#*/}]
      volumeMounts: [{name: who, mountPath: /who}]
  volumes:
    - name: who
      configMap: {name: who}
END
}
