// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"math"
	"strings"

	"github.com/registry-cache/extension/test/bench/result"
)

// Picture is an SVG file.
type Picture struct{ Name, SVG string }

// mainPictures are those that the README shows one of: the first that was measured.
var mainPictures = []string{"stale-containerd-2", "herd-amplification"}

// Readme is the README's part about the run in a folder: the main figures and one picture, in the same folder. The folder
// is a path relative to the README. It leaves out what was not measured.
func Readme(r *result.Run, folder string) (text string, picture Picture, err error) {
	var s strings.Builder
	fmt.Fprintf(&s, `The server beside the distribution project's registry%s with the settings of the public Gardener extension ("stock"), and beside no cache ("direct"), from one run of `+"`make bench`"+` on one machine:
%d virtual processors, one of them for the cache alone, %d rounds, medians. The run is in [%s](%s): [all figures with their spread](%s/summary.md), and a page with all plots, report.html.

`, spaced(strings.TrimPrefix(r.Host.Distribution, "v")), r.Host.CPUs, r.Rounds, folder, folder, folder)
	picture, ok := mainPicture(r)
	if !ok {
		return "", Picture{}, fmt.Errorf("the run in %s has nothing for a picture: it needs one of %s", folder, strings.Join(mainPictures, ", "))
	}
	fmt.Fprintf(&s, "![A plot of what the run measured](%s/%s)\n\n", folder, picture.Name)
	s.WriteString("| | stock | this server |\n| --- | --- | --- |\n")
	for _, row := range mainRows(r) {
		fmt.Fprintf(&s, "| %s | %s | %s |\n", row[0], row[1], row[2])
	}
	if sentence := firstPullSentence(r); sentence != "" {
		fmt.Fprintf(&s, "\n%s\n", sentence)
	}
	return s.String(), picture, nil
}

func spaced(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}

func mainPicture(r *result.Run) (Picture, bool) {
	for _, name := range mainPictures {
		for _, s := range sections(r) {
			for _, f := range s.figures {
				if f.name == name {
					return Picture{name + ".svg", f.svg}, true
				}
			}
		}
	}
	return Picture{}, false
}

// mainRows are the rows that were measured. A cell that needs several series needs all of them.
func mainRows(r *result.Run) [][3]string {
	var rows [][3]string
	// median returns NaN where nothing was measured, and add leaves out a row with a NaN.
	median := func(name, engine, unit string) float64 { return r.Get(name, engine, unit).Median() }
	add := func(what, stock, ours string) {
		if !strings.Contains(what+stock+ours, "NaN") {
			rows = append(rows, [3]string{what, stock, ours})
		}
	}
	both := func(name, unit, engine string, format func(float64) string, variants ...string) string {
		var cells []string
		for _, variant := range variants {
			cells = append(cells, format(median(name+variant, engine, unit)))
		}
		return strings.Join(cells, " / ")
	}
	stale := func(engine string) string {
		return both("stale/containerd-2/", "s", engine, seconds, "alpine", "ops-toolbelt")
	}
	add(fmt.Sprintf("a node pulls alpine / ops-toolbelt while its cache's address leads nowhere, in the moment in which that begins (direct: %s)", stale(result.Direct)),
		stale(result.StaleDocument), stale(result.StaleUnitFirst))
	add("the same from two seconds later on", stale(result.StaleDocument), stale(result.StaleUnitLater))

	start := func(engine string) string {
		return both("nodestart/nodes=3/", "s", engine, seconds, result.Cold, result.Warm)
	}
	add(fmt.Sprintf("3 nodes that start get the images of their system components, caches empty / full (direct: %s)", seconds(median("nodestart/nodes=3/"+result.Cold, result.Direct, "s"))),
		start(result.Stock), start(result.Ours))

	amplification := "upstream-B/blob-B"
	add("50 clients pull one cold 64 MiB blob at once: sent by the upstream",
		fmt.Sprintf("%.0f × the blob", median("herd/clients=50", result.Stock, amplification)),
		fmt.Sprintf("%.2f ×, for 500 clients %.2f ×", median("herd/clients=50", result.Ours, amplification), median("herd/clients=500", result.Ours, amplification)))
	add("the slowest of these 50", seconds(median("herd/clients=50", result.Stock, "max-s")), seconds(median("herd/clients=50", result.Ours, "max-s")))
	mib := func(v float64) string { return thousands(v / (1 << 20)) }
	memory := func(engine string) string { return both("readers/1000/", "B", engine, mib, "http", "https") + " MiB" }
	add("memory with 1000 slow readers of a stored blob, http / https", memory(result.Stock), memory(result.Ours))
	add("stored manifest by digest, requests for a second of CPU",
		thousands(median("manifest/warm", result.Stock, "req/cpu-s")), thousands(median("manifest/warm", result.Ours, "req/cpu-s")))
	cpu := func(engine string) string {
		return both("blob/warm/", "cpu-s/GiB", engine, func(v float64) string { return fmt.Sprintf("%.2f", v) }, "http", "https")
	}
	add("stored 64 MiB blob, seconds of CPU for a GiB, http / https", cpu(result.Stock), cpu(result.Ours))
	tag := func(engine string) string {
		return fmt.Sprintf("%.2g, %.0f B", median("tag/warm", engine, "upstream-req/req"), median("tag/warm", engine, "written-B/req"))
	}
	add("HEAD of a tag that has not changed: requests to the upstream, bytes written", tag(result.Stock), tag(result.Ours))
	first := func(what, name string) {
		add(fmt.Sprintf("first pull of 100 MiB from an upstream 80 ms away%s (direct: %s)", what, seconds(median(name, result.Direct, "s"))),
			seconds(median(name, result.Stock, "s")), seconds(median(name, result.Ours, "s")))
	}
	first(" over 1 Gbit/s", "cold/rtt=80ms/line=1Gbit")
	first(", as fast as the machine is", "cold/rtt=80ms")
	disk := r.Get(diskSeries(r), result.Ours, "hit-B/B")
	add("a trace over three times what the volume holds: bytes that came from the volume",
		percent(median(disk.Name, result.Stock, "hit-B/B")), percent(disk.Median()))
	evicting := func(engine string) string { return seconds(median("evict/blobs=100000", engine, "cold-evicting-s")) }
	add("the manifest of a new image, while 100 000 blobs expire", evicting(result.Stock), evicting(result.Ours))
	return rows
}

// diskSeries is the name of the series about a volume that is too small.
func diskSeries(r *result.Run) string {
	for _, s := range r.Measured {
		if s.Unit == "hit-B/B" {
			return s.Name
		}
	}
	return ""
}

// firstPullSentence says from which line on a first pull is slower than without a cache: as fast as the server handled
// bytes from an upstream that nothing slowed down.
func firstPullSentence(r *result.Run) string {
	const bytes = 4 * 25 << 20
	ours, direct := r.Get("cold/rtt=0ms", result.Ours, "s").Median(), r.Get("cold/rtt=0ms", result.Direct, "s").Median()
	if math.IsNaN(ours) || math.IsNaN(direct) || ours <= direct*(1+negligible) {
		return ""
	}
	rate := math.Floor(bytes/ours/1e6/50) * 50
	return fmt.Sprintf("A first pull is slower than without a cache where the line is faster than about %.0f MB/s: the cache decrypts, hashes, writes and sends each byte with one processor. "+
		"The page lists everything else in which this server is not better.", rate)
}
