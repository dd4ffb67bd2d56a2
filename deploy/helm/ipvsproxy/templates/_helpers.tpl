{{- define "ipvsproxy.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}{{ with .tag }}:{{ . }}{{ end }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The port of an address IP[:port], or of (dict "address" ADDRESS "default" PORT) without one. */ -}}
{{- define "ipvsproxy.port" -}}
{{- if regexMatch "^(\\[.*\\]|[^:]*):[0-9]+$" (default "" .address) -}}
{{ regexReplaceAll "^.*:" .address "" }}
{{- else -}}
{{ .default }}
{{- end -}}
{{- end -}}

{{- define "ipvsproxy.healthPort" -}}
{{ include "ipvsproxy.port" (dict "address" .Values.config.healthzBindAddress "default" 10256) }}
{{- end -}}

{{- define "ipvsproxy.metricsPort" -}}
{{ include "ipvsproxy.port" (dict "address" .Values.config.metricsBindAddress "default" 10249) }}
{{- end -}}

{{- /* Not empty when only the node itself reaches the metrics. */ -}}
{{- define "ipvsproxy.metricsOnLoopback" -}}
{{- if regexMatch "^(127\\..*|::1|\\[::1\\].*|:[0-9]+)?$" (default "" .Values.config.metricsBindAddress) }}yes{{ end -}}
{{- end -}}

{{- define "ipvsproxy.configMap" -}}
{{ .Values.existingConfigMap | default "ipvsproxy" }}
{{- end -}}

{{- /* What the chart's ConfigMap holds. */ -}}
{{- define "ipvsproxy.files" -}}
{{- if not .Values.existingConfigMap }}
config.conf: |
  {{- $config := deepCopy .Values.config }}
  {{- $_ := set $config "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" }}
  {{- $_ := set $config "kind" "KubeProxyConfiguration" }}
  {{- $connection := set ($config.clientConnection | default dict) "kubeconfig" "/var/lib/kube-proxy/kubeconfig.conf" }}
  {{- $_ := set $config "clientConnection" $connection }}
  {{- if kindIs "slice" $config.clusterCIDR }}
  {{- $_ := set $config "clusterCIDR" (join "," $config.clusterCIDR) }}
  {{- end }}
  {{- toYaml $config | nindent 2 }}
kubeconfig.conf: |
  apiVersion: v1
  kind: Config
  clusters:
    - name: default
      cluster:
        certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
        server: {{ required "apiServer: must be the API server's URL, or existingConfigMap be given" .Values.apiServer }}
  contexts:
    - name: default
      context:
        cluster: default
        namespace: default
        user: default
  current-context: default
  users:
    - name: default
      user:
        tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
{{- else if .Values.apiServer }}
{{- fail "apiServer: has no effect with existingConfigMap, whose kubeconfig.conf names the server; give one of the two" }}
{{- end }}
{{- if .Values.extraConfig }}
extra.conf: |
  apiVersion: ipvsproxy.io/v1alpha1
  kind: IPVSProxyConfiguration
  {{- toYaml .Values.extraConfig | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The arguments that each of the proxy's containers has. */ -}}
{{- define "ipvsproxy.arguments" -}}
- --config=/var/lib/kube-proxy/config.conf
{{- if .Values.extraConfig }}
- --extra-config=/etc/ipvsproxy/extra.conf
{{- end }}
- --hostname-override=$(NODE_NAME)
{{- end -}}

{{- define "ipvsproxy.mounts" -}}
- name: config
  mountPath: /var/lib/kube-proxy
  readOnly: true
{{- if .Values.extraConfig }}
- name: extra
  mountPath: /etc/ipvsproxy
  readOnly: true
{{- end }}
{{- end -}}

{{- /* What all pods have in common. */ -}}
{{- define "ipvsproxy.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
hostNetwork: true
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The nodes that have a proxy. */ -}}
{{- define "ipvsproxy.nodes" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "ipvsproxy.updateStrategy" -}}
type: {{ .type }}
{{- if eq .type "RollingUpdate" }}
{{- with .rollingUpdate }}
{{- $surge := .maxSurge | default 0 | toString }}
{{- $unavailable := .maxUnavailable | default 0 | toString }}
{{- if eq (has $surge (list "0" "0%")) (has $unavailable (list "0" "0%")) }}
{{- fail "updateStrategy.rollingUpdate: one of maxSurge and maxUnavailable must be 0, and the other must not" }}
{{- end }}
rollingUpdate:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ipvsproxy.cleanupHook" -}}
labels:
  app.kubernetes.io/name: ipvsproxy-cleanup
annotations:
  helm.sh/hook: post-delete
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
