{{- /* The name of every object. Gardener's library expects the Service and the webhook configuration under it. */ -}}
{{- define "name" -}}
gardener-extension-registry-cache
{{- end -}}

{{- define "labels" -}}
app.kubernetes.io/name: {{ include "name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
