// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// WriteJSON writes the report as one indented JSON document.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// WriteTable writes the report as tables for people, with sizes in binary units and times as ages. The format may change.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }

	row("ROOT", printable(r.Root))
	row("Volume", r.volume())
	row("Policy", r.Policy.String())
	row("Content", fmt.Sprintf("%s, %s, of %s in %s", count(r.Totals.Objects, "object"), size(r.Totals.SizeBytes),
		count(r.Totals.Images, "image"), countOf(r.Totals.Repositories, "repository", "repositories")))
	if r.Totals.UnfinishedSizeBytes > 0 {
		row("Unfinished", size(r.Totals.UnfinishedSizeBytes))
	}
	row("Evictable now", fmt.Sprintf("%s, %s", count(r.Totals.EvictableObjects, "object"), size(r.Totals.EvictableSizeBytes)))
	row("Oldest use", r.ago(r.Totals.OldestUse))
	if r.Totals.LastUsesRecorded.IsZero() {
		row("Last uses", "not recorded by a server; the times of the files are used")
	} else {
		row("Last uses", "recorded "+r.ago(r.Totals.LastUsesRecorded))
	}
	if err := t.Flush(); err != nil {
		return err
	}

	if len(r.Images) > 0 {
		fmt.Fprintln(t)
		row("REPOSITORY", "TAGS", "DIGEST", "SIZE", "OBJECTS", "LAST USE", "EXPIRES", "EVICTION")
		for _, i := range r.Images {
			row(i.Repository, tags(i.Tags), short(i.Digest), size(i.SizeBytes), i.Objects.String(), r.ago(i.LastUse), r.expires(i.Eviction), r.evictionOf(i))
			for _, m := range i.Manifests {
				// An index contains manifests of platforms that no node pulls. They are part of the count above.
				if m.Objects.Present > 0 {
					row("  "+platformOf(m), "", short(m.Digest), size(m.SizeBytes), m.Objects.String(), r.ago(m.LastUse), r.expires(m.Eviction), r.eviction(m.Eviction))
				}
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(r.Orphans) > 0 {
		fmt.Fprintln(t)
		row("ORPHANS", "SIZE", "LAST USE", "EXPIRES", "EVICTION", "NOTE", "PATH")
		for _, o := range r.Orphans {
			row(string(o.Kind), size(o.SizeBytes), r.ago(o.LastUse), r.expires(o.Eviction), r.eviction(o.Eviction), printable(o.Note), printable(o.Path))
		}
	}
	return t.Flush()
}

func (r *Report) volume() string {
	if r.Volume == nil {
		return "not measured"
	}
	return fmt.Sprintf("%s of %s used (%.0f %%), %s free", size(r.Volume.UsedBytes), size(r.Volume.LimitBytes), r.Volume.UsedPercent, size(r.Volume.FreeBytes))
}

// String describes the policy.
func (p Policy) String() string {
	if p.TTLSeconds == 0 {
		return "nothing is evicted: garbage collection is disabled"
	}
	return fmt.Sprintf("evicts objects after %s without use, and the least recently used objects at %d %% of the volume, down to %d %%",
		duration(time.Duration(p.TTLSeconds)*time.Second), p.HighWatermarkPercent, p.LowWatermarkPercent)
}

// String returns "present/referenced".
func (c Count) String() string { return fmt.Sprintf("%d/%d", c.Present, c.Referenced) }

// evictionOf describes the eviction of an image: of its manifest, and of objects that are evicted before it for another
// reason.
func (r *Report) evictionOf(i Image) string {
	s := r.eviction(i.Eviction)
	if first := i.Layers.First; first != nil && first.Eviction.Rank < i.Eviction.Rank && first.Eviction.Reason != i.Eviction.Reason {
		s += ", layers from " + r.eviction(first.Eviction)
	}
	return s
}

// eviction returns "#<rank> <reason>".
func (r *Report) eviction(e Eviction) string {
	switch {
	case e.Rank == 0:
		return "-"
	case e.Reason == "":
		return "#" + strconv.Itoa(e.Rank)
	case e.Reason == evict.LeastRecentlyUsed && !e.Now:
		return fmt.Sprintf("#%d %s at %d %%", e.Rank, e.Reason, r.Policy.HighWatermarkPercent)
	}
	return fmt.Sprintf("#%d %s", e.Rank, e.Reason)
}

func platformOf(m Manifest) string {
	if m.Platform == "" {
		return "any platform"
	}
	return printable(m.Platform)
}

func (r *Report) ago(t time.Time) string {
	switch {
	case t.IsZero():
		return "-"
	case !t.Before(r.Time):
		return "now"
	}
	return duration(r.Time.Sub(t)) + " ago"
}

func (r *Report) expires(e Eviction) string {
	switch {
	case e.Reason == evict.Unreferenced:
		return "-" // independent of its last use
	case e.Expires.After(r.Time):
		return "in " + duration(e.Expires.Sub(r.Time))
	}
	return r.ago(e.Expires)
}

// duration returns the two largest units, such as "3d4h".
func duration(d time.Duration) string {
	units := []struct {
		name string
		d    time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.d {
			continue
		}
		s := fmt.Sprintf("%d%s", d/u.d, u.name)
		if i+1 < len(units) {
			if rest := d % u.d / units[i+1].d; rest > 0 {
				s += fmt.Sprintf("%d%s", rest, units[i+1].name)
			}
		}
		return s
	}
	return "0s"
}

// size returns bytes in the largest binary unit that gives at least 1.
func size(bytes int64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/(1<<10), 0
	const units = "KMGTPE"
	// A value that would be rounded to 1024.0 has the next unit.
	for ; value >= 1023.95 && unit < len(units)-1; unit++ {
		value /= 1 << 10
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

func short(d digest.Digest) string {
	const hexDigits = 12
	return d.Algorithm().String() + ":" + d.Encoded()[:hexDigits]
}

func tags(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ",")
}

func count(n int, one string) string { return countOf(n, one, one+"s") }

func countOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// printable quotes strings with characters that would disturb a terminal or the table.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
