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

{{- /* Variables of what reads sources, the file by which it finds the realms of Kerberos, and the volume of that. */ -}}
{{- define "weir.source-env" -}}
{{- with .Values.sources.krb5ConfigMap }}
- {name: KRB5_CONFIG, value: /etc/weir/krb5/krb5.conf}
{{- end }}
{{- with .Values.sources.env }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}

{{- define "weir.source-mounts" -}}
{{- with .Values.sources.krb5ConfigMap }}
- {name: krb5, mountPath: /etc/weir/krb5, readOnly: true}
{{- end }}
{{- end }}

{{- define "weir.source-volumes" -}}
{{- with .Values.sources.krb5ConfigMap }}
- {name: krb5, configMap: {name: {{ . }}, items: [{key: krb5.conf, path: krb5.conf}]}}
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

{{- /* What a part of Weir is called where its certificate is signed. */ -}}
{{- define "weir.signer" -}}
weir-operator.{{ .Release.Namespace }}.svc:7463
{{- end }}

{{- /* A volume with certificates that somebody else makes for a role; empty where the operator signs them. */ -}}
{{- define "weir.certificate-volume" -}}
{{- $volume := index .root.Values.certificates.volumes .role }}
{{- if $volume }}{{ toYaml $volume }}
{{- else if or (not .root.Values.operator.enabled) .root.Values.certificates.volumes.operator }}
{{- fail (printf "the operator signs no certificates: set certificates.volumes.%s, or enable the operator without certificates.volumes.operator" .role) }}
{{- end }}
{{- end }}

{{- /* The pod's certificate: it makes its key itself, asks the operator, and keeps both in memory. */ -}}
{{- define "weir.certificate-flags" -}}
- --certs=/certs
{{- if not (include "weir.certificate-volume" .) }}
- --certs-from={{ include "weir.signer" .root }}
{{- end }}
{{- end }}

{{- define "weir.certificate-mounts" -}}
{{- if include "weir.certificate-volume" . -}}
- {name: certs, mountPath: /certs, readOnly: true}
{{- else -}}
- {name: certs, mountPath: /certs}
- {name: proof, mountPath: /var/run/secrets/weir, readOnly: true}
{{- end }}
{{- end }}

{{- define "weir.certificate-volumes" -}}
{{- $volume := include "weir.certificate-volume" . -}}
{{- if $volume -}}
- name: certs
  {{- $volume | nindent 2 }}
{{- else -}}
- {name: certs, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
# Who this pod is, for the operator alone, and which authority the operator's certificate is of.
- name: proof
  projected:
    sources:
    - serviceAccountToken: {audience: weir-operator, expirationSeconds: 3600, path: token}
    - configMap: {name: weir-authority, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
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
