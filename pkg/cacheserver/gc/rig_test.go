// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
)

const (
	repository = "library/alpine"
	// The digests are those that sha256sum prints, so that the paths are known without this package.
	layer       = "some layer"
	layerHex    = "5cb8e097b28516b26c62e2cfe12a906c65b9e06ab52e65f1f2485d5ee696fde2"
	manifest    = `{"schemaVersion":2}`
	manifestHex = "bafebd36189ad3688b7b3915ea55d461e0bfcfbdde11e54b0a123999fb6be50f"

	layerDigest    = digest.Digest("sha256:" + layerHex)
	manifestDigest = digest.Digest("sha256:" + manifestHex)

	layerFile    = "docker/registry/v2/blobs/sha256/5c/" + layerHex + "/data"
	layerLink    = "docker/registry/v2/repositories/library/alpine/_layers/sha256/" + layerHex + "/link"
	manifestFile = "docker/registry/v2/blobs/sha256/ba/" + manifestHex + "/data"
	revisionLink = "docker/registry/v2/repositories/library/alpine/_manifests/revisions/sha256/" + manifestHex + "/link"
	tagLink      = "docker/registry/v2/repositories/library/alpine/_manifests/tags/3.13.2/current/link"
	tagIndexLink = "docker/registry/v2/repositories/library/alpine/_manifests/tags/3.13.2/index/sha256/" + manifestHex + "/link"
)

const (
	usesFile  = "registry-cache/last-use"
	stateFile = "scheduler-state.json"
)

// day is the unit of these tests. It is short because the checks of a collector during that time are executed.
const day = 5 * time.Minute

var week = evict.Limits{TTL: 7 * day, HighWatermark: 90, LowWatermark: 80}

// setup are the options of a rig.
type setup struct {
	limits     evict.Limits
	fault      volumetest.Fault
	monitored  bool // the health of the volume is monitored
	fileSystem func() (Space, error)
	wall       func() time.Time
	built      time.Time
	size       func() int64
}

// rig is a store with a collector.
type rig struct {
	*store.Store
	*Collector
	layout layout.Root
}

func open(t testing.TB, root string, o setup) *rig {
	t.Helper()
	newVolume := volumetest.New
	if o.monitored {
		newVolume = volumetest.Monitored
	}
	s, err := store.Open(root, store.Options{Volume: newVolume(t, o.fault), Policy: evict.NewLRU(o.limits.TTL)})
	if err != nil {
		t.Fatal(err)
	}
	c := New(s, Options{Limits: o.limits, FileSystem: o.fileSystem, Wall: o.wall, Built: o.built, Size: o.size})
	return &rig{s, c, layout.Root(root)}
}

// run runs the collector in a bubble of synctest until the returned function is called.
func run(t *testing.T, r *rig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	synctest.Wait()
	return func() {
		cancel()
		<-done
	}
}

// fakeVolume has the usage that a test sets, plus the content below its root.
type fakeVolume struct {
	root  string
	limit atomic.Int64
	extra atomic.Int64 // used by other files
}

func newFakeVolume(root string, limit int64) *fakeVolume {
	v := &fakeVolume{root: root}
	v.limit.Store(limit)
	return v
}

func (v *fakeVolume) measure() (Space, error) {
	used := v.extra.Load()
	paths, err := filepath.Glob(filepath.Join(v.root, "docker/registry/v2/blobs/sha256/*/*/data"))
	for _, path := range paths {
		info, statErr := os.Stat(path)
		if statErr != nil {
			return Space{}, statErr
		}
		used += info.Size()
	}
	return Space{Bytes: evict.Amount{Used: used, Limit: v.limit.Load()}}, err
}

// sized stores content of a size, in bytes, with a link in the repository, and returns its digest.
func sized(t *testing.T, s *rig, seed, size int) digest.Digest {
	t.Helper()
	number := strconv.Itoa(seed)
	content := []byte(strings.Repeat(" ", size-len(number)) + number)
	d := digest.FromBytes(content)
	p, _, err := s.Receive(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Commit(d, int64(len(content)), []string{repository}), p.Close()); err != nil {
		t.Fatal(err)
	}
	return d
}

// has reports whether the content and its link in the repository exist.
func has(t *testing.T, s *rig, d digest.Digest) bool {
	t.Helper()
	_, dataErr := os.Stat(s.layout.Data(d))
	_, linkErr := os.Stat(s.layout.Link(evict.Link{Kind: evict.Layer, Repository: repository}, d))
	if (dataErr == nil) != (linkErr == nil) {
		t.Errorf("%s: content %v, link %v", d, dataErr, linkErr)
	}
	return dataErr == nil
}

func use(t *testing.T, s *rig, d digest.Digest) {
	t.Helper()
	c, err := s.Blob(repository, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, s *rig, repositories ...string) {
	t.Helper()
	if err := tryCommit(s, repositories...); err != nil {
		t.Error(err)
	}
}

func tryCommit(s *rig, repositories ...string) (err error) {
	p, _, err := s.Receive(layerDigest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Discard(), p.Close()) }()
	if _, err := p.WriteAt([]byte(layer[:4]), 0); err != nil {
		return err
	}
	if _, err := p.WriteAt([]byte(layer[4:]), 4); err != nil {
		return err
	}
	return p.Commit(layerDigest, int64(len(layer)), repositories)
}

func readBlob(t *testing.T, s *rig, repository string) string {
	t.Helper()
	f, err := s.Blob(repository, layerDigest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func write(t *testing.T, root, path, content string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// files returns the content of all files below root by their path in it.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		relative, relErr := filepath.Rel(root, path)
		found[relative] = string(content)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
