// SPDX-License-Identifier: Apache-2.0

package report

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

// row is one measurement of the published table. It compares a direct pull, the stock registry and this server.
type row struct {
	// text describes the measurement; it includes the unit where format does not write one.
	text string
	// name and unit select the series.
	name, unit string
	// stock and ours are the engines of two columns. Default: result.Stock and result.Ours.
	stock, ours string
	format      func(float64) string
	// headline rows are also in the README.
	headline bool
}

var rows = []row{
	{text: "Pull of alpine; the cache address becomes unassigned when the pull starts", name: "stale/containerd-2/alpine", unit: "s",
		stock: result.StaleDocument, ours: result.StaleUnitFirst, format: seconds, headline: true},
	{text: "Pull of ops-toolbelt; the cache address becomes unassigned when the pull starts", name: "stale/containerd-2/ops-toolbelt", unit: "s",
		stock: result.StaleDocument, ours: result.StaleUnitFirst, format: seconds},
	{text: "Pull of alpine; the cache address has been unassigned for at least 2 s", name: "stale/containerd-2/alpine", unit: "s",
		stock: result.StaleDocument, ours: result.StaleUnitLater, format: seconds},
	{text: "Pull of ops-toolbelt; the cache address has been unassigned for at least 2 s", name: "stale/containerd-2/ops-toolbelt", unit: "s",
		stock: result.StaleDocument, ours: result.StaleUnitLater, format: seconds},
	{text: "Start of 3 nodes: time until each node has the images of all system components; the caches are empty",
		name: "nodestart/nodes=3/" + result.Cold, unit: "s", format: seconds, headline: true},
	{text: "Start of 3 nodes: the same time; the caches contain all images", name: "nodestart/nodes=3/" + result.Warm, unit: "s", format: seconds},
	{text: "50 clients pull one uncached blob concurrently: bytes sent by the upstream, as a multiple of the blob size",
		name: "herd/clients=50", unit: "upstream-B/blob-B", format: times, headline: true},
	{text: "500 clients pull one uncached blob concurrently: bytes sent by the upstream, as a multiple of the blob size",
		name: "herd/clients=500", unit: "upstream-B/blob-B", format: times},
	{text: "50 clients pull one uncached 64 MiB blob concurrently: time until the last client has the blob", name: "herd/clients=50", unit: "max-s", format: seconds},
	{text: "1000 slow clients read a cached blob over http: peak memory", name: "readers/1000/http", unit: "B", format: mebibytes},
	{text: "1000 slow clients read a cached blob over https: peak memory", name: "readers/1000/https", unit: "B", format: mebibytes},
	{text: "Cached manifest by digest: requests per second of CPU time (more is better)", name: "manifest/warm", unit: "req/cpu-s", format: thousands},
	{text: "Cached 64 MiB blob over http: CPU time per GiB", name: "blob/warm/http", unit: "cpu-s/GiB", format: seconds},
	{text: "Cached 64 MiB blob over https: CPU time per GiB", name: "blob/warm/https", unit: "cpu-s/GiB", format: seconds},
	{text: "HEAD of an unchanged tag (this server: `revalidateAfter: 1m`): upstream requests per request", name: "tag/warm", unit: "upstream-req/req", format: thousands},
	{text: "HEAD of an unchanged tag (this server: `revalidateAfter: 1m`): bytes written to disk per request", name: "tag/warm", unit: "written-B/req", format: in("B")},
	{text: "First pull of 100 MiB; round trip to the upstream 80 ms, bandwidth 1 Gbit/s", name: "cold/rtt=80ms/line=1Gbit", unit: "s", format: seconds},
	{text: "First pull of 100 MiB; round trip to the upstream 80 ms, bandwidth not limited", name: "cold/rtt=80ms", unit: "s", format: seconds},
	{text: "Two weeks of pulls (simulated) of images that are three times larger than the volume: bytes served from the volume (more is better)",
		name: "disk/images=192", unit: "hit-B/B", format: percent},
	{text: "Manifest of a new image while 100 000 blobs expire", name: "evict/blobs=100000", unit: "cold-evicting-s", format: seconds},
}

// table returns the selected rows that were measured as a Markdown table.
func table(r *result.Run, selected func(row) bool) string {
	var s strings.Builder
	s.WriteString("| measurement | direct | stock | this server |\n| --- | --- | --- | --- |\n")
	for _, row := range rows {
		if line, ok := row.line(r); ok && selected(row) {
			s.WriteString(line)
		}
	}
	return s.String()
}

// line returns the row as a line of a Markdown table. ok is false if this server was not measured.
func (w row) line(r *result.Run) (line string, ok bool) {
	cell := func(engine string) string {
		s := r.Get(w.name, engine, w.unit)
		if len(s.Values) == 0 {
			return "–"
		}
		return w.format(s.Median())
	}
	ours := cmp.Or(w.ours, result.Ours)
	if len(r.Get(w.name, ours, w.unit).Values) == 0 {
		return "", false
	}
	return fmt.Sprintf("| %s | %s | %s | %s |\n", w.text, cell(result.Direct), cell(cmp.Or(w.stock, result.Stock)), cell(ours)), true
}
