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
	"syscall"
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
	// fails lets each read of the volume fail with EIO, except reads of links: without its link, no content is found.
	fails atomic.Bool
	// shortage lets reads of the layer fail with ENOMEM. slowClose lets each close of stored content take a second.
	shortage, slowClose atomic.Bool
	// opens and reads count the calls for stored content.
	opens, reads atomic.Int64
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
	content := strings.HasSuffix(path, "/data")
	switch {
	case op == volume.OpOpen && content:
		r.opens.Add(1)
	case op == volume.OpRead && content:
		r.reads.Add(1)
	case op == volume.OpClose && content && r.slowClose.Load():
		time.Sleep(time.Second)
	}
	if op == volume.OpRead && path == r.root.Data(layerDigest) && r.shortage.Load() {
		return syscall.ENOMEM
	}
	if op == volume.OpRead && !strings.HasSuffix(path, "/link") && r.fails.Load() {
		return syscall.EIO
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

// suspect opens the layer for some clients, whose reads fail at the same time.
func (r *rig) suspect(t *testing.T, clients int) {
	t.Helper()
	var opened []Blob
	for range clients {
		b, err := r.Open(t.Context(), repository, layerDigest, download.Part{})
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, b)
	}
	r.fails.Store(true)
	r.opens.Store(0)
	for _, b := range opened {
		if b.Outcome() != result.Hit {
			t.Errorf("outcome %s", b.Outcome())
		}
		_, err := b.Read(make([]byte, 1))
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("read: %v", err)
		}
		r.Unreadable(b, err)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
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

// Many clients of one blob find out at the same time that it cannot be read. It is examined once, because each examination reads
// all of it, and intact content is served again after the volume has recovered.
func TestUnreadableBlobIsExaminedOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		outage time.Duration
		opens  int64 // at most: one for each attempt of the examination
	}{
		"short outage":      {2 * time.Second, 1},
		"outage of minutes": {3 * time.Minute, 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Options{})
				r.put(t, layer)
				r.suspect(t, 20)
				opens := r.opens.Load()
				if got := r.outcome(t); got != result.Miss {
					t.Errorf("outcome %s during the examination", got)
				}
				r.opens.Store(0)
				time.Sleep(test.outage)
				r.fails.Store(false)
				r.group.Wait()
				if opens += r.opens.Load(); opens < 1 || opens > test.opens {
					t.Errorf("the file was opened %d times, want at most %d", opens, test.opens)
				}
				if got := r.outcome(t); got != result.Hit {
					t.Errorf("outcome %s after the volume has recovered", got)
				}
			})
		})
	}
}

// Content that was found to be intact by others during a pause of its examination is served at once, and is not read again.
func TestVerificationDuringExamination(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, layer)
		other, err := r.store.Content(layerDigest)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		r.suspect(t, 1)
		// The examination waits 5 s for the volume, and a second until its next attempt.
		time.Sleep(5500 * time.Millisecond)
		r.fails.Store(false)
		synctest.Wait()
		if got := r.outcome(t); got != result.Miss {
			t.Fatalf("outcome %s before the verification", got)
		}
		if intact, err := r.store.Verify(t.Context(), other, layerDigest, func() {}); !intact || err != nil {
			t.Fatalf("intact %t, %v", intact, err)
		}
		if got := r.outcome(t); got != result.Hit {
			t.Errorf("outcome %s after the verification", got)
		}
		r.opens.Store(0)
		r.reads.Store(0)
		r.group.Wait()
		if opens, reads := r.opens.Load(), r.reads.Load(); opens != 1 || reads != 0 {
			t.Errorf("the next attempt opens the file %d times and reads %d times, want once and never", opens, reads)
		}
		if got := r.outcome(t); got != result.Hit {
			t.Errorf("outcome %s after the examination", got)
		}
	})
}

// Content whose read has failed, and that is corrupt, is deleted.
func TestUnreadableBlobIsCorrupt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, strings.ToUpper(layer))
		r.suspect(t, 2)
		r.fails.Store(false)
		r.group.Wait()
		if _, err := os.Stat(r.root.Data(layerDigest)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the corrupt file: %v", err)
		}
		if got := r.outcome(t); got != result.Miss {
			t.Errorf("outcome %s", got)
		}
	})
}

// A read that fails when the examination of another one has just found the file to be intact leads to a second examination.
func TestReadFailsAtTheEndOfAnExamination(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, layer)
		late, err := r.Open(t.Context(), repository, layerDigest, download.Part{})
		if err != nil {
			t.Fatal(err)
		}
		r.suspect(t, 1)
		r.slowClose.Store(true)
		r.fails.Store(false)
		for began := time.Now(); r.store.Withholds(layerDigest); time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				t.Fatal("the examination has no result")
			}
		}
		r.Unreadable(late, syscall.EIO) // while the first examination closes the file
		if !r.store.Withholds(layerDigest) {
			t.Fatal("the file is served before the second examination")
		}
		if err := late.Close(); err != nil {
			t.Error(err)
		}
		r.group.Wait()
		if got := r.outcome(t); got != result.Hit {
			t.Errorf("outcome %s", got)
		}
	})
}

// An examination that has no result does not delay those of other files.
func TestExaminationsDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		r.put(t, layer)
		const other = "another layer"
		otherDigest := digest.FromString(other)
		if err := r.store.PutManifest(repository, otherDigest, []byte(other)); err != nil {
			t.Fatal(err)
		}
		r.shortage.Store(true)
		for _, d := range []digest.Digest{layerDigest, otherDigest} {
			content, err := r.store.Content(d)
			if err != nil {
				t.Fatal(err)
			}
			r.Unreadable(&stored{Content: content}, syscall.EIO)
			if err := content.Close(); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(30 * time.Second)
		if r.store.Withholds(otherDigest) {
			t.Error("the other file is not served")
		}
		if !r.store.Withholds(layerDigest) {
			t.Error("the file that cannot be read is served")
		}
	})
}
