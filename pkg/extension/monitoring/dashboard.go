// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"encoding/json"
	"fmt"
)

// panel is one diagram.
type panel struct {
	title string
	// unit is one of Plutono's: "Bps", "percent", "reqps", "s", "short".
	unit    string
	queries []query
}

type query struct{ legend, expression string }

// All diagrams are about the caches that are chosen at the top.
var panels = []panel{
	{"Requests by outcome", "reqps", []query{
		{"{{cache}} {{outcome}}", `sum by (cache, outcome) (rate(registry_cache_requests_total{cache=~"$cache"}[5m]))`},
		{"{{cache}} hit (distribution)", `sum by (cache) (rate(registry_proxy_hits_total{cache=~"$cache"}[5m]))`},
		{"{{cache}} miss (distribution)", `sum by (cache) (rate(registry_proxy_misses_total{cache=~"$cache"}[5m]))`},
	}},
	{"Bytes to clients and from the upstream", "Bps", []query{
		{"{{cache}} to clients", `sum by (cache) (rate(registry_cache_client_bytes_total{cache=~"$cache"}[5m]))`},
		{"{{cache}} from the upstream", `sum by (cache) (rate(registry_cache_upstream_bytes_total{cache=~"$cache"}[5m]))`},
		{"{{cache}} to clients (distribution)", `sum by (cache) (rate(registry_proxy_pushed_bytes_total{cache=~"$cache"}[5m]))`},
		{"{{cache}} from the upstream (distribution)", `sum by (cache) (rate(registry_proxy_pulled_bytes_total{cache=~"$cache"}[5m]))`},
	}},
	{"Bytes that did not come from the upstream", "percent", []query{
		{"{{cache}}", `100 * sum by (cache) (rate(registry_cache_saved_bytes_total{cache=~"$cache"}[1h])) / sum by (cache) (rate(registry_cache_client_bytes_total{cache=~"$cache"}[1h]))`},
	}},
	{"Answers of the upstream by status", "reqps", []query{
		{"{{cache}} {{status}}", `sum by (cache, status) (rate(registry_cache_upstream_requests_total{cache=~"$cache"}[5m]))`},
	}},
	{"Upstream latency, 95 % of requests", "s", []query{
		{"{{cache}}", `histogram_quantile(0.95, sum by (cache, le) (rate(registry_cache_upstream_latency_seconds_bucket{cache=~"$cache"}[5m])))`},
	}},
	{"Used space of each volume", "percent", []query{
		{"{{pod}}", `100 * registry_cache_volume_used_bytes{cache=~"$cache"} / registry_cache_volume_limit_bytes{cache=~"$cache"}`},
		{"{{persistentvolumeclaim}}", `100 * kubelet_volume_stats_used_bytes{persistentvolumeclaim=~"cache-volume-($cache)-[0-9]+"} / kubelet_volume_stats_capacity_bytes{persistentvolumeclaim=~"cache-volume-($cache)-[0-9]+"}`},
	}},
	{"Used inodes of each volume", "percent", []query{
		{"{{pod}}", `100 * registry_cache_volume_used_inodes{cache=~"$cache"} / (registry_cache_volume_limit_inodes{cache=~"$cache"} > 0)`},
	}},
	{"Deleted bytes by reason", "Bps", []query{
		{"{{cache}} {{reason}}", `sum by (cache, reason) (rate(registry_cache_evicted_bytes_total{cache=~"$cache"}[5m]))`},
	}},
	{"Last use of the object that was not used for longest", "s", []query{
		{"{{pod}}", `registry_cache_oldest_object_age_seconds{cache=~"$cache"}`},
	}},
	{"Fetches under way, and waiting for their turn", "short", []query{
		{"{{cache}} under way", `sum by (cache) (registry_cache_fetches_in_flight{cache=~"$cache"})`},
		{"{{cache}} waiting", `sum by (cache) (registry_cache_upstream_waiting_requests{cache=~"$cache"})`},
	}},
	{"Connections", "short", []query{
		{"{{pod}}", `registry_cache_connections{cache=~"$cache"}`},
		{"{{pod}} limit", `registry_cache_connections_limit{cache=~"$cache"}`},
	}},
}

// dashboard is the dashboard as Plutono reads it, JSON.
func dashboard() string {
	const columns, width, height = 2, 12, 8
	var diagrams []map[string]any
	for i, p := range panels {
		var targets []map[string]any
		for j, q := range p.queries {
			targets = append(targets, map[string]any{"expr": q.expression, "legendFormat": q.legend, "refId": string(rune('A' + j))})
		}
		diagrams = append(diagrams, map[string]any{
			"id": i + 1, "type": "graph", "title": p.title, "datasource": "prometheus", "targets": targets,
			"gridPos": map[string]int{"x": i % columns * width, "y": i / columns * height, "w": width, "h": height},
			"yaxes":   []map[string]any{{"format": p.unit, "min": 0, "show": true}, {"show": false}},
			"lines":   true, "linewidth": 1, "nullPointMode": "null",
		})
	}
	document, err := json.MarshalIndent(map[string]any{
		"uid": "registry-cache", "title": "Registry Caches", "tags": []string{"registry-cache"}, "editable": false,
		"schemaVersion": 27, "refresh": "1m", "timezone": "utc",
		"time": map[string]string{"from": "now-3h", "to": "now"},
		"templating": map[string]any{"list": []map[string]any{{
			"name": "cache", "label": "Cache", "type": "query", "datasource": "prometheus",
			"query": fmt.Sprintf(`label_values(up{job=%q}, cache)`, job), "refresh": 2, "sort": 1,
			"includeAll": true, "multi": true, "current": map[string]any{"text": []string{"All"}, "value": []string{"$__all"}},
		}}},
		"panels": diagrams,
	}, "", "  ")
	if err != nil {
		panic(err) // strings and numbers can always be written
	}
	return string(document) + "\n"
}
