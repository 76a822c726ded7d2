// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/bench/result"
)

// newRun returns a run with values for each chart.
func newRun() *result.Run {
	r := &result.Run{Rounds: 3, Host: result.Host{Commit: "0123456789ab", CPU: "A <processor>", CPUs: 2, MemoryKiB: 8 << 20, Distribution: "v3.1.2"}}
	for _, v := range []float64{1, 1.1, .9} {
		for _, shape := range []string{"alpine", "ops-toolbelt"} {
			r.Add("stale/containerd-2/"+shape, result.Direct, "s", 2*v)
			r.Add("stale/containerd-2/"+shape, result.StaleUnitFirst, "s", 3*v)
			r.Add("stale/containerd-2/"+shape, result.StaleUnitLater, "s", 2.02*v)
			r.Add("stale/containerd-2/"+shape, result.StaleDocument, "s", 122*v)
		}
		for _, state := range []string{result.Cold, result.Warm} {
			for engine, seconds := range map[string]float64{result.Direct: 30, result.Stock: 15, result.Ours: 12} {
				r.Add("nodestart/nodes=3/"+state, engine, "s", seconds*v)
				r.Add("nodestart/nodes=3/"+state, engine, "upstream-B/image-B", seconds/10)
			}
		}
		r.Add("manifest/warm", result.Stock, "req/cpu-s", 5000*v)
		r.Add("manifest/warm", result.Ours, "req/cpu-s", 44000*v)
		r.Add("evict/blobs=100000", result.Stock, "cold-evicting-s", 60*v)
		r.Add("evict/blobs=100000", result.Ours, "cold-evicting-s", .05*v)
		r.Add("cold/rtt=0ms", result.Direct, "s", .1*v)
		r.Add("cold/rtt=0ms", result.Stock, "s", .3*v)
		r.Add("cold/rtt=0ms", result.Ours, "s", .2*v)
		for _, clients := range []int{1, 50} {
			r.Add(fmt.Sprintf("herd/clients=%d", clients), result.Stock, "upstream-B/blob-B", float64(clients))
			r.Add(fmt.Sprintf("herd/clients=%d", clients), result.Ours, "upstream-B/blob-B", 1)
		}
		r.Add("readers/1000/http", result.Ours, "B", 53<<20)
	}
	return r
}

func TestPageStandsAlone(t *testing.T) {
	t.Parallel()
	html, err := HTML(newRun())
	if err != nil {
		t.Fatal(err)
	}
	page := string(html)
	// Links to anchors of the page and the namespace of SVG are allowed.
	rest := strings.ReplaceAll(page, `xmlns="http://www.w3.org/2000/svg"`, "")
	for _, pattern := range []string{`<script`, `<link`, `<img`, `<iframe`, `https?://`, `src=`, `url\(`, `@import`, `href="[^#]`} {
		if found := regexp.MustCompile(pattern).FindString(rest); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
	for _, want := range []string{"A &lt;processor&gt;, 2 processors, 8.0 GiB", "distribution v3.1.2", "commit 0123456789ab", "2 m 2 s", "medians of 3 rounds", "3 nodes, caches with all images", "New image during the eviction of many blobs"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if strings.Contains(page, "NaN") || strings.Contains(page, "quick run.") {
		t.Error("the page contains values that were not measured, or marks the run as a quick run")
	}
}

func TestPageMarksQuickAndFailedRuns(t *testing.T) {
	t.Parallel()
	r := newRun()
	r.Quick = true
	r.Scenarios = []result.Scenario{{Name: "cold", Done: true, Seconds: 60}, {Name: "disk", Done: true, Error: "no <space>"}, {Name: "stale"}}
	html, err := HTML(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"must not be compared", "scenario disk failed: no &lt;space&gt;", "scenario stale did not start", "not started</td>"} {
		if !strings.Contains(string(html), want) {
			t.Errorf("the page has no %q", want)
		}
	}
}

func TestLosses(t *testing.T) {
	t.Parallel()
	r := newRun()
	r.Add("blob/warm/http", result.Stock, "GiB/s", 2)
	r.Add("blob/warm/http", result.Ours, "GiB/s", 1)
	got := map[string]loss{}
	for _, l := range losses(r) {
		got[l.Name+" "+l.Engine+" "+l.To] = l
	}
	for name, ratio := range map[string]string{
		"cold/rtt=0ms ours direct":                                "2 ×",
		"stale/containerd-2/alpine stale-unit-first direct":       "1.5 ×",
		"stale/containerd-2/ops-toolbelt stale-unit-first direct": "1.5 ×",
		"blob/warm/http ours stock":                               "2 ×",
	} {
		if got[name].Ratio != ratio {
			t.Errorf("%s: worse by %q, want %q", name, got[name].Ratio, ratio)
		}
		delete(got, name)
	}
	// Better values, differences within 2 % and engines without this server are not losses.
	if len(got) > 0 {
		t.Errorf("these are no losses: %v", got)
	}
	if missed := strings.Join(missed(r), "\n"); !strings.Contains(missed, "first pull, round trip 0 ms, relative to direct: target ≤ 1.05, measured 2 (2 – 2)") || strings.Contains(missed, "manifest") {
		t.Errorf("targets that are not met: %s", missed)
	}
}

func TestReadme(t *testing.T) {
	t.Parallel()
	text, picture, err := Readme(newRun(), "docs/benchmarks/x")
	if err != nil {
		t.Fatal(err)
	}
	want := `![Pull times with containerd 2 for each state of the cache](docs/benchmarks/x/stale-containerd-2.svg)

| measurement | direct | stock | this server |
| --- | --- | --- | --- |
| Pull of alpine; the cache address becomes unassigned when the pull starts | 2 s | 2 m 2 s | 3 s |
| Start of 3 nodes: time until each node has the images of all system components; the caches are empty | 30 s | 15 s | 12 s |
| 50 clients pull one uncached blob concurrently: bytes sent by the upstream, as a multiple of the blob size | – | 50 × | 1 × |

*direct* is without a cache; *stock* is the registry of the distribution project as cache, with the configuration of the public extension. Values are medians of one run on one machine with 2 processors. [docs/benchmarks](docs/benchmarks/README.md) contains all results.
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	if picture.Name != "stale-containerd-2.svg" || !strings.Contains(picture.SVG, "<svg") {
		t.Errorf("the picture is %s:\n%s", picture.Name, picture.SVG)
	}
	if _, _, err := Readme(&result.Run{}, "x"); err == nil {
		t.Error("no error for a run without measurements for a picture")
	}
}

func TestIndex(t *testing.T) {
	t.Parallel()
	text, err := Index(newRun(), "x")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"registry, distribution 3.1.2, with", "(x/stale-containerd-2.svg)", "(x/results.json)",
		"| Cached manifest by digest: requests per second of CPU time (more is better) | – | 5 000 | 44 000 |\n",
		"| 1000 slow clients read a cached blob over http: peak memory | – | – | 53 MiB |\n",
		"| Manifest of a new image while 100 000 blobs expire | – | 60 s | 50 ms |\n",
		"exceeds about 500 MB/s",
		"| cold/rtt=0ms | s | ours | 0.2 (0.18 – 0.22) | direct | 0.1 (0.09 – 0.11) | 2 × |\n",
		"- first pull, round trip 0 ms, relative to direct: target ≤ 1.05, measured 2 (2 – 2)\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "over https") {
		t.Errorf("the page contains a row that was not measured:\n%s", text)
	}
	if _, err := Index(&result.Run{}, "x"); err == nil {
		t.Error("no error for a run without measurements for a picture")
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0 s", .000386: "386 µs", .3936: "394 ms", .9999: "1 s", 5.014: "5.01 s", 99.96: "1 m 40 s", 122: "2 m 2 s", 190.4: "3 m 10 s", 120: "2 m"} {
		if got := seconds(v); got != want {
			t.Errorf("seconds(%g) = %q, want %q", v, got, want)
		}
	}
	if got := seconds(math.NaN()); got != "NaN" {
		t.Errorf("NaN: %q", got)
	}
	for v, want := range map[float64]string{0: "0", 53.4: "53.4", 999: "999", 5053: "5 050", 44677: "44 700", 1234567: "1 230 000"} {
		if got := thousands(v); got != want {
			t.Errorf("thousands(%g) = %q, want %q", v, got, want)
		}
	}
}

func TestReadable(t *testing.T) {
	t.Parallel()
	for parameters, want := range map[string]string{
		"10MB/layers=4/rtt=20ms": "10 MB, 4 layers, round trip 20 ms", "size=1MiB/clients=1": "1 MiB, 1 client", "blobs=100000": "100000 blobs", "http": "http",
	} {
		if got := readable(parameters); got != want {
			t.Errorf("%s is written %q, want %q", parameters, got, want)
		}
	}
}
