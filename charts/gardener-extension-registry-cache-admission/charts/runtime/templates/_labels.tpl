{{- /* The name of every object. Gardener's library expects the Service under it, and makes the webhook configuration with it. */ -}}
{{- define "name" -}}
gardener-extension-registry-cache-admission
{{- end -}}

{{- define "labels" -}}
app.kubernetes.io/name: {{ include "name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
