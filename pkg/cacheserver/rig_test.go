// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// serveVariable makes the test binary a server with the configuration file that it names, to be killed.
const serveVariable = "REGISTRY_CACHE_TEST_CONFIG"

func TestMain(m *testing.M) {
	if file := os.Getenv(serveVariable); file != "" {
		if err := serveFile(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	repository = "library/sample"
	tag        = "v1"
	layerSize  = 1 << 20
)

// origin is a real registry behind TLS with faults in front of it.
type origin struct {
	*upstream.Server
	front  *httptest.Server
	caFile string
	fault  atomic.Pointer[fault]
	// headerTimeout is that of config. 0 means the default, so that a busy machine is no slow upstream.
	headerTimeout time.Duration
}

// fault answers instead of the registry, unless it returns false.
type fault func(w http.ResponseWriter, r *http.Request) bool

func newOrigin(t testing.TB, o upstream.Options) *origin {
	t.Helper()
	o.Dir = t.TempDir()
	server, err := upstream.New(o)
	if err != nil {
		t.Fatal(err)
	}
	u := &origin{Server: server, caFile: filepath.Join(t.TempDir(), "ca.crt")}
	registry := server.Handler()
	u.front = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := u.fault.Load(); fault != nil && (*fault)(w, r) {
			return
		}
		registry.ServeHTTP(w, r)
	}))
	u.front.Config.ErrorLog = log.New(io.Discard, "", 0) // clients leave on purpose
	u.front.StartTLS()
	t.Cleanup(u.front.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.front.Certificate().Raw})
	if err := os.WriteFile(u.caFile, ca, 0o644); err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *origin) inject(f fault) {
	if f == nil {
		u.fault.Store(nil)
		return
	}
	u.fault.Store(&f)
}

// push pushes an image with two layers. Their content depends on the seed.
func (u *origin) push(t testing.TB, tag string, seed uint64) v1.Image {
	t.Helper()
	image, err := images.Generate(images.Spec{Seed: seed, LayerSizes: []int64{layerSize, layerSize / 2}})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Push(t.Context(), "docker.io/"+repository+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	return image
}

// shape limits the bandwidth to a number of bytes per second; 0 means no limit.
func (u *origin) shape(t testing.TB, bytesPerSecond int64) {
	t.Helper()
	if err := u.Shape(upstream.Shaping{BytesPerSecond: bytesPerSecond}); err != nil {
		t.Fatal(err)
	}
}

// requests returns "METHOD kind reference" of the requests since the last time.
func (u *origin) requests() []string {
	var got []string
	for _, q := range u.Requests() {
		got = append(got, strings.Join([]string{q.Method, string(q.Kind), q.Reference}, " "))
	}
	u.ResetRequests()
	return got
}

func (u *origin) config(t testing.TB) config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.Upstream = config.Upstream{Host: "docker.io", RemoteURL: u.front.URL, CAFile: u.caFile, HeaderTimeout: config.Duration(u.headerTimeout)}
	cfg.Listen.Address, cfg.Debug.Address = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Storage.Root = t.TempDir()
	cfg.Tags.RevalidateAfter = 0
	return cfg
}

// cache is a running server.
type cache struct {
	*cacheserver.Server
	root      string
	scheme    string
	transport *http.Transport
	log       *lockedBuffer
	stop      func() error
}

func start(t testing.TB, cfg config.Config, o cacheserver.Options) *cache {
	t.Helper()
	log := &lockedBuffer{}
	o.Logger = slog.New(slog.NewJSONHandler(log, nil))
	server, err := cacheserver.New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	c := &cache{Server: server, root: cfg.Storage.Root, scheme: "http", transport: &http.Transport{}, log: log}
	c.stop = sync.OnceValue(func() error {
		c.transport.CloseIdleConnections()
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := c.stop(); err != nil {
			t.Errorf("stopping the server: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the server:\n%s", log)
		}
	})
	return c
}

// startTLS is start with a certificate of a new authority, which the transport of the cache trusts.
func startTLS(t testing.TB, cfg config.Config, o cacheserver.Options) *cache {
	t.Helper()
	dir, ca := t.TempDir(), newCA(t)
	cfg.Listen.TLS.CertFile, cfg.Listen.TLS.KeyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	issue(t, ca, dir, time.Now())
	c := start(t, cfg, o)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	c.scheme, c.transport.TLSClientConfig = "https", &tls.Config{RootCAs: roots}
	return c
}

// pull reads all of an image once, as crane does, which checks the digests.
func (c *cache) pull(ctx context.Context, tag string) error {
	var options []name.Option
	if c.scheme == "http" {
		options = append(options, name.Insecure)
	}
	ref, err := name.NewTag(c.Address()+"/"+repository+":"+tag, options...)
	if err != nil {
		return err
	}
	image, err := remote.Image(ref, remote.WithContext(ctx), remote.WithTransport(c.transport), remote.WithRetryStatusCodes())
	if err != nil {
		return err
	}
	if _, err := image.RawConfigFile(); err != nil {
		return err
	}
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		content, err := layer.Compressed()
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, content)
		if err := errors.Join(err, content.Close()); err != nil {
			return err
		}
	}
	return nil
}

// response is an answer that was read to its end.
type response struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

func (c *cache) do(t *testing.T, method, path string, header ...string) response {
	t.Helper()
	resp := c.open(t, method, path, header...)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, body, err}
}

func (c *cache) open(t *testing.T, method, path string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, c.url()+"/v2/"+repository+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (c *cache) debug(t *testing.T, path string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.DebugAddress()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, body, err}
}

// files returns the paths of the regular files below the storage root, except those of probes of the volume. The server may delete some meanwhile.
func files(t *testing.T, root string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != root {
			return nil // deleted meanwhile
		}
		if err != nil || entry.IsDir() {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if !strings.HasPrefix(relative, "registry-cache/probe") {
			found = append(found, relative)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// eventually checks until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within 30 s", what)
		case <-tick.C:
		}
	}
}

// layers returns the digest and content of the image's layers.
func layers(t testing.TB, image v1.Image) (digests []string, contents [][]byte) {
	t.Helper()
	all, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range all {
		d, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		r, err := layer.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		digests, contents = append(digests, d.String()), append(contents, content)
	}
	return digests, contents
}

func digestOf(t testing.TB, image v1.Image) string {
	t.Helper()
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// lockedBuffer is a buffer for many writers.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
