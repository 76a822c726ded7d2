// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/registry-cache/extension/test/bench/chart"
	"github.com/registry-cache/extension/test/bench/result"
)

// states are what pulls on nodes are made in, from good to bad.
var states = []struct {
	engine, label string
	color         chart.Color
}{
	{result.Direct, directLabel, chart.Grey},
	{result.Warm, "cache healthy, has the image", chart.Blue},
	{result.Cold, "cache healthy, has nothing yet", chart.Blue},
	{result.StaleUnitLater, "address gone, node has noticed", chart.Green},
	{result.StaleUnitFirst, "address gone this moment", chart.Green},
	{result.DeletedPinned, "Service deleted, comes back pinned", chart.Green},
	{result.StaleDialTimeout, "address gone, only dial_timeout", chart.Amber},
	{result.StaleDocument, "address gone, nothing done about it", chart.Orange},
}

const directLabel = "no cache"

// pullers are what pulls on nodes, and shapes what they pull.
var (
	pullers = []labelled{{"containerd 2", "containerd-2"}, {"the code of containerd 1.7", "containerd-1.7"}}
	shapes  = []labelled{{"alpine, 1 layer of 2.8 MB", "alpine"}, {"ops-toolbelt, 10 layers of 240 MB", "ops-toolbelt"}}
)

func staleFigures(r *result.Run) []figure {
	var all []figure
	for _, by := range pullers {
		b := chart.Bars{
			Title:      "A pull in each state of the world, by " + by.label,
			Subtitle:   "seconds until the image is there, logarithmic; less is better; the dashed line is a pull without a cache",
			Log:        true,
			Format:     seconds,
			FormatTick: in("s"),
			Reference:  directLabel,
		}
		for _, shape := range shapes {
			g := chart.Group{Label: shape.label}
			for _, state := range states {
				if s := r.Get("stale/"+by.name+"/"+shape.name, state.engine, "s"); len(s.Values) > 0 {
					g.Bars = append(g.Bars, chart.Bar{Label: state.label, Color: state.color, Value: value(s)})
				}
			}
			if len(g.Bars) > 0 {
				b.Groups = append(b.Groups, g)
			}
		}
		if len(b.Groups) > 0 {
			all = append(all, figure{
				name:    "stale-" + by.name,
				caption: "The upstream is shaped so that a direct pull takes as long as the problem was described with. \"Only dial_timeout\" has no unit on the node; containerd 1.7 does not know the option.",
				svg:     b.SVG(),
			})
		}
	}
	return all
}

func nodeStartFigures(r *result.Run) []figure {
	var all []labelled
	for nodes, name := range over(r, `^nodestart/nodes=(\d+)/cold$`) {
		all = append(all,
			labelled{fmt.Sprintf("%g nodes, caches that have none of the images", nodes), name},
			labelled{fmt.Sprintf("%g nodes, caches that have all of them", nodes), strings.TrimSuffix(name, result.Cold) + result.Warm})
	}
	return append(
		bars(r, figure{name: "nodestart", caption: "Nodes have no caches configured when they start: their unit starts first and the pulls when it has started, which counts. All share a line of 32 MiB/s to it."},
			chart.Bars{Title: "Nodes that start", Subtitle: "seconds until each of them has all images of what runs on every node; less is better", Format: seconds}, "s", all),
		bars(r, figure{name: "nodestart-sent", caption: "The same."},
			chart.Bars{Title: "What the upstream sends to nodes that start", Subtitle: "multiples of the images; less is better", Format: times}, "upstream-B/image-B", all)...)
}

// over returns the series of the run that match the pattern, by the number that its group finds.
func over(r *result.Run, pattern string) map[float64]string {
	p := regexp.MustCompile(pattern)
	names := map[float64]string{}
	for _, s := range r.Measured {
		if m := p.FindStringSubmatch(s.Name); m != nil {
			if x, err := strconv.ParseFloat(m[1], 64); err == nil {
				names[x] = s.Name
			}
		}
	}
	return names
}

func herdFigures(r *result.Run) []figure {
	atOnce := over(r, `^herd/clients=(\d+)$`)
	of := func(engine, suffix, unit string, dashed bool) chart.Line {
		style := engineStyle[engine]
		return chart.Line{Name: style.label + suffix, Color: style.color, Dashed: dashed, Points: points(r, engine, unit, atOnce)}
	}
	all := lines(
		figure{name: "herd-amplification", caption: "All clients ask at the same moment, and nothing of the blob is stored. 1 × means that the upstream sent each byte once."},
		chart.Lines{Title: "What the upstream sends for one cold blob", Subtitle: "multiples of the blob, logarithmic; less is better", X: "clients at once", LogX: true, LogY: true, Format: times},
		of(result.Stock, "", "upstream-B/blob-B", false), of(result.Ours, "", "upstream-B/blob-B", false))
	all = append(all, lines(
		figure{name: "herd-latency", caption: "From the request to the last byte, of all clients: the slowest one, and the one in the middle."},
		chart.Lines{Title: "How long the clients take", Subtitle: "seconds, logarithmic; less is better", X: "clients at once", LogX: true, LogY: true, Format: seconds},
		of(result.Stock, ", slowest", "max-s", false), of(result.Stock, ", middle", "p50-s", true),
		of(result.Ours, ", slowest", "max-s", false), of(result.Ours, ", middle", "p50-s", true))...)
	var variants []labelled
	for _, s := range r.Measured {
		clients, variant, ok := strings.Cut(strings.TrimPrefix(s.Name, "herd/clients="), "/")
		text := map[string]string{"first-leaves": "the first one has left", "leader-leaves": "the first one leaves in the middle", "staggered": "they come within two seconds", "kill": "the server is killed in the middle"}[variant]
		if l := (labelled{clients + " clients, " + text, s.Name}); ok && text != "" && strings.HasPrefix(s.Name, "herd/") && !slices.Contains(variants, l) {
			variants = append(variants, l)
		}
	}
	return append(all, bars(r,
		figure{name: "herd-variants", caption: "One more client than the number says begins, and leaves with a part of the blob; or the clients do not come at the same moment."},
		chart.Bars{Title: "The same when clients leave, or come late", Subtitle: "multiples of the blob that the upstream sends, logarithmic; less is better", Log: true, Format: times},
		"upstream-B/blob-B", variants)...)
}

func warmFigures(r *result.Run) []figure {
	all := bars(r, figure{name: "warm-manifest", caption: "One processor; 16 clients, each with a connection of its own."},
		chart.Bars{Title: "A stored manifest", Subtitle: "requests that a second of CPU is good for; more is better", Format: in("/s")},
		"req/cpu-s", []labelled{{"GET of the manifest by its digest", "manifest/warm"}, {"HEAD of its tag", "tag/warm"}})
	costs := named(r, "blob/warm/")
	all = append(all, bars(r, figure{name: "warm-blob-cpu", caption: "What the server's process uses while clients read stored blobs."},
		chart.Bars{Title: "What a GiB of a stored blob costs", Subtitle: "seconds of CPU; less is better", Format: seconds}, "cpu-s/GiB", costs)...)
	all = append(all, bars(r, figure{name: "warm-blob-rate", caption: "The server has one processor, the clients have the others, which limits what can be seen."},
		chart.Bars{Title: "How fast stored blobs are served", Subtitle: "GiB a second, all clients together; more is better", Format: in("GiB/s")}, "GiB/s", costs)...)
	for _, scheme := range []string{"http", "https"} {
		grid := named(r, "blob/"+scheme+"/")
		all = append(all, bars(r, figure{name: "grid-cpu-" + scheme, caption: "Blobs of three sizes, read by three numbers of clients for two seconds each. Their connections are there already."},
			chart.Bars{Title: "What a GiB costs, " + scheme, Subtitle: "seconds of CPU, logarithmic; less is better", Log: true, Format: seconds}, "cpu-s/GiB", grid)...)
		all = append(all, bars(r, figure{name: "grid-rate-" + scheme, caption: "The same."},
			chart.Bars{Title: "How fast, " + scheme, Subtitle: "GiB a second, all clients together; more is better", Format: in("GiB/s")}, "GiB/s", grid)...)
		all = append(all, bars(r, figure{name: "grid-memory-" + scheme, caption: "The same: the highest resident memory meanwhile."},
			chart.Bars{Title: "Memory, " + scheme, Subtitle: "MiB, logarithmic; less is better", Log: true, Format: in("MiB")}, "B", grid)...)
	}
	return all
}

// named are the series whose names begin with the prefix, with the rest as labels, in the order of measurement.
func named(r *result.Run, prefix string) []labelled {
	var all []labelled
	for _, s := range r.Measured {
		parameters, ok := strings.CutPrefix(s.Name, prefix)
		if l := (labelled{readable(parameters), s.Name}); ok && !slices.Contains(all, l) {
			all = append(all, l)
		}
	}
	return all
}

func coldFigures(r *result.Run) []figure {
	var all []figure
	for _, line := range []labelled{{", as fast as the machine is", ""}, {", over a line of 1 Gbit/s", "/line=1Gbit"}} {
		rtts := over(r, `^cold/rtt=(\d+)ms`+line.name+`$`)
		var of []chart.Line
		for _, engine := range engines {
			style := engineStyle[engine]
			of = append(of, chart.Line{Name: style.label, Color: style.color, Dashed: engine == result.Direct, Points: points(r, engine, "s", rtts)})
		}
		all = append(all, lines(
			figure{name: "cold" + strings.ReplaceAll(strings.ReplaceAll(line.name, "/", "-"), "=", "-"), caption: "Four layers, 100 MiB in all, and nothing of them stored (4 MiB in a quick run). The difference to no cache is what a first pull costs."},
			chart.Lines{Title: "A first pull of four layers" + line.label, Subtitle: "seconds; less is better", X: "round trip to the upstream, ms", Format: seconds}, of...)...)
	}
	return append(all, bars(r, figure{name: "cold-grid", caption: "Nothing of the images is stored. The dashed line is a pull without a cache."},
		chart.Bars{Title: "First pulls of other sizes", Subtitle: "seconds, logarithmic; less is better", Log: true, Format: seconds, Reference: directLabel}, "s", named(r, "cold/size="))...)
}

func memoryFigures(r *result.Run) []figure {
	var groups []labelled
	for _, s := range r.Measured {
		if parameters, ok := strings.CutPrefix(s.Name, "readers/"); ok && s.Engine == result.Ours {
			count, rest, _ := strings.Cut(parameters, "/")
			groups = append(groups, labelled{count + " readers, " + strings.ReplaceAll(rest, "/", ", "), s.Name})
		}
	}
	return bars(r, figure{name: "memory", caption: "The highest resident memory of the server while clients read one 64 MiB blob at 80 KiB a second each. It is measured in one round."},
		chart.Bars{Title: "Memory while many clients read slowly", Subtitle: "highest resident memory; less is better", Format: in("MiB")}, "B", groups)
}

// parametersOf is the name of a series without its scenario.
func parametersOf(name string) string {
	_, parameters, _ := strings.Cut(name, "/")
	return parameters
}

// readableParts are how parameters are written in labels.
var readableParts = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`^(?:size=)?(\d+)(MB|MiB)$`), "$1 $2"},
	{regexp.MustCompile(`^(clients|layers|images|blobs)=(\d+)$`), "$2 $1"},
	{regexp.MustCompile(`^rtt=(\d+)ms$`), "$1 ms away"},
}

// readable writes "size=10MB/layers=4" as "10 MB, 4 layers".
func readable(parameters string) string {
	parts := strings.Split(parameters, "/")
	for i, part := range parts {
		for _, r := range readableParts {
			part = r.pattern.ReplaceAllString(part, r.text)
		}
		// One of them is no plural.
		if one, ok := strings.CutPrefix(part, "1 "); ok {
			part = "1 " + strings.TrimSuffix(one, "s")
		}
		parts[i] = part
	}
	return strings.Join(parts, ", ")
}

func volumeFigures(r *result.Run) []figure {
	var starts, disks, failed, kills, colds []labelled
	for _, s := range r.Measured {
		switch l := (labelled{readable(parametersOf(s.Name)), s.Name}); {
		case s.Engine != result.Ours:
		case s.Unit == "first-200-s":
			starts = append(starts, l)
		case s.Unit == "after-kill-s":
			kills = append(kills, l)
		case s.Unit == "cold-evicting-s":
			colds = append(colds, l)
		case s.Unit == "hit-B/B":
			disks = append(disks, labelled{"", s.Name})
			failed = append(failed, labelled{"", s.Name})
		}
	}
	all := bars(r, figure{name: "start", caption: "From the start of the process to the first answer from the volume, with its directories in the kernel's memory."},
		chart.Bars{Title: "Start on a full volume", Subtitle: "time to the first stored answer; less is better", Format: seconds}, "first-200-s", starts)
	all = append(all, bars(r, figure{name: "kill", caption: "The server is killed (SIGKILL) while clients pull one cold blob, and started again on its volume; the clients ask again. Until all of them have it, verified."},
		chart.Bars{Title: "After kill -9 in the middle of a herd", Subtitle: "time from the restart until all clients have the blob; less is better", Format: seconds}, "after-kill-s", kills)...)
	all = append(all, bars(r, figure{name: "disk", caption: "The same trace for both: images by a Zipf distribution whose order moves on each day, three times what the volume holds, two weeks in accelerated time and a TTL of one. " +
		"The stock registry deletes by age only, and keeps what was there first when the volume is full."},
		chart.Bars{Title: "A volume that is too small by a factor of three", Subtitle: "share of the bytes that came from the volume; more is better", Format: percent}, "hit-B/B", disks)...)
	all = append(all, bars(r, figure{name: "disk-failed", caption: "The same trace: pulls that the cache did not answer in full. containerd asks the upstream then, so that a node has its image all the same, later."},
		chart.Bars{Title: "Pulls that fail at the cache", Subtitle: "share of the pulls; less is better", Format: percent}, "failed/req", failed)...)
	all = append(all, bars(r, figure{name: "evict-cold", caption: "Everything expires at once, which is the most that a cache ever has to delete. In the midst of it a node asks for a manifest that the cache does not have. The stock registry stores when the new one expires, and waits for all that are being deleted to do so."},
		chart.Bars{Title: "A new image while much is deleted", Subtitle: "time for its manifest, from the upstream; less is better", Format: seconds}, "cold-evicting-s", colds)...)
	evict := chart.Bars{Title: "Requests while much is deleted", Subtitle: "99th percentile of stored manifests; less is better", Format: seconds}
	for _, s := range r.Measured {
		if s.Unit == "p99-evicting-s" {
			idle := r.Get(s.Name, s.Engine, "p99-idle-s")
			evict.Groups = append(evict.Groups, chart.Group{Label: s.Engine + ", " + readable(parametersOf(s.Name)), Bars: []chart.Bar{
				{Label: "afterwards", Color: chart.Grey, Value: value(idle)}, {Label: "while they are deleted", Color: chart.Blue, Value: value(s)},
			}})
		}
	}
	if len(evict.Groups) > 0 {
		all = append(all, figure{name: "evict", caption: "The same, for a manifest that the cache has.", svg: evict.SVG()})
	}
	return all
}

func unitFigures(r *result.Run) []figure {
	b := chart.Bars{Title: "How soon a node notices", Subtitle: "seconds until the node does not use a cache that is gone, or uses one that is back; less is better", Format: seconds}
	for _, what := range []labelled{{"cache hangs: not used any more after", "unit/withdraw/hanging"}, {"packets vanish: not used any more after", "unit/withdraw/dropped"},
		{"hang is over: used again after", "unit/back/hanging"}, {"packets arrive again: used again after", "unit/back/dropped"}} {
		middle, late := r.Get(what.name, result.Ours, "p50-s"), r.Get(what.name, result.Ours, "p99-s")
		if len(middle.Values) == 0 {
			continue
		}
		b.Groups = append(b.Groups, chart.Group{Label: what.label, Bars: []chart.Bar{
			{Label: "middle", Color: chart.Sky, Value: value(middle)}, {Label: "99th percentile", Color: chart.Blue, Value: value(late)},
		}})
	}
	var all []figure
	if len(b.Groups) > 0 {
		caption := "Faults begin at any moment between two probes. Caches hang and packets vanish at the same time, each measured on a node of its own."
		if cost := r.Get("unit/cost/caches=3", result.Ours, "cpu-s/s"); len(cost.Values) > 0 {
			caption += fmt.Sprintf(" The unit takes %s of one processor with three caches.", percent(cost.Median()))
		}
		all = append(all, figure{name: "unit", caption: caption, svg: b.SVG()})
	}
	return append(all, controllerFigures(r)...)
}

func controllerFigures(r *result.Run) []figure {
	for _, s := range r.Measured {
		if s.Unit != "seed-req/h" {
			continue
		}
		shoots := strings.TrimPrefix(s.Name, "controller/shoots=")
		get := func(unit string) result.Series { return r.Get(s.Name, result.Ours, unit) }
		b := chart.Bars{Title: "What the controller asks for", Subtitle: "requests an hour while nothing happens to its " + shoots + " Shoots; less is better", Format: in("/h"), Groups: []chart.Group{{Bars: []chart.Bar{
			{Label: "to the Seed", Color: chart.Blue, Value: value(s)}, {Label: "to all Shoots together", Color: chart.Sky, Value: value(get("shoot-req/h"))},
		}}}}
		return []figure{{name: "controller", svg: b.SVG(), caption: fmt.Sprintf(
			"Counted in the audit logs of two real API servers, one for the Seed and one for all Shoots, each with one cache that is ready. No kubelet runs the pods, so they cannot be asked about their upstreams and the controller looks at each Shoot every 30 s: an upper bound, as it looks every 5 min where upstreams answer. It takes %s of one processor and at most %.0f MiB meanwhile.",
			percent(get("cpu-s/s").Median()), value(get("B")).Median)}}
	}
	return nil
}
