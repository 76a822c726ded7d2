// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/test/testbed/containerdpull"
	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

const (
	// matrixTimeout replaces the deadline of 5 s of calls on the volume.
	matrixTimeout = 2 * time.Second
	// maxSilence is the longest time without a byte of a response. It is less than two deadlines: one request waits for at
	// most one hung call.
	maxSilence = 2*matrixTimeout - 200*time.Millisecond
)

// matrixVolume are the limits of the volume in the tests of this file.
func matrixVolume(fault *volumeFault) volume.Options {
	return volume.Options{
		Timeout: matrixTimeout, SyncTimeout: matrixTimeout, ProbeInterval: 500 * time.Millisecond, ProbeTimeout: time.Second,
		Fault: fault.inject,
	}
}

// node pulls like containerd: each request goes to the cache first. After an error status, a broken connection or a short
// body it continues with a Range request, at the cache first and at the upstream next. Unlike containerd it reports a cache
// that is silent for longer than maxSilence, and it cannot pull if the cache sends a wrong byte.
type node struct {
	t     *testing.T
	cache *cache
	up    *origin
	// refusals are the reasons why requests continued at the upstream.
	refusals []string
}

// content returns the body for the path and its digest header. An empty digest means that it is unknown.
func (n *node) content(path, digest string) []byte {
	n.t.Helper()
	var body []byte
	for attempt, stalled := 0, 0; attempt < 10 && stalled < 4; attempt++ {
		before := len(body)
		for _, host := range []struct {
			base   string
			client http.RoundTripper
		}{{n.cache.url(), n.cache.transport}, {n.up.front.URL, n.up.front.Client().Transport}} {
			got, complete, err := n.request(host.client, host.base+"/v2/"+repository+"/"+path, int64(len(body)))
			body = append(body, got...)
			if complete {
				if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(body)); digest != "" && sum != digest {
					n.t.Errorf("%s: wrong bytes: %s", path, sum)
				}
				return body
			}
			if errors.Is(err, errSilent) {
				n.t.Errorf("%s: %v", path, err)
			}
			n.refusals = append(n.refusals, fmt.Sprintf("%s at byte %d: %v", path, len(body), err))
			if errors.Is(err, syscall.ECONNRESET) && len(got) > 0 {
				n.t.Errorf("%s: containerd does not resume after a reset connection: %v", path, err)
			}
			if len(got) > 0 {
				break // containerd resumes at the first host
			}
		}
		if len(body) == before {
			stalled++
		}
	}
	n.t.Errorf("%s: the pull fails although the upstream can serve it: %v", path, n.refusals)
	return body
}

// errSilent: no byte within maxSilence.
var errSilent = errors.New("no byte within the limit")

// watchSilence calls silent after maxSilence without a signal. It counts ticks: a ticker drops those of the time in which a
// busy machine does not execute this process, which also executes the server.
func watchSilence(ctx context.Context, received <-chan struct{}, silent func()) {
	const period = 50 * time.Millisecond
	tick := time.NewTicker(period)
	defer tick.Stop()
	for ticks := 0; ticks < int(maxSilence/period); {
		select {
		case <-tick.C:
			ticks++
		case <-received:
			ticks = 0
		case <-ctx.Done():
			return
		}
	}
	silent()
}

// request reads from offset on.
func (n *node) request(client http.RoundTripper, url string, offset int64) (body []byte, complete bool, err error) {
	ctx, cancel := context.WithCancelCause(n.t.Context())
	defer cancel(nil)
	received := make(chan struct{}, 1)
	go watchSilence(ctx, received, func() { cancel(errSilent) })
	cause := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, false, err
	}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := client.RoundTrip(req)
	if err != nil {
		return nil, false, cause(err)
	}
	defer resp.Body.Close()
	want := http.StatusOK
	if offset > 0 {
		want = http.StatusPartialContent
	}
	if resp.StatusCode != want {
		message, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return nil, false, fmt.Errorf("%s %s", resp.Status, message)
	}
	buffer := make([]byte, 32<<10)
	for {
		got, err := resp.Body.Read(buffer)
		select {
		case received <- struct{}{}:
		default:
		}
		body = append(body, buffer[:got]...)
		if err == io.EOF {
			return body, true, nil
		}
		if err != nil {
			return body, false, cause(err)
		}
	}
}

// pull pulls the image: the tag, its manifest by digest, and all blobs, three at a time.
func (n *node) pull(tag, digest string) {
	n.t.Helper()
	if got := fmt.Sprintf("sha256:%x", sha256.Sum256(n.content("manifests/"+tag, digest))); got != digest {
		n.t.Errorf("tag %s is %s, want %s", tag, got, digest)
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(n.content("manifests/"+digest, digest), &manifest); err != nil {
		n.t.Errorf("manifest %s: %v", digest, err)
		return
	}
	var group sync.WaitGroup
	clients := []*node{}
	for _, blob := range append(manifest.Layers, manifest.Config) {
		client := &node{t: n.t, cache: n.cache, up: n.up}
		clients = append(clients, client)
		group.Go(func() { client.content("blobs/"+blob.Digest.String(), blob.Digest.String()) })
	}
	group.Wait()
	for _, client := range clients {
		n.refusals = append(n.refusals, client.refusals...)
	}
}

// matrixImages pushes two images without common layers and returns their digests by tag. One layer has several chunks.
func matrixImages(t *testing.T, u *origin) map[string]string {
	t.Helper()
	digests := map[string]string{}
	for i, tag := range []string{"v1", "v2"} {
		image, err := images.Generate(images.Spec{Seed: uint64(i + 1), LayerSizes: []int64{700 << 10, 3000}})
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Push(t.Context(), "docker.io/"+repository+":"+tag, image); err != nil {
			t.Fatal(err)
		}
		digests[tag] = digestOf(t, image)
	}
	return digests
}

// matrixFaults are the errors of the matrix; nil is a hang.
var matrixFaults = map[string]error{
	"ENOSPC": syscall.ENOSPC, "EDQUOT": syscall.EDQUOT, "EIO": syscall.EIO, "EROFS": syscall.EROFS, "ESTALE": syscall.ESTALE, "hang": nil,
}

// unusedOps are operations that a pull does not execute.
var unusedOps = map[volume.Op]bool{
	volume.OpTruncate: true, // only partial downloads, and probes after another failure
	volume.OpStatfs:   true, // the collector every ten seconds
	volume.OpReadDir:  true, // only at the start
}

// TestFaultMatrix injects each fault into each operation of the volume, during cold and warm pulls and at the start of the
// server. No byte is wrong, no response is silent for longer than one deadline, the server does not end, and each pull
// succeeds. After the fault the cache stores and serves content again.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	for _, op := range volume.Ops() {
		for name, err := range matrixFaults {
			t.Run(string(op)+"/"+name, func(t *testing.T) {
				t.Parallel()
				testFault(t, err, op)
			})
		}
	}
	for name, err := range matrixFaults {
		t.Run("all/"+name, func(t *testing.T) {
			t.Parallel()
			testFault(t, err, volume.Ops()...)
		})
	}
}

func testFault(t *testing.T, err error, ops ...volume.Op) {
	u := newOrigin(t, upstream.Options{})
	digests := matrixImages(t, u)
	cfg := u.config(t)
	cfg.Storage.HighWatermark, cfg.Storage.LowWatermark = 100, 99 // independent of the disk of the test machine
	affected := 0
	open := func(fault *volumeFault) *cache {
		t.Helper()
		began := time.Now()
		c := start(t, cfg, cacheserver.Options{Volume: matrixVolume(fault), DrainTimeout: time.Second})
		if took := time.Since(began); took > maxSilence {
			t.Errorf("the server was not started within %s, but %s", maxSilence, took)
		}
		return c
	}
	end := func(c *cache, fault *volumeFault) {
		t.Helper()
		affected += fault.end()
		if got := c.debug(t, "/healthz").status; got != http.StatusOK {
			t.Errorf("/healthz: %d", got)
		}
		eventually(t, "the volume is usable", func() bool { return c.metric(t, `registry_cache_volume_state{state="ok"}`) == 1 })
		c.settle(t)
	}
	stop := func(c *cache) {
		t.Helper()
		if err := c.stop(); err != nil {
			t.Errorf("stopping the server: %v", err)
		}
		checkContent(t, c.root)
	}

	// An empty cache.
	fault := &volumeFault{}
	c := open(fault)
	pull := func(step, tag string) {
		t.Helper()
		n := &node{t: t, cache: c, up: u}
		n.pull(tag, digests[tag])
		if len(n.refusals) > 0 {
			t.Logf("%s: at the upstream: %q", step, n.refusals)
		}
	}
	fault.begin(err, ops...)
	pull("cold pull with the fault", "v1")
	pull("second pull with the fault", "v1")
	end(c, fault)
	wantRecovery(t, c, u, "v1", digests["v1"])
	stop(c)

	// A filled cache: its memory has no content, so it reads the volume.
	fault = &volumeFault{}
	c = open(fault)
	fault.begin(err, ops...)
	pull("warm pull with the fault", "v1")
	pull("cold pull into a filled cache with the fault", "v2")
	end(c, fault)
	wantRecovery(t, c, u, "v1", digests["v1"])
	wantRecovery(t, c, u, "v2", digests["v2"])
	stop(c)

	// A server that starts with the fault.
	fault = &volumeFault{}
	fault.begin(err, ops...)
	c = open(fault)
	pull("warm pull after a start with the fault", "v1")
	end(c, fault)
	wantRecovery(t, c, u, "v1", digests["v1"])
	stop(c)

	// Temporary files that could not be removed on a hung volume are removed at the next start.
	c = open(&volumeFault{})
	stop(c)
	checkStore(t, c.root)

	if affected == 0 && (len(ops) > 1 || !unusedOps[ops[0]]) {
		t.Error("the fault affected no call, so the test shows nothing")
	}
}

// checkContent checks that no stored blob has another digest than its path.
func checkContent(t *testing.T, root string) {
	t.Helper()
	for _, file := range files(t, root) {
		elements := strings.Split(file, "/")
		if !strings.HasPrefix(file, "docker/registry/v2/blobs/sha256/") || elements[len(elements)-1] != "data" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Error(err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(content)); sum != elements[len(elements)-2] {
			t.Errorf("%s has the digest %s", file, sum)
		}
	}
}

// wantRecovery checks that the cache stores the image of the tag again: the third pull at the latest contacts the upstream
// only for the tag. A first pull can find links of content that the collector deletes.
func wantRecovery(t *testing.T, c *cache, u *origin, tag, digest string) {
	t.Helper()
	var diff string
	var n *node
	for range 3 {
		u.requests()
		n = &node{t: t, cache: c, up: u}
		n.pull(tag, digest)
		if diff = cmp.Diff([]string{"HEAD manifest " + tag}, u.requests()); diff == "" && len(n.refusals) == 0 {
			return
		}
		c.settle(t)
	}
	t.Errorf("the cache does not serve tag %s after the fault: %q, -want +got\n%s", tag, n.refusals, diff)
}

// TestFaultsWithContainerd pulls with the code of containerd 1.7 and 2.x while a fault affects all operations.
func TestFaultsWithContainerd(t *testing.T) {
	t.Parallel()
	for _, name := range containerdpull.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command, err := containerdpull.Build(t.Context(), name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			for name, err := range matrixFaults {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					u := newOrigin(t, upstream.Options{})
					image := u.push(t, tag, 1)
					fault := &volumeFault{}
					c := start(t, u.config(t), cacheserver.Options{Volume: matrixVolume(fault), DrainTimeout: time.Second})
					defer fault.end()
					pull := func(step string) {
						t.Helper()
						began := time.Now()
						report := containerd{command}.pull(t, containerdpull.Options{Reference: reference(":" + tag), Hosts: u.hosts(t, c.url()), Clients: 3})
						wantPulled(t, report, digestOf(t, image), image)
						if took := time.Since(began); took > 30*time.Second {
							t.Errorf("%s: %s", step, took)
						}
					}
					fault.begin(err, volume.Ops()...)
					pull("cold pull with the fault")
					if fault.end() == 0 {
						t.Error("the fault affected no call, so the test shows nothing")
					}
					eventually(t, "the volume is usable", func() bool { return c.metric(t, `registry_cache_volume_state{state="ok"}`) == 1 })
					pull("pull after the fault")
					c.settle(t)
					fault.begin(err, volume.Ops()...)
					pull("warm pull with the fault")
				})
			}
		})
	}
}

// TestHangWhileSending hangs a volume while it delivers a blob to a client: a stored one, and one that is being downloaded,
// over http (sendfile) and https. The response continues, or ends with fewer bytes than announced. Then the rest is
// available from byte to byte. If only reads hang, the kernel sends new bytes of a download when the volume is not known to
// be hung.
func TestHangWhileSending(t *testing.T) {
	t.Parallel()
	starts := map[string]func(testing.TB, config.Config, cacheserver.Options) *cache{"http": start, "https": startTLS}
	for i, ops := range [][]volume.Op{volume.Ops(), {volume.OpRead}, volume.Ops(), {volume.OpRead}} {
		stored := i < 2
		for scheme, start := range starts {
			t.Run(fmt.Sprintf("stored=%t/%s/%d operations", stored, scheme, len(ops)), func(t *testing.T) {
				t.Parallel()
				u := newOrigin(t, upstream.Options{})
				image, err := images.Generate(images.Spec{Seed: 1, LayerSizes: []int64{16 << 20}}) // more than the buffers of the connections
				if err != nil {
					t.Fatal(err)
				}
				if err := u.Push(t.Context(), "docker.io/"+repository+":"+tag, image); err != nil {
					t.Fatal(err)
				}
				digests, contents := layers(t, image)
				fault := &volumeFault{}
				c := start(t, u.config(t), cacheserver.Options{Volume: matrixVolume(fault), DrainTimeout: time.Second})
				defer fault.end()
				if stored {
					if err := c.pull(t.Context(), tag); err != nil {
						t.Fatal(err)
					}
					c.settle(t)
				} else {
					u.shape(t, 4<<20) // so that the download does not end before the hang
				}
				testHangWhileSending(t, c, u, func() { fault.begin(nil, ops...) }, digests[0], contents[0])
			})
		}
	}
}

func testHangWhileSending(t *testing.T, c *cache, u *origin, hang func(), digest string, content []byte) {
	t.Helper()
	resp := c.open(t, "GET", "blobs/"+digest)
	defer resp.Body.Close()
	body := io.Reader(resp.Body)
	first := make([]byte, 64<<10)
	if _, err := io.ReadFull(body, first); err != nil {
		t.Fatal(err)
	}
	hang()
	u.shape(t, 0)
	rest := make(chan []byte, 1)
	go func() {
		got, err := io.ReadAll(body)
		if err == nil && len(first)+len(got) < len(content) {
			t.Errorf("%d of %d bytes look complete", len(first)+len(got), len(content))
		}
		rest <- got
	}()
	var got []byte
	select {
	case body := <-rest:
		got = slices.Concat(first, body)
	case <-time.After(2*matrixTimeout + 4*time.Second): // the guard of a file checks twice, after the deadline and one second later
		t.Fatal("the response is silent while the volume is hung")
	}
	if !bytes.HasPrefix(content, got) {
		t.Fatal("wrong bytes")
	}
	n := &node{t: t, cache: c, up: u}
	if body := n.content("blobs/"+digest, digest); !bytes.Equal(body, content) {
		t.Error("wrong bytes after the hang")
	}
}
