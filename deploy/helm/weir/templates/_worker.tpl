{{- /* The pod of a worker, with more flags, resources, and nodes: of the DaemonSet here, or of CachePools, for which the operator adds them. */ -}}
{{- define "weir.worker-pod" -}}
{{- with .root -}}
metadata:
  labels: {{ include "weir.labels" . | nindent 4 }}
    app.kubernetes.io/component: worker
  annotations: {{ include "weir.scrape" (dict "root" . "port" 7452) | nindent 4 }}
spec: {{ include "weir.pod" . | nindent 2 }}
  serviceAccountName: weir-worker
  automountServiceAccountToken: false
  priorityClassName: weir
  # Root without a capability: the directory below is the node's, and mounts on the node, which are root's, take blocks only from
  # a worker of their own user or root.
  securityContext: {runAsUser: 0, runAsGroup: 0}
  containers:
  - name: worker
    image: {{ include "weir.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
    - worker
    - --master={{ include "weir.master" . }}
    - --dir={{ .Values.worker.directory }}
    - --listen=0.0.0.0:7450
    - --control=0.0.0.0:7451
    - --http=0.0.0.0:7452
    {{- include "weir.certificate-flags" (dict "root" . "role" "worker") | nindent 4 }}
    - --node=$(NODE)
    - --advertise=$(POD_IP)
    {{- include "weir.sources" . | nindent 4 }}
    {{- with $.args }}{{ toYaml . | nindent 4 }}{{ end }}
    env:
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: WEIR_SSD_FREE, value: {{ .Values.worker.free | quote }}}
    {{- with include "weir.source-env" . | trim }}{{ . | nindent 4 }}{{ end }}
    ports: [{name: blocks, containerPort: 7450}, {name: control, containerPort: 7451}, {name: http, containerPort: 7452}]
    {{- include "weir.probes" . | nindent 4 }}
    {{- with $.resources }}
    resources: {{ toYaml . | nindent 6 }}
    {{- end }}
    securityContext: {{ include "weir.confined" . | nindent 6 }}
    volumeMounts:
    {{- include "weir.certificate-mounts" (dict "root" . "role" "worker") | nindent 4 }}
    {{- with include "weir.source-mounts" . | trim }}{{ . | nindent 4 }}{{ end }}
    # At the node's own path: mounts find the worker's socket there.
    - {name: state, mountPath: {{ .Values.worker.directory }}}
  nodeSelector:
    kubernetes.io/os: linux
    {{- with $.nodeSelector }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with $.tolerations }}
  tolerations: {{ toYaml . | nindent 2 }}
  {{- end }}
  volumes: {{ include "weir.certificate-volumes" (dict "root" . "role" "worker") | nindent 2 }}
  {{- with include "weir.source-volumes" . | trim }}{{ . | nindent 2 }}{{ end }}
  - {name: state, hostPath: {path: {{ .Values.worker.directory }}, type: DirectoryOrCreate}}
{{- end }}
{{- end }}

{{- /* Flags of the workers that the values describe, but for their tiers and their pool. */ -}}
{{- define "weir.worker-args" -}}
{{- range $flag, $place := dict "zone" .Values.worker.zone "group" .Values.worker.group }}
{{- if $place }}
- --{{ $flag }}={{ $place }}
{{- end }}
{{- end }}
{{- with .Values.worker.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
