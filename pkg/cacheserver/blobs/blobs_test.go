// SPDX-License-Identifier: Apache-2.0

package blobs

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	repository = "library/alpine"
	layer      = "some layer"
)

var layerDigest = digest.FromString(layer)

// origin is an upstream with one blob in all repositories.
type origin struct{ heads, gets atomic.Int64 }

func (o *origin) HeadBlob(_ context.Context, _ string, d digest.Digest) (int64, error) {
	o.heads.Add(1)
	if d != layerDigest {
		return 0, &upstream.Error{Op: "HEAD", StatusCode: http.StatusNotFound}
	}
	return int64(len(layer)), nil
}

func (o *origin) Blob(_ context.Context, _ string, d digest.Digest, part upstream.Range) (*upstream.Blob, error) {
	o.gets.Add(1)
	if d != layerDigest {
		return nil, &upstream.Error{Op: "GET", StatusCode: http.StatusNotFound}
	}
	content := layer[part.Offset:]
	if part.End > 0 {
		content = layer[part.Offset:part.End]
	}
	body := io.NopCloser(strings.NewReader(content))
	return &upstream.Blob{ReadCloser: body, Offset: part.Offset, Size: int64(len(layer)), Ranges: true}, nil
}

// rig is a cache on an empty volume, which closes at the end of the test.
type rig struct {
	*Blobs
	origin *origin
	root   layout.Root
	reads  atomic.Int64 // of stored content
}

func newRig(t *testing.T, o Options) *rig {
	t.Helper()
	root := t.TempDir()
	r := &rig{origin: &origin{}, root: layout.Root(root)}
	s, err := store.Open(root, store.Options{Volume: volumetest.Monitored(t, r.fault)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	group := background.New()
	t.Cleanup(group.Close)
	downloads := download.New(s, r.origin, group, download.Options{ExpectedSize: o.ExpectedSize})
	r.Blobs = New(s, r.origin, downloads, group, o)
	return r
}

func (r *rig) fault(op volume.Op, path string) error {
	if op == volume.OpRead && strings.HasSuffix(path, "/data") {
		r.reads.Add(1)
	}
	return nil
}

// put stores content under the digest of the layer.
func (r *rig) put(t *testing.T, content string) {
	t.Helper()
	i, _, err := r.store.Receive(layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(i.Commit(layerDigest, int64(len(content)), []string{repository}), i.Close()); err != nil {
		t.Fatal(err)
	}
}

// outcome returns how a request for the layer would be answered.
func (r *rig) outcome(t *testing.T) result.Outcome {
	t.Helper()
	size, outcome, err := r.Stat(t.Context(), repository, layerDigest)
	if err != nil || size != int64(len(layer)) {
		t.Errorf("%d bytes, %v", size, err)
	}
	return outcome
}

func TestStat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, layer)
		for _, test := range []struct {
			name, repository string
			digest           digest.Digest
			outcome          result.Outcome
			size             int64
			found            bool
			heads            int64
		}{
			{"stored", repository, layerDigest, result.Hit, int64(len(layer)), true, 0},
			// Only the upstream knows whether the repository has it.
			{"stored for another repository", "library/debian", layerDigest, result.Miss, int64(len(layer)), true, 1},
			{"unknown", repository, digest.FromString("other"), "", 0, false, 1},
		} {
			r.origin.heads.Store(0)
			size, outcome, err := r.Stat(t.Context(), test.repository, test.digest)
			failed, fromUpstream := errors.AsType[*upstream.Error](err)
			if (err == nil) != test.found || !test.found && (!fromUpstream || !failed.NotFound()) {
				t.Errorf("%s: %v", test.name, err)
			}
			if size != test.size || outcome != test.outcome {
				t.Errorf("%s: %d bytes, %q, want %d, %q", test.name, size, outcome, test.size, test.outcome)
			}
			if got := r.origin.heads.Load(); got != test.heads {
				t.Errorf("%s: %d requests to the upstream, want %d", test.name, got, test.heads)
			}
		}
		if got := r.origin.gets.Load(); got != 0 {
			t.Errorf("%d downloads", got)
		}
	})
}

// A file that lacks bytes is replaced by a download, also if nothing else has noticed that.
func TestStoredFileOfAnotherSize(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		known  bool
		stored string
		before result.Outcome
		gets   int64
	}{
		"same size":    {true, layer, result.Hit, 0},
		"shorter":      {true, layer[:4], result.Miss, 1},
		"longer":       {true, layer + " and more", result.Miss, 1},
		"unknown size": {false, layer, result.Hit, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Options{ExpectedSize: func(digest.Digest) (int64, bool) { return int64(len(layer)), test.known }})
				r.put(t, test.stored)
				if got := r.outcome(t); got != test.before {
					t.Errorf("outcome %s, want %s", got, test.before)
				}
				b, err := r.Open(t.Context(), repository, layerDigest, download.Part{})
				if err != nil {
					t.Fatal(err)
				}
				content, err := io.ReadAll(b)
				if err := errors.Join(err, b.Close()); err != nil || string(content) != layer {
					t.Errorf("%q, %v", content, err)
				}
				r.group.Wait()
				if got := r.origin.gets.Load(); got != test.gets {
					t.Errorf("%d downloads, want %d", got, test.gets)
				}
				if got := r.outcome(t); got != result.Hit {
					t.Errorf("afterwards: outcome %s", got)
				}
			})
		})
	}
}

// Clients that pull an image continuously do not make the cache read all of it again for each of them.
func TestVerifyPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, layer)
		began := time.Now()
		for _, step := range []struct {
			at, since time.Duration
			reads     bool
		}{
			{time.Second, 0, true}, // it was never verified
			{2 * time.Second, 0, false},
			{3 * time.Second, 3 * time.Second, false},                              // within verifyPause
			{time.Second + verifyPause - 1, verifyPause, false},                    // its last moment
			{time.Second + verifyPause, verifyPause, true},                         // the next one
			{time.Minute, time.Second + verifyPause - 1, false},                    // began after since
			{2 * time.Minute, time.Second + verifyPause, true},                     // began not after since
			{2*time.Minute + verifyPause/2, 2*time.Minute + verifyPause/2, false},  // within verifyPause again
			{2*time.Minute + 2*verifyPause, 2*time.Minute + verifyPause + 1, true}, // long ago
			{2*time.Minute + 2*verifyPause, 2*time.Minute + 2*verifyPause, false},  // just now
			{2*time.Minute + 3*verifyPause - 1, 3 * time.Minute, false},            // since is in the future
			{10 * time.Minute, 2*time.Minute + 2*verifyPause - time.Second, false}, // began after since, long ago
			{10*time.Minute + time.Second, 10*time.Minute + time.Second - 1, true}, // long ago
			{10*time.Minute + 2*time.Second, 10*time.Minute + time.Second, false},  // within verifyPause once more
		} {
			time.Sleep(step.at - time.Since(began))
			r.reads.Store(0)
			if err := r.Verify(t.Context(), layerDigest, began.Add(step.since)); err != nil {
				t.Errorf("at %s: %v", step.at, err)
			}
			if got := r.reads.Load() > 0; got != step.reads {
				t.Errorf("at %s, since %s: verified %t, want %t", step.at, step.since, got, step.reads)
			}
		}
	})
}

// Content that is corrupt is deleted by the verification, and the next request downloads it again.
func TestVerifyCorruptContent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, strings.ToUpper(layer))
		if got := r.outcome(t); got != result.Hit {
			t.Fatalf("outcome %s before the verification", got)
		}
		for range 2 { // the second one finds nothing
			if err := r.Verify(t.Context(), layerDigest, time.Now()); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(r.root.Data(layerDigest)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the corrupt file: %v", err)
		}
		if got := r.outcome(t); got != result.Miss {
			t.Errorf("outcome %s", got)
		}
	})
}
