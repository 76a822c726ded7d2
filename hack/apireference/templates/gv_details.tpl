{{- define "gvDetails" }}
<a id="{{ .Version }}"></a>

## {{ .GroupVersionString }}

{{ .Doc | trim }}

{{- /* First the types without references to them, that is the kinds, then all other types. */ -}}
{{- range .SortedTypes }}{{ if not .References }}{{ template "type" . }}{{ end }}{{ end }}
{{- range .SortedTypes }}{{ if .References }}{{ template "type" . }}{{ end }}{{ end }}
{{- end -}}
