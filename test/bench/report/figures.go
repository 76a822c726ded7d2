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

// states are the states of the cache during pulls on nodes, from good to bad.
var states = []struct {
	engine, label string
	color         chart.Color
}{
	{result.Direct, directLabel, chart.Grey},
	{result.Warm, "cache ready, image stored", chart.Blue},
	{result.Cold, "cache ready, image not stored", chart.Blue},
	{result.StaleUnitLater, "unassigned address, withdrawn", chart.Green},
	{result.StaleUnitFirst, "address becomes unassigned", chart.Green},
	{result.DeletedPinned, "Service deleted and recreated", chart.Green},
	{result.StaleDialTimeout, "unassigned, only dial_timeout", chart.Amber},
	{result.StaleDocument, "unassigned, as in usage document", chart.Orange},
}

const directLabel = "no cache"

// pullers are the clients on nodes, shapes are the images.
var (
	pullers = []labelled{{"containerd 2", "containerd-2"}, {"the pull code of containerd 1.7", "containerd-1.7"}}
	shapes  = []labelled{{"alpine, 1 layer, 2.8 MB", "alpine"}, {"ops-toolbelt, 10 layers, 240 MB", "ops-toolbelt"}}
)

func staleFigures(r *result.Run) []figure {
	var all []figure
	for _, by := range pullers {
		b := chart.Bars{
			Title:      "Pull with " + by.label + " in each state of the cache",
			Subtitle:   "duration, logarithmic; less is better; dashed line: pull without a cache",
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
				caption: "Latency and bandwidth of the upstream are set so that a direct pull takes as long as in the original description of the problem. \"Only dial_timeout\": the node has no unit. containerd 1.7 ignores the option. \"As in usage document\": the node has neither.",
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
			labelled{fmt.Sprintf("%g nodes, empty caches", nodes), name},
			labelled{fmt.Sprintf("%g nodes, caches with all images", nodes), strings.TrimSuffix(name, result.Cold) + result.Warm})
	}
	return append(
		bars(r, figure{name: "nodestart", caption: "A starting node has no cache in its containerd configuration. The pulls start after the unit; the duration includes the start of the unit. All nodes share a bandwidth of 32 MiB/s to the upstream."},
			chart.Bars{Title: "Starting nodes", Subtitle: "time until each node has the images of all system components; less is better", Format: seconds}, "s", all),
		bars(r, figure{name: "nodestart-sent", caption: "Same pulls."},
			chart.Bars{Title: "Bytes sent by the upstream to starting nodes", Subtitle: "multiples of the size of the images; less is better", Format: times}, "upstream-B/image-B", all)...)
}

// over returns the names of the series that match the pattern, by the number in its first group.
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
		figure{name: "herd-amplification", caption: "All clients start at the same time, and the blob is not stored. 1 ×: the upstream sent each byte once."},
		chart.Lines{Title: "Bytes sent by the upstream for one uncached blob", Subtitle: "multiples of the size of the blob, logarithmic; less is better", X: "concurrent clients", LogX: true, LogY: true, Format: times},
		of(result.Stock, "", "upstream-B/blob-B", false), of(result.Ours, "", "upstream-B/blob-B", false))
	all = append(all, lines(
		figure{name: "herd-latency", caption: "From the request to the last byte: maximum and median of all clients."},
		chart.Lines{Title: "Duration of the pulls of concurrent clients", Subtitle: "logarithmic; less is better", X: "concurrent clients", LogX: true, LogY: true, Format: seconds},
		of(result.Stock, ", maximum", "max-s", false), of(result.Stock, ", median", "p50-s", true),
		of(result.Ours, ", maximum", "max-s", false), of(result.Ours, ", median", "p50-s", true))...)
	var variants []labelled
	for _, s := range r.Measured {
		clients, variant, ok := strings.Cut(strings.TrimPrefix(s.Name, "herd/clients="), "/")
		text := map[string]string{"first-leaves": "another client disconnects before them", "leader-leaves": "the leader disconnects during the fetch", "staggered": "started within two seconds", "kill": "the server is killed during the fetch"}[variant]
		if l := (labelled{clients + " clients, " + text, s.Name}); ok && text != "" && strings.HasPrefix(s.Name, "herd/") && !slices.Contains(variants, l) {
			variants = append(variants, l)
		}
	}
	return append(all, bars(r,
		figure{name: "herd-variants", caption: "Disconnects: an additional client starts first, and disconnects after a part of the blob."},
		chart.Bars{Title: "Bytes sent by the upstream when clients disconnect or start later", Subtitle: "multiples of the size of the blob, logarithmic; less is better", Log: true, Format: times},
		"upstream-B/blob-B", variants)...)
}

func warmFigures(r *result.Run) []figure {
	all := bars(r, figure{name: "warm-manifest", caption: "The server has one processor. 16 clients, each with its own connection."},
		chart.Bars{Title: "Stored manifest", Subtitle: "requests per second of CPU time; more is better", Format: in("/s")},
		"req/cpu-s", []labelled{{"GET by digest", "manifest/warm"}, {"HEAD by tag", "tag/warm"}})
	costs := named(r, "blob/warm/")
	all = append(all, bars(r, figure{name: "warm-blob-cpu", caption: "CPU time of the process of the server while clients read stored blobs."},
		chart.Bars{Title: "CPU time for a stored blob", Subtitle: "CPU time per GiB; less is better", Format: seconds}, "cpu-s/GiB", costs)...)
	all = append(all, bars(r, figure{name: "warm-blob-rate", caption: "The server has one processor. The clients share the others, which limits the throughput."},
		chart.Bars{Title: "Throughput for stored blobs", Subtitle: "sum of all clients; more is better", Format: in("GiB/s")}, "GiB/s", costs)...)
	for _, scheme := range []string{"http", "https"} {
		grid := named(r, "blob/"+scheme+"/")
		all = append(all, bars(r, figure{name: "grid-cpu-" + scheme, caption: "Blobs of three sizes and three numbers of clients. Each combination runs for two seconds on established connections."},
			chart.Bars{Title: "CPU time, " + scheme, Subtitle: "CPU time per GiB, logarithmic; less is better", Log: true, Format: seconds}, "cpu-s/GiB", grid)...)
		all = append(all, bars(r, figure{name: "grid-rate-" + scheme, caption: "Same requests."},
			chart.Bars{Title: "Throughput, " + scheme, Subtitle: "sum of all clients; more is better", Format: in("GiB/s")}, "GiB/s", grid)...)
		all = append(all, bars(r, figure{name: "grid-memory-" + scheme, caption: "Same requests."},
			chart.Bars{Title: "Memory, " + scheme, Subtitle: "peak resident memory, logarithmic; less is better", Log: true, Format: in("MiB")}, "B", grid)...)
	}
	return all
}

// named returns the series with the prefix, in order of measurement. The label is the rest of the name.
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
	for _, line := range []labelled{{", bandwidth not limited", ""}, {", bandwidth 1 Gbit/s", "/line=1Gbit"}} {
		rtts := over(r, `^cold/rtt=(\d+)ms`+line.name+`$`)
		var of []chart.Line
		for _, engine := range engines {
			style := engineStyle[engine]
			of = append(of, chart.Line{Name: style.label, Color: style.color, Dashed: engine == result.Direct, Points: points(r, engine, "s", rtts)})
		}
		all = append(all, lines(
			figure{name: "cold" + strings.ReplaceAll(strings.ReplaceAll(line.name, "/", "-"), "=", "-"), caption: "Four layers, together 100 MiB (4 MiB in a quick run), none of them stored. The difference from \"no cache\" is the overhead of the cache."},
			chart.Lines{Title: "First pull of four layers" + line.label, Subtitle: "duration; less is better", X: "round trip to the upstream, ms", Format: seconds}, of...)...)
	}
	return append(all, bars(r, figure{name: "cold-grid", caption: "No layer is stored. Dashed line: pull without a cache."},
		chart.Bars{Title: "First pulls of images of other sizes", Subtitle: "duration, logarithmic; less is better", Log: true, Format: seconds, Reference: directLabel}, "s", named(r, "cold/size="))...)
}

func memoryFigures(r *result.Run) []figure {
	var groups []labelled
	for _, s := range r.Measured {
		if parameters, ok := strings.CutPrefix(s.Name, "readers/"); ok && s.Engine == result.Ours {
			count, rest, _ := strings.Cut(parameters, "/")
			groups = append(groups, labelled{count + " readers, " + strings.ReplaceAll(rest, "/", ", "), s.Name})
		}
	}
	return bars(r, figure{name: "memory", caption: "Clients read one 64 MiB blob, each at 80 KiB/s. Measured in one round."},
		chart.Bars{Title: "Memory with many slow clients", Subtitle: "peak resident memory; less is better", Format: in("MiB")}, "B", groups)
}

// parametersOf returns the name of a series without the scenario.
func parametersOf(name string) string {
	_, parameters, _ := strings.Cut(name, "/")
	return parameters
}

// readableParts are the replacements for parameters in labels.
var readableParts = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`^(?:size=)?(\d+)(MB|MiB)$`), "$1 $2"},
	{regexp.MustCompile(`^(clients|layers|images|blobs)=(\d+)$`), "$2 $1"},
	{regexp.MustCompile(`^rtt=(\d+)ms$`), "round trip $1 ms"},
}

// readable converts "size=10MB/layers=4" to "10 MB, 4 layers".
func readable(parameters string) string {
	parts := strings.Split(parameters, "/")
	for i, part := range parts {
		for _, r := range readableParts {
			part = r.pattern.ReplaceAllString(part, r.text)
		}
		// Singular.
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
	all := bars(r, figure{name: "start", caption: "From the start of the process to the first answer from stored content. The folders of the volume are in the cache of the kernel."},
		chart.Bars{Title: "Start on a full volume", Subtitle: "time until the first cache hit; less is better", Format: seconds}, "first-200-s", starts)
	all = append(all, bars(r, figure{name: "kill", caption: "The server receives SIGKILL while clients pull one uncached blob. It restarts on its volume, and the clients retry."},
		chart.Bars{Title: "SIGKILL during concurrent pulls", Subtitle: "time from the restart until all clients have the verified blob; less is better", Format: seconds}, "after-kill-s", kills)...)
	all = append(all, bars(r, figure{name: "disk", caption: "Same trace for both engines: two weeks in accelerated time, TTL one week. The images are three times as large as the volume. Their popularity follows a Zipf distribution whose order changes each day. " +
		"The stock registry evicts only by age. While its volume is full, it stores no new images."},
		chart.Bars{Title: "Hit rate with images three times as large as the volume", Subtitle: "share of bytes served from the volume; more is better", Format: percent}, "hit-B/B", disks)...)
	all = append(all, bars(r, figure{name: "disk-failed", caption: "Same trace: pulls without a complete answer of the cache. containerd then falls back to the upstream."},
		chart.Bars{Title: "Failed pulls from the cache", Subtitle: "share of the pulls; less is better", Format: percent}, "failed/req", failed)...)
	all = append(all, bars(r, figure{name: "evict-cold", caption: "All content expires at the same time. During its eviction, a client requests a manifest that is not stored. The stock registry must record the expiry of the new manifest, and blocks until the eviction ends."},
		chart.Bars{Title: "New image during the eviction of many blobs", Subtitle: "time for a manifest from the upstream; less is better", Format: seconds}, "cold-evicting-s", colds)...)
	evict := chart.Bars{Title: "Requests during the eviction of many blobs", Subtitle: "99th percentile for stored manifests; less is better", Format: seconds}
	for _, s := range r.Measured {
		if s.Unit == "p99-evicting-s" {
			idle := r.Get(s.Name, s.Engine, "p99-idle-s")
			evict.Groups = append(evict.Groups, chart.Group{Label: s.Engine + ", " + readable(parametersOf(s.Name)), Bars: []chart.Bar{
				{Label: "after the eviction", Color: chart.Grey, Value: value(idle)}, {Label: "during the eviction", Color: chart.Blue, Value: value(s)},
			}})
		}
	}
	if len(evict.Groups) > 0 {
		all = append(all, figure{name: "evict", caption: "Same eviction, requests for a stored manifest.", svg: evict.SVG()})
	}
	return all
}

func unitFigures(r *result.Run) []figure {
	b := chart.Bars{Title: "Reaction time of the unit", Subtitle: "time until the node withdraws an unavailable cache, or uses an available cache again; less is better", Format: seconds}
	for _, what := range []labelled{{"cache hangs: withdrawn after", "unit/withdraw/hanging"}, {"packets are dropped: withdrawn after", "unit/withdraw/dropped"},
		{"cache answers again: used after", "unit/back/hanging"}, {"packets are delivered again: used after", "unit/back/dropped"}} {
		middle, late := r.Get(what.name, result.Ours, "p50-s"), r.Get(what.name, result.Ours, "p99-s")
		if len(middle.Values) == 0 {
			continue
		}
		b.Groups = append(b.Groups, chart.Group{Label: what.label, Bars: []chart.Bar{
			{Label: "median", Color: chart.Sky, Value: value(middle)}, {Label: "99th percentile", Color: chart.Blue, Value: value(late)},
		}})
	}
	var all []figure
	if len(b.Groups) > 0 {
		caption := "Faults start at random times between two probes. Each kind of fault has its own node; both run at the same time."
		if cost := r.Get("unit/cost/caches=3", result.Ours, "cpu-s/s"); len(cost.Values) > 0 {
			caption += fmt.Sprintf(" The unit uses %s of one processor for three caches.", percent(cost.Median()))
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
		b := chart.Bars{Title: "Requests of the controller", Subtitle: "requests per hour for " + shoots + " Shoots without changes; less is better", Format: in("/h"), Groups: []chart.Group{{Bars: []chart.Bar{
			{Label: "to the Seed", Color: chart.Blue, Value: value(s)}, {Label: "to all Shoots", Color: chart.Sky, Value: value(get("shoot-req/h"))},
		}}}}
		return []figure{{name: "controller", svg: b.SVG(), caption: fmt.Sprintf(
			"Source: audit logs of two kube-apiservers, one for the Seed and one for all Shoots. Each Shoot has one ready cache. Without a kubelet, the controller cannot read the upstream state of a cache, and checks each Shoot every 30 s. This is an upper bound: it checks every 5 min if the upstream is available. The controller uses %s of one processor and at most %.0f MiB.",
			percent(get("cpu-s/s").Median()), value(get("B")).Median)}}
	}
	return nil
}
