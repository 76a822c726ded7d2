{{- define "type_members" -}}
| `{{ .Name }}` | {{ with .Type }}{{ if .UnderlyingType }}{{ if hasPrefix "[]" .String }}list of {{ end }}{{ template "link" .UnderlyingType }}{{ else }}{{ template "link" . }}{{ end }}{{ end }} | {{ if has "Optional: {}" .Validation }}_Optional._ {{ end }}{{ .Doc | replace "|" "\\|" | replace "<" "&lt;" | replace "\n" " " }} |
{{- end -}}
