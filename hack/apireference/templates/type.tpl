{{- define "type" }}

<a id="{{ base .Package }}-{{ lower .Name }}"></a>

### {{ .Name }}

{{ .Doc | replace "<" "&lt;" | trim }}
{{- if .References }}

Part of
{{- range $i, $type := .SortedReferences }}{{ if $i }},{{ end }} {{ template "link" $type }}{{ end }}.
{{- end }}

| field | type | description |
| --- | --- | --- |
{{- if not .References }}
| `apiVersion` | string | `registry.extensions.gardener.cloud/{{ base .Package }}` |
| `kind` | string | `{{ .Name }}` |
{{- end }}
{{- range .Members }}{{ if .Name }}
{{ template "type_members" . }}
{{- end }}{{ end }}
{{- end -}}

{{- define "link" -}}
{{- if hasPrefix "github.com/registry-cache/" .Package -}}
[{{ .Name }}](#{{ base .Package }}-{{ lower .Name }})
{{- else -}}
{{ markdownRenderTypeLink . }}
{{- end -}}
{{- end -}}
