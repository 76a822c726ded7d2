// SPDX-License-Identifier: Apache-2.0

package report

import (
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/bench/result"
)

// The summary contains each measured target, with ratios computed for each round.
func TestSummary(t *testing.T) {
	t.Parallel()
	var r result.Run
	for _, v := range []float64{80, 90, 100} {
		r.Add("manifest/warm", result.Ours, "req/cpu-s", v)
		r.Add("manifest/warm", result.Stock, "req/cpu-s", v/5)
	}
	r.Add("blob/warm/http", result.Ours, "cpu-s/GiB", .6)
	r.Add("blob/warm/http", result.Stock, "cpu-s/GiB", 1)
	r.Add("cold/rtt=80ms", result.Ours, "s", 1.13)
	r.Add("cold/rtt=80ms", result.Direct, "s", 1)
	r.Add("cold/rtt=20ms", result.Ours, "s", 1.08)
	r.Add("cold/rtt=20ms", result.Direct, "s", 1)
	r.Add("tag/warm", result.Ours, "written-B/req", 0)
	r.Add("evict/blobs=100000", result.Ours, "p99-evicting-s", .004)
	r.Add("evict/blobs=100000", result.Ours, "p99-idle-s", .001)
	r.Add("herd/clients=10", result.Ours, "upstream-B/blob-B", 1.01)
	summary := Summary(&r)
	for _, want := range []string{
		"| stored manifest by digest, relative to stock | ≥ 4 | 5 (5 – 5) | yes |",
		"| stored 64 MiB blob, http, relative to stock | ≤ 0.5 | 0.6 (0.6 – 0.6) | **no** |",
		"| first pull, round trip 80 ms, relative to direct + 1 round trip | ≤ 1.13 | 1.13 (1.13 – 1.13) | yes |",
		"| first pull, round trip 20 ms, relative to direct + 1 round trip | ≤ 1.07 | 1.08 (1.08 – 1.08) | **no** |",
		"| HEAD of an unchanged tag, bytes written | ≤ 0 | 0 (0 – 0) | yes |",
		"| eviction of 100 000 blobs, increase of the 99th percentile, s | ≤ 0.005 | 0.003 (0.003 – 0.003) | yes |",
		"| concurrent pulls of one blob, clients=10, bytes sent by the upstream per blob size | ≥ 1, ≤ 1 | 1.01 (1.01 – 1.01) | **no** |",
		"| manifest/warm | stock | req/cpu-s | 18 (16 – 20) |",
	} {
		if !strings.Contains(summary, want+"\n") {
			t.Errorf("there is no line %s", want)
		}
	}
	r.Quick = true
	if quick := Summary(&r); strings.Contains(summary, "quick run") || !strings.Contains(quick, "quick run") {
		t.Errorf("it does not mark quick runs:\n%s", quick)
	}
	if strings.Contains(summary, "readers") {
		t.Error("it contains a target that was not measured")
	}
	if t.Failed() {
		t.Log(summary)
	}
}
