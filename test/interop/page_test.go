// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// report contains the results of a complete run, in the order of the page.
type report struct {
	images    []string
	upstreams []versioned
	clients   []versioned
	pairs     []pair
	rejected  []rejection
}

// versioned is an upstream or a client with its version.
type versioned struct{ name, version string }

func (s *suite) report() report {
	r := report{pairs: s.pairs, rejected: s.rejected}
	for _, i := range s.images {
		r.images = append(r.images, i.name)
	}
	for _, u := range upstreams() {
		r.upstreams = append(r.upstreams, versioned{u.name, u.description(s.programs)})
	}
	for _, c := range s.clients() {
		r.clients = append(r.clients, versioned{c.name, c.version})
	}
	return r
}

const pageHeader = `# Interoperability

This page shows which clients pull which images from which upstreams, directly and through the cache server. ` + "`make interop`" + ` generates it.

Each pull starts with a client that has no content. *Direct* is a pull from the upstream, *cold* a pull through a cache that has no content either, *warm* a pull
through the cache that now has the content. *Upstream stopped* is the same as warm while the upstream refuses connections. Each request for a tag contacts the
upstream (` + "`tags.revalidateAfter: 0s`" + `). Clients are configured without a fallback from the cache to the upstream.
A cell contains the number of references that the client has pulled, and the number of all references if some of them fail. regctl and oras also copy the
referrers of each image.

The suite fails if a reference that works directly fails through the cache in any phase, or if the digests of the received content differ.

`

// page renders the report as Markdown. It is the same for equal results.
func (r report) page() []byte {
	var page bytes.Buffer
	page.WriteString(pageHeader)
	fmt.Fprintf(&page, "Images: %s. Docker schema 2 and Docker manifest list are also pulled by digest.\n\n", strings.Join(r.images, ", "))
	page.WriteString("## Clients\n\n| client | version |\n| --- | --- |\n")
	for _, c := range r.clients {
		fmt.Fprintf(&page, "| %s | %s |\n", c.name, c.version)
	}
	page.WriteString("\n## Results\n")
	for _, u := range r.upstreams {
		fmt.Fprintf(&page, "\n### %s\n\nPrograms: %s.", u.name, u.version)
		if images := r.rejectedBy(u.name); len(images) > 0 {
			fmt.Fprintf(&page, " It does not accept these images: %s.", strings.Join(images, ", "))
		}
		page.WriteString("\n\n| client |")
		for _, phase := range phases() {
			fmt.Fprintf(&page, " %s |", phase)
		}
		page.WriteString("\n| --- |" + strings.Repeat(" --- |", len(phases())) + "\n")
		for _, c := range r.clients {
			fmt.Fprintf(&page, "| %s |", c.name)
			for _, phase := range phases() {
				fmt.Fprintf(&page, " %s |", r.cell(u.name, c.name, phase))
			}
			page.WriteString("\n")
		}
	}
	r.writeFailures(&page, "Pulls that fail directly", "The client or the upstream does not support the content. These pulls are not failures of the cache.", r.directFailures())
	r.writeFailures(&page, "Pulls that fail only through the cache", "", r.regressions())
	return page.Bytes()
}

func (r report) rejectedBy(upstream string) []string {
	var images []string
	for _, rejected := range r.rejected {
		if rejected.upstream == upstream {
			images = append(images, rejected.image)
		}
	}
	return images
}

func (r report) cell(upstream, client string, of phase) string {
	for _, p := range r.pairs {
		if p.upstream == upstream && p.client == client {
			if working, all := p.working(of); working != all {
				return fmt.Sprintf("%d of %d", working, all)
			}
			return fmt.Sprint(len(p.results[of]))
		}
	}
	return "–"
}

// failure is a line of a table: a client, the pull and the reason, and the upstreams with which it fails.
type failure struct {
	client, pull, reason string
	upstreams            []string
}

func (r report) directFailures() []failure {
	var failures []failure
	r.eachPair(func(p pair) {
		for _, ref := range sortedKeys(p.results[direct]) {
			if err := p.results[direct][ref].err; err != nil {
				failures = addFailure(failures, failure{p.client, ref, reason(err.Error()), []string{p.upstream}})
			}
		}
	})
	return failures
}

func (r report) regressions() []failure {
	var failures []failure
	r.eachPair(func(p pair) {
		for _, message := range p.regressions() {
			ref, problem, _ := strings.Cut(message, ": ")
			failures = addFailure(failures, failure{p.client, ref, reason(problem), []string{p.upstream}})
		}
	})
	return failures
}

// eachPair calls f for each pair in the order of clients and upstreams.
func (r report) eachPair(f func(pair)) {
	for _, c := range r.clients {
		for _, u := range r.upstreams {
			for _, p := range r.pairs {
				if p.client == c.name && p.upstream == u.name {
					f(p)
				}
			}
		}
	}
}

// addFailure adds a failure, or the upstream of it to an equal failure. The first upstream determines the reason.
func addFailure(failures []failure, f failure) []failure {
	i := slices.IndexFunc(failures, func(g failure) bool { return g.client == f.client && g.pull == f.pull })
	if i < 0 {
		return append(failures, f)
	}
	failures[i].upstreams = append(failures[i].upstreams, f.upstreams...)
	return failures
}

func (r report) writeFailures(page *bytes.Buffer, title, explanation string, failures []failure) {
	fmt.Fprintf(page, "\n## %s\n\n", title)
	if len(failures) == 0 {
		page.WriteString("None.\n")
		return
	}
	if explanation != "" {
		page.WriteString(explanation + "\n\n")
	}
	page.WriteString("| client | pull | upstreams | reason |\n| --- | --- | --- | --- |\n")
	for _, f := range failures {
		upstreams := strings.Join(f.upstreams, ", ")
		if len(f.upstreams) == len(r.upstreams) {
			upstreams = "all"
		}
		fmt.Fprintf(page, "| %s | %s | %s | %s |\n", f.client, f.pull, upstreams, f.reason)
	}
}

// maxReason is the number of bytes of a message on the page.
const maxReason = 200

var (
	// loopback matches addresses, which differ from run to run.
	loopback = regexp.MustCompile(`(127\.0\.0\.1|localhost):\d+`)
	// temporary matches paths of files of the run.
	temporary = regexp.MustCompile(`/[^ "']*/client-\d+/`)
	logPrefix = regexp.MustCompile(`(time="[^"]*" |^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d )`)
)

// reason returns the last line of a message in a form that fits into a table and does not change from run to run.
func reason(message string) string {
	lines := strings.Split(strings.TrimSpace(message), "\n")
	line := lines[len(lines)-1]
	for _, r := range []struct {
		pattern *regexp.Regexp
		by      string
	}{{loopback, "registry"}, {temporary, ""}, {logPrefix, ""}} {
		line = r.pattern.ReplaceAllLiteralString(line, r.by)
	}
	if len(line) > maxReason {
		line = strings.ToValidUTF8(line[:maxReason], "") + "…"
	}
	return strings.NewReplacer("|", "\\|", "<", "&lt;", "*", "\\*", "_", "\\_").Replace(line)
}

func TestPage(t *testing.T) {
	t.Parallel()
	ok, failed := result{content: []string{"a"}}, result{err: fmt.Errorf("pull failed\n127.0.0.1:4711: not | supported")}
	good := map[string]result{"image": ok, "chart": ok}
	r := report{
		images: []string{"image", "chart"}, upstreams: []versioned{{"zot", "zot 1.2.3"}, {"nginx", "nginx 1"}}, clients: []versioned{{"crane", "1.0.0"}, {"oras", "2.0.0"}},
		pairs: []pair{
			{"zot", "crane", map[phase]map[string]result{direct: good, cold: good, warm: good, stopped: good}},
			{"nginx", "crane", map[phase]map[string]result{direct: good, cold: good, warm: good, stopped: {"image": ok, "chart": failed}}},
			{"zot", "oras", map[phase]map[string]result{direct: {"image": failed, "chart": ok}, cold: good, warm: good, stopped: good}},
			{"nginx", "oras", map[phase]map[string]result{direct: {"image": failed, "chart": ok}, cold: good, warm: good, stopped: good}},
		},
		rejected: []rejection{{"zot", "Docker schema 2"}},
	}
	page := string(r.page())
	for _, want := range []string{
		"### zot\n\nPrograms: zot 1.2.3. It does not accept these images: Docker schema 2.\n",
		"| crane | 2 | 2 | 2 | 1 of 2 |\n",
		"| oras | 1 of 2 | 2 | 2 | 2 |\n",
		"| oras | image | all | registry: not \\| supported |\n",
		"| crane | chart, upstream stopped | nginx | registry: not \\| supported |\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}
