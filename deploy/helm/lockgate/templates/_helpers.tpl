{{- define "lockgate.name" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains "lockgate" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-lockgate" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What tells the pods of this release from all others. */}}
{{- define "lockgate.selector" -}}
app.kubernetes.io/name: lockgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lockgate.labels" -}}
{{ include "lockgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "lockgate.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A drain takes delay, window and 5 s for the last close frames. */}}
{{- define "lockgate.drain" -}}
{{ add .Values.drain.delay .Values.drain.window 5 }}
{{- end }}

{{/* 20 s of margin: a busy node, the signal, the last log lines. */}}
{{- define "lockgate.grace" -}}
{{ add (include "lockgate.drain" . | int) 20 }}
{{- end }}

{{/* A pod that leaves closes its sockets: one for each grace period. */}}
{{- define "lockgate.scaleDown" -}}
stabilizationWindowSeconds: 900
policies:
  - type: Pods
    value: 1
    periodSeconds: {{ max 120 (include "lockgate.grace" . | int) }}
{{- end }}

{{/* A setting as an environment variable. A number of YAML is a float here, and a large one would be printed as 1e+06. */}}
{{- define "lockgate.env" -}}
- name: LOCKGATE_{{ .key | upper | replace "." "__" }}
  value: {{ if kindIs "float64" .value }}{{ printf "%.0f" .value | quote }}{{ else }}{{ .value | toString | quote }}{{ end }}
{{- end }}

{{- define "lockgate.tenants" -}}
{{ .Values.tenantsConfigMap | default (printf "%s-tenants" (include "lockgate.name" .)) }}
{{- end }}
