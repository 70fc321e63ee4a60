{{- /* Everything of Weir in a cluster has fixed names: the CSI driver's is one of the whole cluster, so there is one installation. */ -}}
{{- define "weir.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "weir.labels" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "weir.authority" -}}
{{ .Values.certificates.authoritySecret | default "weir-ca" }}
{{- end }}

{{- define "weir.credentials-key" -}}
{{ .Values.credentialsKeySecret | default "weir-credentials-key" }}
{{- end }}

{{- define "weir.master" -}}
weir-master.{{ .Release.Namespace }}.svc:7440
{{- end }}

{{- /* What every pod has: who it is to the scheduler, and no token of the API server unless it says so. */ -}}
{{- define "weir.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
enableServiceLinks: false
{{- end }}

{{- /* Flags for what reads sources. */ -}}
{{- define "weir.sources" -}}
{{- range .Values.sources.allowEndpoints }}
- --allow-endpoint={{ . }}
{{- end }}
{{- end }}

{{- /* A probe of /healthz, and when it counts. */ -}}
{{- define "weir.probes" -}}
startupProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, failureThreshold: 120}
readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 5, timeoutSeconds: 3}
# Slow to act: a process that is busy is worth more than one that has just been started.
livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 10, timeoutSeconds: 10, failureThreshold: 6}
{{- end }}

{{- define "weir.scrape" -}}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{- /* Makes the pod's certificate before it starts. Only this container sees the authority's key. */ -}}
{{- define "weir.certificate" -}}
- name: certificate
  image: {{ include "weir.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
  - certs
  - issue
  - /authority
  - /certs
  - --role={{ .role }}
  - --name=$(NAME)
  - --days={{ int .root.Values.certificates.days }}
  {{- range .flags }}
  - {{ . }}
  {{- end }}
  env:
  - {name: NAME, valueFrom: {fieldRef: {fieldPath: {{ .name }}}}}
  {{- if eq .role "worker" }}
  - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  {{- end }}
  resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
  securityContext: {{ include "weir.confined" . | nindent 4 }}
  volumeMounts:
  - {name: authority, mountPath: /authority, readOnly: true}
  - {name: certs, mountPath: /certs}
{{- end }}

{{- define "weir.certificate-volumes" -}}
- {name: authority, secret: {secretName: {{ include "weir.authority" . }}, defaultMode: 0440}}
- {name: certs, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
{{- end }}

{{- /* No capability, no other user, nothing to write but its volumes. */ -}}
{{- define "weir.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* Of a pod that holds mounts: it is ready, and may go, when another one holds them, too. */ -}}
{{- define "weir.held" -}}
startupProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, failureThreshold: 120}
readinessProbe: {exec: {command: [/usr/local/bin/weir, csi, ready]}, periodSeconds: 5, timeoutSeconds: 5}
# A pod that stands still is soon replaced: the other one has taken its mounts over, and is alone until then.
livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 3, terminationGracePeriodSeconds: 5}
lifecycle: {preStop: {exec: {command: [/usr/local/bin/weir, csi, ready, --wait, "60"]}}}
{{- end }}
