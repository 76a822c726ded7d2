// SPDX-License-Identifier: Apache-2.0

// Package interop tests that clients pull through the cache server from each upstream as they pull directly. "make interop" runs
// all pairs of clients and upstreams and writes docs/development/interoperability.md. Without the flag -interop, only the tests
// of the suite's own functions run.
package interop

import (
	"context"
	"errors"
	"flag"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/registry-cache/extension/test/testbed/containerdpull"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// pullTimeout is the time after which a pull fails. Clients repeat failed requests for about a minute.
	pullTimeout = 2 * time.Minute
	// pushTimeout is the time after which a push of one image fails.
	pushTimeout = time.Minute
)

var (
	enabled  = flag.Bool("interop", false, "pull with all clients from all upstreams; installs missing Debian packages")
	pageFile = flag.String("interop.page", "", "`file` to which the results are written if all pairs were tested")
)

// suite contains everything that all pairs share.
type suite struct {
	programs     programs
	authority    *authority
	images       []image
	known        map[string]bool // digests of all content of the images
	containerd16 *containerd16
	sessions     []*containerdpull.Session

	mu       sync.Mutex // guards the fields below
	pairs    []pair
	rejected []rejection
}

// rejection is an image that an upstream does not accept.
type rejection struct{ upstream, image string }

func TestInteroperability(t *testing.T) {
	if !*enabled {
		t.Skip("runs with the flag -interop, see make interop")
	}
	s := newSuite(t)
	t.Run("upstreams", func(t *testing.T) {
		for _, u := range upstreams() {
			t.Run(u.name, func(t *testing.T) {
				t.Parallel()
				s.test(t, u)
			})
		}
	})
	if *pageFile == "" || len(s.pairs) != len(upstreams())*len(s.clients()) {
		t.Logf("tested %d pairs, no page is written", len(s.pairs))
		return
	}
	if err := os.WriteFile(*pageFile, s.report().page(), 0o644); err != nil {
		t.Error(err)
	}
}

// newSuite builds and starts what all pairs share. The end of the test stops it.
func newSuite(t *testing.T) *suite {
	t.Helper()
	root, err := workspace.Root()
	if err != nil {
		t.Fatal(err)
	}
	programsDir := filepath.Join(root, "bin", "interop", "programs")
	if err := os.MkdirAll(programsDir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &suite{known: map[string]bool{}}
	if s.programs, err = preparePrograms(t.Context(), programsDir); err != nil {
		t.Fatal(err)
	}
	if s.authority, err = newAuthority(temporaryDirectory(t)); err != nil {
		t.Fatal(err)
	}
	if s.images, err = testImages(); err != nil {
		t.Fatal(err)
	}
	for _, i := range s.images {
		digests, err := i.digests()
		if err != nil {
			t.Fatal(err)
		}
		for _, digest := range digests {
			s.known[digest] = true
		}
	}
	s.startContainerds(t)
	return s
}

// startContainerds starts the programs that execute the pulls of several clients.
func (s *suite) startContainerds(t *testing.T) {
	t.Helper()
	// The context of the test is cancelled before its cleanup functions run.
	ctx := context.WithoutCancel(t.Context())
	var err error
	if s.containerd16, err = startContainerd16(ctx, s.programs, temporaryDirectory(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s.containerd16.server.stop) })
	s.sessions, err = startSessions(ctx, s.programs, temporaryDirectory(t))
	for _, session := range s.sessions {
		t.Cleanup(func() { stop(t, session.Close) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// temporaryDirectory creates a directory whose path has no characters that have a meaning to clients, unlike t.TempDir. It is
// removed after the test.
func temporaryDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "interop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, func() error { return os.RemoveAll(dir) }) })
	return dir
}

// stop calls a function at the end of a test, which fails if the function does.
func stop(t *testing.T, f func() error) {
	t.Helper()
	if err := f(); err != nil {
		t.Error(err)
	}
}

// test pulls from one upstream with all clients. The upstream is stopped once, after all clients have pulled.
func (s *suite) test(t *testing.T, u upstream) {
	dir := temporaryDirectory(t)
	t.Cleanup(func() { keepLogs(t, dir) })
	ctx := t.Context()
	running, err := u.start(ctx, s, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, running.close) })
	references := s.push(t, u, running.push)

	var started []*pairTest
	for i, c := range s.clients() {
		t.Run(c.name, func(sub *testing.T) {
			p, err := s.startPair(ctx, u, c, running.pull, filepath.Join(dir, "client-"+strconv.Itoa(i)))
			if err != nil {
				sub.Fatal(err)
			}
			t.Cleanup(func() { stop(t, p.cache.server.stop) })
			p.references = c.references(references)
			p.pull(sub, direct, running.pull)
			if working, _ := p.working(direct); working == 0 {
				sub.Error("no reference works directly: the suite does not start the client or the upstream as it should")
			}
			p.pull(sub, cold, p.cache.registry)
			p.pull(sub, warm, p.cache.registry)
			started = append(started, p)
		})
	}
	if err := running.stop(); err != nil {
		t.Fatal(err)
	}
	if err := running.pull.answers(ctx); err == nil {
		t.Fatal("the upstream still answers requests")
	}
	for _, p := range started {
		t.Run(p.client.name+" "+string(stopped), func(sub *testing.T) {
			p.pull(sub, stopped, p.cache.registry)
			for _, message := range p.regressions() {
				sub.Error(message)
			}
			if sub.Failed() {
				sub.Logf("log of the cache:\n%s", p.cache.server.log())
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.pairs = append(s.pairs, p.pair)
		})
	}
}

// push pushes all images and returns the references of those that the upstream accepts.
func (s *suite) push(t *testing.T, u upstream, to registry) []reference {
	t.Helper()
	var references []reference
	for _, i := range s.images {
		ctx, cancel := context.WithTimeout(t.Context(), pushTimeout)
		err := to.push(ctx, i)
		cancel()
		if refused, ok := errors.AsType[*transport.Error](err); ok && slices.Contains(refusals(), refused.StatusCode) {
			t.Logf("%s is not accepted: %v", i.name, err)
			s.mu.Lock()
			s.rejected = append(s.rejected, rejection{u.name, i.name})
			s.mu.Unlock()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		of, err := i.references()
		if err != nil {
			t.Fatal(err)
		}
		references = append(references, of...)
	}
	return references
}

// refusals returns the status codes with which a registry refuses content that it does not support.
func refusals() []int {
	return []int{http.StatusBadRequest, http.StatusNotFound, http.StatusUnsupportedMediaType}
}

// pairTest is a test of one client with one upstream, through a cache of its own.
type pairTest struct {
	pair
	client     namedClient
	dir        string
	cache      *cache
	references []reference
}

// startPair starts the cache of a pair. Its files are in dir, which is created. The caller stops the cache.
func (s *suite) startPair(ctx context.Context, u upstream, c namedClient, from registry, dir string) (*pairTest, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	cache, err := startCache(ctx, s, from, dir)
	if err != nil {
		return nil, err
	}
	return &pairTest{pair: pair{u.name, c.name, map[phase]map[string]result{}}, client: c, dir: dir, cache: cache}, nil
}

// pull pulls all references and records the results.
func (p *pairTest) pull(t *testing.T, of phase, from registry) {
	start := time.Now()
	results := map[string]result{}
	for _, ref := range p.references {
		content, err := p.pullOne(t.Context(), from, ref)
		if err != nil {
			t.Logf("%s: %s: %v", of, ref.name, err)
		}
		results[ref.name] = result{content, err}
	}
	p.results[of] = results
	working, all := p.working(of)
	t.Logf("%s: %d of %d references in %.1f s", of, working, all, time.Since(start).Seconds())
}

// pullOne pulls with a new client and deletes the client's files.
func (p *pairTest) pullOne(ctx context.Context, from registry, ref reference) (_ []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	dir := filepath.Join(p.dir, "client")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	content, err := p.client.pull(ctx, from, ref, dir)
	if err != nil {
		return nil, err
	}
	return content, checkComplete(ref, content)
}

// keepLogs copies the logs below dir to the artifacts of a failed test.
func keepLogs(t *testing.T, dir string) {
	if !t.Failed() {
		return
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".log" {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(t.ArtifactDir(), strings.ReplaceAll(relative, string(filepath.Separator), "-")), content, 0o644)
	})
	if err != nil {
		t.Error(err)
	}
}
