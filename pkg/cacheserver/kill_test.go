// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

const (
	// killsVariable is how often TestKilledAtAnyMoment kills, killSeedVariable repeats the choices of an earlier run.
	killsVariable, killSeedVariable = "REGISTRY_CACHE_KILLS", "REGISTRY_CACHE_KILL_SEED"
	defaultKills                    = 20
	herdSize                        = 6
)

// herd is the content that the clients request, and the responses.
type herd struct {
	wanted []served
	moving []served // the digests that the moving tag has named, the current one last

	complete, broken, refused, bytes atomic.Int64
	failures                         lockedBuffer
}

// round is the life of one server.
type round struct {
	*herd
	address string
	// cut reports that the upstream refuses all requests.
	cut bool
	// killed is set before the server is killed: from then on answers may break off.
	killed    atomic.Bool
	transport *http.Transport
}

func (r *round) fail(format string, arguments ...any) {
	fmt.Fprintf(&r.failures, format+"\n", arguments...)
}

// pull sends requests until the server is killed.
func (r *round) pull(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil && !r.killed.Load() {
		if random.IntN(8) == 0 {
			r.ask(ctx, "GET", served{repository + "/manifests/moving", nil}, "")
			continue
		}
		one := r.wanted[random.IntN(len(r.wanted))]
		method, byteRange := "GET", ""
		switch size := len(one.body); {
		case strings.Contains(one.path, "/manifests/") && random.IntN(2) == 0:
			method = "HEAD"
		case strings.Contains(one.path, "/blobs/") && random.IntN(3) == 0:
			first := random.IntN(size)
			byteRange = fmt.Sprintf("bytes=%d-%d", first, first+random.IntN(size-first))
		}
		r.ask(ctx, method, one, byteRange)
	}
}

// ask makes one request and checks the answer. A body of nil stands for the tag that moves.
func (r *round) ask(ctx context.Context, method string, want served, byteRange string) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.address+"/v2/"+want.path, nil)
	if err != nil {
		r.fail("%v", err)
		return
	}
	wantStatus, body := http.StatusOK, want.body
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
		var first, last int
		if _, err := fmt.Sscanf(byteRange, "bytes=%d-%d", &first, &last); err != nil {
			r.fail("%v", err)
		}
		wantStatus, body = http.StatusPartialContent, body[first:last+1]
	}
	resp, err := r.transport.RoundTrip(req)
	if err != nil {
		if !r.killed.Load() {
			r.fail("%s %s: %v before the kill", method, want.path, err)
		}
		r.broken.Add(1)
		return
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if resp.StatusCode != wantStatus {
		// Clients fall back to the upstream then.
		if resp.StatusCode < 500 || !r.cut && !r.killed.Load() {
			r.fail("%s %s %s: status %d, cut off %t: %s", method, want.path, byteRange, resp.StatusCode, r.cut, got)
		}
		r.refused.Add(1)
		return
	}
	if want.body == nil {
		for _, named := range r.moving {
			if resp.Header.Get("Docker-Content-Digest") == strings.TrimPrefix(named.path, repository+"/manifests/") {
				body = named.body
			}
		}
		if current := r.moving[len(r.moving)-1].body; body == nil || !r.cut && !bytes.Equal(body, current) {
			r.fail("the tag that moves names %s", resp.Header.Get("Docker-Content-Digest"))
			return
		}
	}
	if length := resp.Header.Get("Content-Length"); length != itoa(len(body)) {
		r.fail("%s %s %s: Content-Length %q, want %d", method, want.path, byteRange, length, len(body))
	}
	if method == http.MethodHead {
		body = nil
	}
	switch {
	case err == nil && bytes.Equal(got, body):
		r.complete.Add(1)
		r.bytes.Add(int64(len(got)))
	case err == nil:
		r.fail("%s %s %s: %d bytes that are wrong look complete", method, want.path, byteRange, len(got))
	case !r.killed.Load():
		r.fail("%s %s %s: broke off before the kill: %v", method, want.path, byteRange, err)
	case len(got) >= len(body) || !bytes.Equal(got, body[:len(got)]):
		r.fail("%s %s %s: %d wrong bytes before it broke off", method, want.path, byteRange, len(got))
	default:
		r.broken.Add(1)
	}
}

// TestKilledAtAnyMoment kills the server again and again while clients pull more than the volume holds, and looks at
// every byte that they receive, and at the files on the volume in the end. For more than 20 kills:
//
//	REGISTRY_CACHE_KILLS=200 go test -run TestKilledAtAnyMoment -v ./pkg/cacheserver
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	kills, err := strconv.Atoi(os.Getenv(killsVariable))
	if err != nil {
		kills = defaultKills
	}
	seed, err := strconv.ParseUint(os.Getenv(killSeedVariable), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("to repeat the choices: %s=%d", killSeedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 0))

	u := newOrigin(t, upstream.Options{})
	h := &herd{}
	h.wanted = fillUpstream(t, u)
	// 22 MiB for a volume of 16.
	for n := range uint64(14) {
		name := fmt.Sprintf("image-%d", n)
		h.wanted = append(h.wanted, contentOf(t, repository, name, u.push(t, name, 10+n))...)
	}
	// Slow enough for kills to meet transfers.
	if err := u.Shape(upstream.Shaping{Latency: time.Millisecond, BytesPerSecond: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	cfg := u.config(t)
	cfg.GarbageCollection.TTL = config.Duration(3 * time.Second)
	if err := limit(t, cfg.Storage.Root, "16m"); err != nil {
		t.Logf("without a small volume only the TTL deletes something: %v", err)
	}
	file := writeConfig(t, cfg)

	began := time.Now()
	deletions, leftovers := 0, 0
	var slowest time.Duration
	for n := range kills {
		if n%5 == 0 {
			image := u.push(t, "moving", 100+uint64(n))
			h.moving = append(h.moving, contentOf(t, repository, "", image)[0])
		}
		cut := random.IntN(5) == 0
		if cut {
			u.cutOff()
		} else {
			u.inject(nil)
		}
		started := time.Now()
		p := launch(t, file)
		if random.IntN(8) == 0 {
			// Before it serves, or just then.
			pause(t.Context(), time.Duration(random.Int64N(int64(50*time.Millisecond))))
			p.kill(t)
			leftovers += wantOnlyLeftovers(t, cfg.Storage.Root)
			continue
		}
		p.listening(t)
		r := &round{herd: h, address: p.address, cut: cut, transport: &http.Transport{MaxIdleConnsPerHost: herdSize}}
		if resp := get(t, p.address, ""); resp.status != 200 {
			t.Fatalf("start %d: /v2/: %d", n, resp.status)
		}
		slowest = max(slowest, time.Since(started))
		var clients sync.WaitGroup
		for range herdSize {
			own := rand.New(rand.NewPCG(random.Uint64(), 0))
			clients.Go(func() { r.pull(t.Context(), own) })
		}
		pause(t.Context(), time.Duration(random.Int64N(int64(300*time.Millisecond))))
		r.killed.Store(true)
		p.kill(t)
		clients.Wait()
		r.transport.CloseIdleConnections()
		leftovers += wantOnlyLeftovers(t, cfg.Storage.Root)
		deletions += strings.Count(p.log.String(), `"msg":"Deleted objects"`)
		if failures := h.failures.String(); failures != "" {
			t.Fatalf("life %d:\n%s\n%s", n, failures, p.log)
		}
	}
	t.Logf("%d kills in %v; %d answers with %d MiB complete, %d broken off, %d refused; %d times something was deleted; %d leftovers; slowest start %v",
		kills, time.Since(began).Round(time.Second), h.complete.Load(), h.bytes.Load()>>20, h.broken.Load(), h.refused.Load(), deletions, leftovers, slowest)
	if h.complete.Load() == 0 || h.broken.Load() == 0 {
		t.Error("so this shows little")
	}

	u.inject(nil)
	cfg.GarbageCollection.TTL = config.Duration(time.Hour)
	c := start(t, cfg, cacheserver.Options{})
	c.indexed(t)
	eventually(t, "the volume is as it should be", func() bool { return len(inconsistencies(t, cfg.Storage.Root)) == 0 })
	wantServed(t, "after all kills", c.Address(), h.wanted)
	// There may be no space for the link of content that was stored last.
	c.settle(t)
	eventually(t, "the volume is as it should be again", func() bool { return len(inconsistencies(t, cfg.Storage.Root)) == 0 })
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if left := inconsistencies(t, cfg.Storage.Root); len(left) > 0 {
		t.Errorf("the volume is not as it should be:\n%s", strings.Join(left, "\n"))
	}
}

// wantOnlyLeftovers examines the volume of a killed server, and returns the number of unusable files: unfinished files, and
// content that was not linked yet or no longer. No link may name missing content.
func wantOnlyLeftovers(t *testing.T, root string) int {
	t.Helper()
	complaints := inconsistencies(t, root)
	for _, complaint := range complaints {
		if !strings.HasPrefix(complaint, "nothing needs registry-cache/partial/") && !strings.HasPrefix(complaint, "no repository has ") {
			t.Errorf("after a kill: %s", complaint)
		}
	}
	return len(complaints)
}

// pause lets others go on for a while.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
