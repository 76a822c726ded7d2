// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/differential/registry"
	"github.com/registry-cache/extension/test/differential/scenario"
	"github.com/registry-cache/extension/test/testbed/containerdpull"
)

const (
	// host is the registry of all image references. hosts.toml files map it to the registry or to the cache.
	host = "registry.test"
	// tolerance is the time by which a pull through the cache may be slower than a direct one.
	tolerance = 2 * time.Second
	// pullTimeout is the time after which a pull fails. A direct pull with all permitted pauses takes less.
	pullTimeout = 30 * time.Second
)

// route is the way on which a client pulls.
type route string

const (
	direct  route = "direct"
	through route = "cache"
)

// pull is the result of one pull.
type pull struct {
	round      int
	repository int
	// compared is false for a pull that the scenario ends early.
	compared bool
	// stalled is the time by which timers of this process were late during the pull, which shows a lack of CPU time.
	stalled time.Duration
	// want is the image in the registry; previous is the image of the previous round, or the same one.
	want, previous registry.Image
	containerdpull.Client
}

func (p pull) String() string {
	if p.Error != "" {
		return fmt.Sprintf("%.1f s, %s", p.Seconds, p.Error)
	}
	return fmt.Sprintf("%.1f s, %s, %d blobs, %d bytes", p.Seconds, short(p.Digest), p.Blobs, p.Bytes)
}

// short returns the first characters of a digest.
func short(digest string) string { return digest[:min(len(digest), len("sha256:")+8)] }

// transcript contains all pulls of a scenario on one route.
type transcript struct {
	pulls    []pull
	requests []registry.Request
	log      string // of the cache server
}

// requestLog returns a line for each request to the registry.
func (t transcript) requestLog() string {
	var text strings.Builder
	for _, q := range t.requests {
		fmt.Fprintf(&text, "\t\tround %d, %s: %s %s %s%s: %d, %d bytes", q.Round+1, q.Host, q.Method, q.Path, q.RequestHeader.Get("Range"),
			strings.Repeat(" with authorization", min(1, len(q.RequestHeader["Authorization"]))), q.Status, q.Bytes)
		if q.Broken {
			text.WriteString(", broken")
		}
		fmt.Fprintf(&text, ", after %.1f to %.1f s\n", q.HeaderAfter.Seconds(), q.EndAfter.Seconds())
	}
	return text.String()
}

// run pulls all rounds of a scenario on a route, with a new registry and a new cache.
func run(ctx context.Context, s scenario.Scenario, session *containerdpull.Session, via route, dir string) (_ transcript, err error) {
	r, err := registry.Start(s)
	if err != nil {
		return transcript{}, err
	}
	defer r.Close()
	dir, err = os.MkdirTemp(dir, "pull-")
	if err != nil {
		return transcript{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ca := filepath.Join(dir, "ca.crt")
	authority, err := registry.CertificateAuthority()
	if err != nil {
		return transcript{}, err
	}
	if err := os.WriteFile(ca, authority, 0o600); err != nil {
		return transcript{}, err
	}
	request := containerdpull.Request{Hosts: filepath.Join(dir, "certs.d"), Timeout: pullTimeout}
	if s.Has("credentials") && via == direct {
		request.Username, request.Password = registry.Username, registry.Password
	}
	url := r.URL()
	var log lockedBuffer
	if via == through {
		stop, address, err := startCache(ctx, s, url, ca, dir, &log)
		if err != nil {
			return transcript{}, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		url = "http://" + address
	}
	if err := writeHosts(request.Hosts, url, ca); err != nil {
		return transcript{}, err
	}
	var result transcript
	for round := range registry.Rounds {
		if round > 0 {
			r.NextRound()
		}
		for repository, reference := range r.References() {
			q, compared := limit(request, s, round)
			q.Reference = host + "/" + reference
			before := stalls.total()
			client, err := session.Pull(q)
			if err != nil {
				return transcript{}, err
			}
			stalled := stalls.total() - before
			result.pulls = append(result.pulls, pull{
				round: round, repository: repository, compared: compared, stalled: stalled, Client: client,
				want: r.Image(repository, round), previous: r.Image(repository, max(0, round-1)),
			})
		}
	}
	r.Close() // waits for the ends of all requests
	result.requests, result.log = r.Requests(), log.String()
	return result, nil
}

// limit applies the quirks that end the pulls of the first round early. compared is true if there are none.
func limit(q containerdpull.Request, s scenario.Scenario, round int) (_ containerdpull.Request, compared bool) {
	milliseconds, aborted := s.Number("abort-first")
	switch {
	case round > 0:
	case aborted:
		q.Timeout = time.Duration(milliseconds) * time.Millisecond
		return q, false
	case s.Has("resolve-first"):
		q.Until = containerdpull.StepResolve
		return q, false
	case s.Has("manifests-first"):
		q.Until = containerdpull.StepManifests
		return q, false
	}
	return q, true
}

// writeHosts writes a hosts.toml with one host only, so containerd has no fallback.
func writeHosts(dir, url, ca string) error {
	if err := os.MkdirAll(filepath.Join(dir, host), 0o700); err != nil {
		return err
	}
	content := fmt.Sprintf("server = %q\n", url)
	if strings.HasPrefix(url, "https://") {
		content += fmt.Sprintf("ca = %q\n", ca)
	}
	return os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(content), 0o600)
}

// startCache starts a cache server for the registry at url, with an empty volume below dir.
func startCache(ctx context.Context, s scenario.Scenario, url, ca, dir string, log io.Writer) (stop func() error, address string, err error) {
	cfg := config.Default()
	cfg.Upstream = config.Upstream{Host: host, RemoteURL: url, CAFile: ca}
	cfg.Listen.Address, cfg.Debug.Address = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Storage.Root = filepath.Join(dir, "volume")
	if s.Has("revalidate-always") {
		cfg.Tags.RevalidateAfter = 0
	}
	if err := os.Mkdir(cfg.Storage.Root, 0o700); err != nil {
		return nil, "", err
	}
	if s.Has("credentials") {
		cfg.Upstream.CredentialsDir = filepath.Join(dir, "credentials")
		if err := os.Mkdir(cfg.Upstream.CredentialsDir, 0o700); err != nil {
			return nil, "", err
		}
		for name, value := range map[string]string{"username": registry.Username, "password": registry.Password} {
			if err := os.WriteFile(filepath.Join(cfg.Upstream.CredentialsDir, name), []byte(value), 0o600); err != nil {
				return nil, "", err
			}
		}
	}
	server, err := cacheserver.New(cfg, cacheserver.Options{Logger: slog.New(slog.NewTextHandler(log, nil)), DrainTimeout: time.Millisecond})
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}, server.Address(), nil
}

// regressions returns a line for each pull that works directly and fails through the cache, returns other content, or is
// slower than the tolerance permits.
func regressions(s scenario.Scenario, directly, cached transcript) []string {
	var lines []string
	for i, want := range directly.pulls {
		got := cached.pulls[i]
		var violation string
		switch {
		case !want.compared || want.Error != "":
		case got.Error != "":
			violation = "fails"
		case !got.complete(s):
			violation = "different content"
		case got.Seconds > want.Seconds+(tolerance+got.stalled).Seconds():
			violation = "slower"
		}
		if violation != "" {
			lines = append(lines, fmt.Sprintf("round %d, repository %d: %s; direct: %s; cache: %s", want.round+1, want.repository+1, violation, want, got))
		}
	}
	return lines
}

// complete reports whether the client has pulled the complete image. After a tag was moved, the cache may serve the
// previous image for the duration of tags.revalidateAfter, which is longer than a scenario.
func (p pull) complete(s scenario.Scenario) bool {
	got := p.image()
	return got == p.want || got == p.previous && !s.Has("revalidate-always")
}

// image returns the image that the client has pulled.
func (p pull) image() registry.Image {
	return registry.Image{Digest: digest.Digest(p.Digest), Manifest: digest.Digest(p.Manifest), Blobs: p.Blobs, Bytes: p.Bytes}
}

// lockedBuffer is a buffer for concurrent writers.
type lockedBuffer struct {
	mu      sync.Mutex // guards content
	content strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

// stalls measures the lack of CPU time for as long as the test process runs. With CPU time for all goroutines, timers are
// late by less than a millisecond.
var stalls = newStallMeter()

// stallMeter adds up the delays of a timer. It is safe for concurrent use.
type stallMeter struct{ late atomic.Int64 }

func newStallMeter() *stallMeter {
	const period = 20 * time.Millisecond
	m := &stallMeter{}
	go func() {
		expected := time.Now()
		for range time.Tick(period) {
			now := time.Now()
			expected = expected.Add(period)
			if late := now.Sub(expected); late > 0 {
				m.late.Add(int64(late))
				expected = now
			}
		}
	}()
	return m
}

func (m *stallMeter) total() time.Duration { return time.Duration(m.late.Load()) }

// workDir returns a directory for volumes and hosts.toml files, in memory if possible: the duration of fsync on a busy
// disk is not a property of the cache.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "differential-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
