// SPDX-License-Identifier: Apache-2.0

package report

import (
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/bench/result"
)

// The summary says of each target whether it is met, with ratios that are made round by round.
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
		"| warm manifest by digest, to stock | ≥ 4 | 5 (5 – 5) | yes |",
		"| warm 64 MiB blob, http, to stock | ≤ 0.5 | 0.6 (0.6 – 0.6) | NO |",
		"| cold pull, 80 ms, to direct + 1 RTT | ≤ 1.13 | 1.13 (1.13 – 1.13) | yes |",
		"| cold pull, 20 ms, to direct + 1 RTT | ≤ 1.07 | 1.08 (1.08 – 1.08) | NO |",
		"| warm tag HEAD, bytes written | ≤ 0 | 0 (0 – 0) | yes |",
		"| evicting 100 000 blobs, growth of p99 | ≤ 0.005 | 0.003 (0.003 – 0.003) | yes |",
		"| herd, clients=10 | ≥ 1, ≤ 1 | 1.01 (1.01 – 1.01) | NO |",
		"| manifest/warm | stock | req/cpu-s | 18 (16 – 20) |",
	} {
		if !strings.Contains(summary, want+"\n") {
			t.Errorf("there is no line %s", want)
		}
	}
	r.Quick = true
	if quick := Summary(&r); strings.Contains(summary, "quick run") || !strings.Contains(quick, "quick run") {
		t.Errorf("it does not tell a quick run from others:\n%s", quick)
	}
	if strings.Contains(summary, "readers") {
		t.Error("it has a target that was not measured")
	}
	if t.Failed() {
		t.Log(summary)
	}
}
