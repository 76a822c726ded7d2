{{- /* The name of all objects. Gardener's library requires this name for the Service and gives it to the webhook
       configuration. */ -}}
{{- define "name" -}}
gardener-extension-registry-cache-admission
{{- end -}}

{{- define "labels" -}}
app.kubernetes.io/name: {{ include "name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
