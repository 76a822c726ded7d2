{{- define "gvDetails" }}
<a id="{{ .Version }}"></a>

## {{ .GroupVersionString }}

{{ .Doc | trim }}

{{- /* Nothing refers to the kinds; they come first. */ -}}
{{- range .SortedTypes }}{{ if not .References }}{{ template "type" . }}{{ end }}{{ end }}
{{- range .SortedTypes }}{{ if .References }}{{ template "type" . }}{{ end }}{{ end }}
{{- end -}}
