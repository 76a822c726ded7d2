// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func itoa(n int) string { return strconv.Itoa(n) }

// onBlobs applies a fault to requests for the content of blobs.
func onBlobs(f func(w http.ResponseWriter, r *http.Request)) fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		f(w, r)
		return true
	}
}

// committed returns the blobs that are stored.
func committed(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	for _, file := range files(t, root) {
		if strings.Contains(file, "/_layers/") || strings.HasPrefix(file, "docker/registry/v2/blobs/") {
			found = append(found, file)
		}
	}
	return found
}

func TestWrongBytesAreNeitherCompletedNorKept(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{})
	wrong := bytes.Clone(contents[0])
	wrong[len(wrong)/2]++
	for _, sized := range []bool{true, false} {
		u.inject(onBlobs(func(w http.ResponseWriter, _ *http.Request) {
			if sized {
				w.Header().Set("Content-Length", itoa(len(wrong)))
			}
			w.Write(wrong)
		}))
		got := c.do(t, "GET", "blobs/"+digests[0])
		if got.err == nil {
			t.Errorf("sized %t: status %d and %d bytes look complete", sized, got.status, len(got.body))
		}
		c.settle(t)
		if found := files(t, c.root); len(found) > 0 {
			t.Errorf("sized %t: stored %v", sized, found)
		}
	}
	u.inject(nil)
	if got := c.do(t, "GET", "blobs/"+digests[0]); !bytes.Equal(got.body, contents[0]) || got.err != nil {
		t.Errorf("healed upstream: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
}

func TestUpstreamBreaksOff(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{})
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:len(contents[0])/2])
		return true
	})
	got := c.do(t, "GET", "blobs/"+digests[0])
	if !bytes.Equal(got.body, contents[0]) || got.err != nil {
		t.Errorf("%d, %d of %d bytes, %v", got.status, len(got.body), len(contents[0]), got.err)
	}
	// The half that was there was not sent again.
	var sent int64
	for _, q := range u.Requests() {
		sent += q.Bytes
	}
	if want := int64(len(contents[0]) - len(contents[0])/2); sent != want {
		t.Errorf("the upstream sent %d bytes after the break, want %d", sent, want)
	}
}

// hang answers no more until the client leaves.
func hang(r *http.Request) {
	<-r.Context().Done()
	panic(http.ErrAbortHandler) // or the answer may overtake the end of the connection
}

func TestUpstreamThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	u.headerTimeout = 100 * time.Millisecond
	c := start(t, u.config(t), cacheserver.Options{})
	u.inject(func(_ http.ResponseWriter, r *http.Request) bool {
		hang(r)
		return true
	})
	unknown := "sha256:" + strings.Repeat("0", 64)
	for _, path := range []string{"manifests/v1", "manifests/" + unknown, "blobs/" + unknown} {
		for _, method := range []string{"HEAD", "GET"} {
			if got := c.do(t, method, path); got.status != http.StatusGatewayTimeout {
				t.Errorf("%s %s: %d, want 504", method, path, got.status)
			}
		}
	}
}

func TestUpstreamThatGoesSilent(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	c := start(t, u.config(t), cacheserver.Options{IdleTimeout: time.Second})
	u.inject(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:1000])
		http.NewResponseController(w).Flush()
		hang(r)
	}))
	got := c.do(t, "GET", "blobs/"+digests[0])
	if got.status != 200 || got.err == nil || !bytes.Equal(got.body, contents[0][:1000]) {
		t.Errorf("%d, %d bytes, %v, want a cut body", got.status, len(got.body), got.err)
	}
	c.settle(t)
	if found := notKept(t, c.root); len(found) > 0 {
		t.Errorf("left behind: %v", found)
	}
}

func TestTagsWithoutUpstream(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	cfg := u.config(t)
	c := start(t, cfg, cacheserver.Options{})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{429, 500, 503} {
		u.inject(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(status); return true })
		wantStale(t, c, digestOf(t, image))
		for _, path := range []string{"manifests/other", "manifests/sha256:" + strings.Repeat("0", 64), "blobs/sha256:" + strings.Repeat("0", 64)} {
			if got := c.do(t, "GET", path); got.status < 500 {
				t.Errorf("upstream answers %d, %s: %d, want 5xx", status, path, got.status)
			}
		}
	}
	u.front.Close()
	wantStale(t, c, digestOf(t, image))
	if err := c.pull(t.Context(), tag); err != nil {
		t.Errorf("pull without upstream: %v", err)
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	restarted := start(t, cfg, cacheserver.Options{})
	wantStale(t, restarted, digestOf(t, image))
	if err := restarted.pull(t.Context(), tag); err != nil {
		t.Errorf("pull after a restart without upstream: %v", err)
	}
	if got := restarted.debug(t, "/readyz"); got.status != 200 {
		t.Errorf("ready: %d, %s", got.status, got.body)
	}
}

func wantStale(t *testing.T, c *cache, digest string) {
	t.Helper()
	for _, method := range []string{"HEAD", "GET"} {
		got := c.do(t, method, "manifests/v1")
		if got.status != 200 || got.header.Get("Docker-Content-Digest") != digest || got.header.Get("Warning") == "" {
			t.Errorf("%s: %d, %v, want a warning and the digest", method, got.status, got.header)
		}
	}
}

func TestDeletedTag(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	u.push(t, tag, 1)
	c := start(t, u.config(t), cacheserver.Options{})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	u.inject(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true })
	if got := c.do(t, "GET", "manifests/v1"); got.status != 404 {
		t.Errorf("deleted upstream: %d", got.status)
	}
	if got := c.do(t, "HEAD", "manifests/v1"); got.status != 404 {
		t.Errorf("HEAD of the deleted tag: %d", got.status)
	}
	// One 404 in an incident must not end the use of the stored image.
	u.front.Close()
	if got := c.do(t, "GET", "manifests/v1"); got.status != 200 || got.header.Get("Warning") == "" {
		t.Errorf("deleted tag while the upstream is unavailable: %d, %v", got.status, got.header)
	}
}

// A volume of 1 MiB: the layers do not fit, manifests do.
func TestFullVolume(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	image := u.push(t, tag, 1)
	cfg := u.config(t)
	if err := limit(t, cfg.Storage.Root, "1m"); err != nil {
		t.Skipf("a volume with a limit can only be mounted by root: %v", err)
	}
	c := start(t, cfg, cacheserver.Options{})
	for i := range 5 {
		if err := c.pull(t.Context(), tag); err != nil {
			t.Errorf("pull %d: %v", i, err)
		}
	}
	if !strings.Contains(c.log.String(), "no space left on device") {
		t.Error("the volume was never full")
	}
	if got := c.do(t, "HEAD", "manifests/"+digestOf(t, image)); got.status != 200 {
		t.Errorf("manifest: %d", got.status)
	}
	c.settle(t)
	for _, file := range files(t, c.root) {
		if strings.HasPrefix(file, "registry-cache/") {
			t.Errorf("%s is left behind", file)
		}
	}
}

// serveFile runs a server in a process of its own, which prints its address.
func serveFile(file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	server, err := cacheserver.New(cfg, cacheserver.Options{Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(os.Stdout, server.Address()); err != nil {
		return err
	}
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	return server.Run(ctx)
}

// process is a server that can be killed.
type process struct {
	*exec.Cmd
	stdout  io.Reader
	address string // after listening
	log     *lockedBuffer
}

// writeConfig returns the path of a file with the configuration.
func writeConfig(t *testing.T, cfg config.Config) string {
	t.Helper()
	document, err := cfg.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, document, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// launch starts a server with the configuration file. The caller kills it.
func launch(t *testing.T, file string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), os.Args[0]), log: &lockedBuffer{}}
	p.Env = append(os.Environ(), serveVariable+"="+file)
	p.Stderr = p.log
	var err error
	if p.stdout, err = p.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// listening returns when the server has its address.
func (p *process) listening(t *testing.T) {
	t.Helper()
	address, err := io.ReadAll(p.stdout)
	if err != nil || len(address) == 0 {
		t.Fatalf("the server does not listen: %v\n%s", err, p.log)
	}
	p.address = string(address)
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Fatalf("the server ended before it was killed: %v\n%s", err, p.log)
	}
	p.Wait() // the error is that of a killed process
}

func TestKilledInTheMiddleOfAFetch(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	digests, contents := layers(t, u.push(t, tag, 1))
	cfg := u.config(t)
	u.inject(onBlobs(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(len(contents[0])))
		w.Write(contents[0][:len(contents[0])/2])
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))

	p := launch(t, writeConfig(t, cfg))
	p.listening(t)
	var transport http.Transport
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+p.address+"/v2/"+repository+"/blobs/"+digests[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.log)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, int64(len(contents[0])/4)); err != nil {
		t.Fatal(err)
	}
	p.kill(t)
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the body looks complete")
	}
	if found := committed(t, cfg.Storage.Root); len(found) > 0 {
		t.Errorf("committed: %v", found)
	}
	if found := files(t, cfg.Storage.Root); len(found) != 1 {
		t.Errorf("the kill should leave the unfinished file: %v", found)
	}

	u.inject(nil)
	c := start(t, cfg, cacheserver.Options{})
	if found := files(t, cfg.Storage.Root); len(found) > 0 {
		t.Errorf("left after the next start: %v", found)
	}
	if got := c.do(t, "GET", "blobs/"+digests[0]); !bytes.Equal(got.body, contents[0]) || got.err != nil {
		t.Errorf("after the next start: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
}
