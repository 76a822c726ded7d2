// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// volumeFault injects one fault into operations of a volume.
type volumeFault struct {
	mu      sync.Mutex // guards the following fields
	ops     map[volume.Op]bool
	err     error
	blocked chan struct{} // nil: the operations return err
	hits    int
}

// inject is volume.Options.Fault.
func (f *volumeFault) inject(op volume.Op, _ string) error {
	f.mu.Lock()
	if !f.ops[op] {
		f.mu.Unlock()
		return nil
	}
	f.hits++
	err, blocked := f.err, f.blocked
	f.mu.Unlock()
	if blocked != nil {
		<-blocked
		return nil
	}
	return err
}

// begin lets the operations return err, or block if err is nil.
func (f *volumeFault) begin(err error, ops ...volume.Op) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops, f.err, f.blocked, f.hits = map[volume.Op]bool{}, err, nil, 0
	for _, op := range ops {
		f.ops[op] = true
	}
	if err == nil {
		f.blocked = make(chan struct{})
	}
}

// end ends the fault. It returns the number of calls that the fault affected.
func (f *volumeFault) end() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = nil
	if f.blocked != nil {
		close(f.blocked)
		f.blocked = nil
	}
	return f.hits
}

// ping returns the status of the base endpoint.
func (c *cache) ping(t *testing.T) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.Address()+"/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

func (c *cache) volumeState(t *testing.T) contract.VolumeState {
	t.Helper()
	state, err := contract.DecodeVolumeState(c.debug(t, "/volume").body)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// A file that the cache cannot use is reported, and does not prevent requests.
func TestVolumeProblems(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	cfg := u.config(t)
	const path = "registry-cache/notes.txt"
	if err := os.MkdirAll(filepath.Join(cfg.Storage.Root, "registry-cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Storage.Root, path), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := start(t, cfg, cacheserver.Options{})
	got := c.volumeState(t)
	if got.State != contract.VolumeOK || len(got.Problems) != 1 || got.Problems[0].Path != path || got.Problems[0].Message == "" {
		t.Errorf("got %+v", got)
	}
	if n := c.metric(t, "registry_cache_volume_problems"); n != 1 {
		t.Errorf("metric: %v", n)
	}
	if status := c.debug(t, "/readyz").status; status != 200 {
		t.Errorf("ready: %d", status)
	}
}

// A hung volume without any traffic is detected within 5 s with the default limits: nodes and the Service stop using the
// cache. The recovery is detected as fast.
func TestHungVolumeIsDetected(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	fault := &volumeFault{}
	c := start(t, u.config(t), cacheserver.Options{Volume: volume.Options{Fault: fault.inject}})
	defer fault.end()
	states := func() (got [3]int) {
		got[0], got[1] = c.ping(t), c.debug(t, "/readyz").status
		if c.metric(t, `registry_cache_volume_state{state="hung"}`) == 1 {
			got[2] = 1
		}
		return got
	}
	if got := states(); got != [3]int{200, 200, 0} {
		t.Fatalf("before the hang: %v", got)
	}
	for range 2 {
		fault.begin(nil, volume.Ops()...)
		began := time.Now()
		eventually(t, "the hang is detected", func() bool { return states() == [3]int{503, 503, 1} })
		if took := time.Since(began); took > 5*time.Second+slack {
			t.Errorf("the hang was detected after %s", took)
		}
		if got := c.volumeState(t); got.State != contract.VolumeHung || got.Reason != contract.ReasonNoResponse || got.Message == "" || time.Since(got.Since) > time.Minute {
			t.Errorf("got %+v", got)
		}
		if got := c.debug(t, "/healthz").status; got != 200 {
			t.Errorf("a restart of the process does not help, but /healthz answers %d", got)
		}
		fault.end()
		began = time.Now()
		eventually(t, "the recovery is detected", func() bool { return states() == [3]int{200, 200, 0} })
		if took := time.Since(began); took > 5*time.Second+slack {
			t.Errorf("the recovery was detected after %s", took)
		}
		if got := c.volumeState(t); got.State != contract.VolumeOK || got.Reason != contract.ReasonUsable || got.Message != "" {
			t.Errorf("got %+v", got)
		}
	}
	if log := c.log.String(); !strings.Contains(log, `"state":"hung"`) || !strings.Contains(log, `"msg":"Volume is usable again"`) {
		t.Errorf("the log does not contain the changes of the state:\n%s", log)
	}
}

// slack is the additional time that a busy test machine needs.
const slack = time.Second
