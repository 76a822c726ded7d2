// SPDX-License-Identifier: Apache-2.0

// Package differential compares pulls through the cache with direct pulls. The clients run the code of containerd 1.7 and
// 2.x, the registries have the quirks of a scenario, and the cache is the only host in hosts.toml. A pull that works
// directly must work through the cache with the same content and must be at most 2 s slower.
//
//	go test ./test/differential -differential.seeds=20000
//	go test ./test/differential -differential.seed=17 -v
package differential

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/registry-cache/extension/test/differential/scenario"
	"github.com/registry-cache/extension/test/testbed/containerdpull"
)

var (
	seeds    = flag.Int("differential.seeds", 500, "`number` of seeds that TestSeeds runs")
	first    = flag.Uint64("differential.first", 0, "first `seed`")
	seed     = flag.Int64("differential.seed", -1, "the only `seed` to run; negative: all")
	parallel = flag.Int("differential.parallel", 24, "`number` of scenarios that run concurrently")
	quirks   = flag.String("differential.scenario", "", "the only scenario to run, as `quirks` in text form")
	verbose  = flag.Bool("differential.log", false, "add the requests and the log of the cache to the output for a failed scenario")
	shrunk   = flag.Int("differential.shrink", 5, "`number` of failed seeds that are shrunk")
	excepted = flag.Bool("differential.excepted", false, "generate also scenarios with exceptions")
)

// attempts is the number of executions after which a failure counts. A failure that does not occur in each of them is
// reported but is not a test failure: on a busy machine a pull can exceed a time limit.
const attempts = 3

// examiners is the number of failed scenarios that are shrunk concurrently.
const examiners = 8

// clients are the sessions of all containerd versions.
type clients []*containerdpull.Session

// startClients builds the commands and starts one session for each containerd version.
func startClients(t *testing.T) clients {
	t.Helper()
	var sessions clients
	for _, name := range containerdpull.Names() {
		command, err := containerdpull.Build(t.Context(), name, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		// No server listens on this port: a request for a host other than a loopback address fails immediately.
		session, err := command.StartSession(context.WithoutCancel(t.Context()), "HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := session.Close(); err != nil {
				t.Error(err)
			}
		})
		sessions = append(sessions, session)
	}
	return sessions
}

// comparison is the result of a scenario with one containerd version.
type comparison struct {
	containerd string
	lines      []string // regressions
	direct     transcript
	cached     transcript
}

// compare runs a scenario on both routes with each containerd version.
func (c clients) compare(ctx context.Context, s scenario.Scenario, dir string) ([]comparison, error) {
	results := make([]comparison, len(c))
	errs := make([]error, 2*len(c))
	var routes sync.WaitGroup
	for i, session := range c {
		results[i].containerd = session.Containerd
		routes.Go(func() { results[i].direct, errs[2*i] = run(ctx, s, session, direct, dir) })
		routes.Go(func() { results[i].cached, errs[2*i+1] = run(ctx, s, session, through, dir) })
	}
	routes.Wait()
	for i := range results {
		for _, err := range errs[2*i : 2*i+2] {
			if err != nil {
				return nil, fmt.Errorf("scenario %q: %w", s, err)
			}
		}
		results[i].lines = regressions(s, results[i].direct, results[i].cached)
	}
	return results, nil
}

// failure returns the regressions of one execution as text, empty if there are none.
func (c clients) failure(ctx context.Context, s scenario.Scenario, dir string) (string, error) {
	results, err := c.compare(ctx, s, dir)
	return describe(results), err
}

// describe returns the regressions as text, empty if there are none.
func describe(results []comparison) string {
	var text strings.Builder
	for _, result := range results {
		for _, line := range result.lines {
			fmt.Fprintf(&text, "\n\tcontainerd %s, %s", result.containerd, line)
		}
		if *verbose && len(result.lines) > 0 {
			fmt.Fprintf(&text, "\n\trequests through the cache:\n%s\tlog of the cache:\n%s", result.cached.requestLog(), result.cached.log)
		}
	}
	return text.String()
}

// repeatedFailure returns the regressions of the last of several executions if each of them has a regression.
func (c clients) repeatedFailure(ctx context.Context, s scenario.Scenario, dir string) (text string, err error) {
	for range attempts {
		if text, err = c.failure(ctx, s, dir); err != nil || text == "" {
			return "", err
		}
	}
	return text, nil
}

func TestSeeds(t *testing.T) {
	c := startClients(t)
	f := finder{t: t, clients: c, dir: workDir(t)}
	if *quirks != "" {
		s, err := scenario.Parse(*quirks)
		if err == nil {
			err = f.examine(t.Context(), "scenario", s, "")
		}
		if err != nil {
			t.Fatal(err)
		}
	} else {
		begin, count := *first, *seeds
		if *seed >= 0 {
			begin, count = uint64(*seed), 1
		}
		f.examineSeeds(t, c.runSeeds(t, begin, count))
	}
}

// examineSeeds examines seeds concurrently until the permitted number of regressions was found.
func (f *finder) examineSeeds(t *testing.T, candidates []candidate) {
	t.Helper()
	var workers sync.WaitGroup
	next := make(chan candidate)
	for range examiners {
		workers.Go(func() {
			for c := range next {
				if err := f.examine(t.Context(), fmt.Sprintf("seed %d", c.seed), generate(c.seed), c.text); err != nil {
					t.Errorf("seed %d: %v", c.seed, err)
				}
			}
		})
	}
	for i, c := range candidates {
		if f.count() >= *shrunk {
			t.Errorf("%d more seeds were not examined, from seed %d", len(candidates)-i, c.seed)
			break
		}
		next <- c
	}
	close(next)
	workers.Wait()
}

// runSeeds runs each seed once and returns those that have a regression, in ascending order.
func (c clients) runSeeds(t *testing.T, begin uint64, count int) []candidate {
	t.Helper()
	var (
		workers        sync.WaitGroup
		next           atomic.Int64
		mu             sync.Mutex // guards the variables below
		failed         []candidate
		pulls, succeed int
	)
	start, dir := time.Now(), workDir(t)
	for range min(*parallel, count) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(count) && t.Context().Err() == nil; i = next.Add(1) - 1 {
				seed := begin + uint64(i)
				results, err := c.compare(t.Context(), generate(seed), dir)
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				mu.Lock()
				if text := describe(results); text != "" {
					failed = append(failed, candidate{seed, text})
				}
				for _, result := range results {
					for _, p := range result.direct.pulls {
						pulls++
						if p.Error == "" {
							succeed++
						}
					}
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	t.Logf("%d seeds in %.0f s: %d of %d direct pulls succeeded, %d seeds have a regression", count, time.Since(start).Seconds(), succeed, pulls, len(failed))
	// Otherwise the test compares too little.
	if count > 1 && succeed*2 < pulls {
		t.Errorf("%d of %d direct pulls succeeded, want at least one half", succeed, pulls)
	}
	slices.SortFunc(failed, func(a, b candidate) int { return cmp.Compare(a.seed, b.seed) })
	return failed
}

// candidate is a seed with a regression in one execution, and the description of the regression.
type candidate struct {
	seed uint64
	text string
}

// generate returns the scenario of a seed, without exceptions.
func generate(seed uint64) scenario.Scenario {
	s := scenario.Generate(seed)
	if *excepted {
		return s
	}
	return permitted(s)
}

// finder finds the distinct regressions of failed scenarios. It is safe for concurrent use.
type finder struct {
	t       *testing.T
	clients clients
	dir     string

	mu    sync.Mutex // guards found
	found []scenario.Scenario
}

// count returns the number of distinct regressions.
func (f *finder) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.found)
}

// withoutFound removes quirks until s contains no regression that was found.
func (f *finder) withoutFound(s scenario.Scenario) scenario.Scenario {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, row := range f.found {
		s = without(s, row)
	}
	return s
}

// examine shrinks a scenario that had a regression and reports the result. A regression that does not occur in each
// execution is only logged, and one that is explained by an earlier one is ignored.
func (f *finder) examine(ctx context.Context, name string, original scenario.Scenario, text string) error {
	s := f.withoutFound(original)
	var firstErr error
	fails := func(s scenario.Scenario) bool {
		// A shrunk scenario can be an exception, which explains nothing.
		if firstErr != nil || !*excepted && len(permitted(s)) != len(s) {
			return false
		}
		var text string
		text, firstErr = f.clients.repeatedFailure(ctx, s, f.dir)
		return text != ""
	}
	if !fails(s) {
		if len(s) == len(original) {
			f.t.Logf("%s: %q: a regression did not occur in each execution:%s", name, original, text)
		}
		return firstErr
	}
	smallest := scenario.Shrink(s, fails)
	text, err := f.clients.failure(ctx, smallest, f.dir)
	firstErr = cmp.Or(firstErr, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.found, smallest.Contains) {
		f.found = append(f.found, smallest)
		f.t.Errorf("%s: %q has regressions. Smallest scenario, as a row of TestRegressions:\n\t{\"\", %q},%s", name, original, smallest.String(), text)
	}
	return firstErr
}

// without removes quirks until s does not contain the row.
func without(s, row scenario.Scenario) scenario.Scenario {
	for len(row) > 0 && s.Contains(row) {
		last := row[len(row)-1]
		i := slices.IndexFunc(s, func(q scenario.Quirk) bool { return q.Name == last.Name && q.Target == last.Target })
		s = s.Without(s[i])
	}
	return s
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(m.Run())
}
