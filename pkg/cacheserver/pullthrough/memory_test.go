// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/gc"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/oci"
)

// What is remembered needs no file, counts as used, and goes with what is stored.
func TestRememberedManifest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, forEver, store.Options{Policy: evict.NewLRU(time.Hour)})
		ctx, cancel := context.WithCancel(t.Context())
		collector := gc.New(f.store, gc.Options{Limits: evict.Limits{TTL: time.Hour, HighWatermark: 90, LowWatermark: 80}})
		var collecting sync.WaitGroup
		collecting.Go(func() { collector.Run(ctx) })
		defer collecting.Wait()
		defer cancel()
		f.upstream.addManifest(repository, "v1", oldManifest)
		ref := oci.Reference{Digest: oldDigest}
		f.want(t, "cold", ref, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
		f.want(t, "warm", ref, oldManifest, result.Hit)
		data := filepath.Join(f.root, "docker/registry/v2/blobs/sha256", oldDigest.Encoded()[:2], oldDigest.Encoded(), "data")
		if err := os.WriteFile(data, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			synctestSleep(t, 50*time.Minute)
			f.want(t, "used within the TTL, with a broken file", ref, oldManifest, result.Hit)
		}
		if _, err := f.Manifest(t.Context(), "library/other", ref); !isNotFound(err) {
			t.Errorf("another repository: %v", err)
		}
		f.upstream.seen()
		synctestSleep(t, 61*time.Minute)
		if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("not deleted: %v", err)
		}
		f.want(t, "deleted", ref, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
	})
}

// synctestSleep lets time pass in the bubble, and what falls due be done.
func synctestSleep(t *testing.T, d time.Duration) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	m := newMemory()
	content := make([]byte, maxMemoryBytes/8)
	manifest := func(n int) *Manifest {
		return &Manifest{Digest: digest.FromString(strings.Repeat("x", n)), Content: content, Size: int64(len(content))}
	}
	for n := range 20 {
		m.put(repository, manifest(n))
		m.put(repository, manifest(n))
		if got := m.get(repository, manifest(n).Digest); got == nil {
			t.Fatalf("manifest %d is not remembered", n)
		}
		if m.bytes > maxMemoryBytes || m.bytes != int64(len(m.manifests)*len(content)) {
			t.Fatalf("%d manifests, %d bytes", len(m.manifests), m.bytes)
		}
	}
	for n := range 20 {
		m.remove(repository, manifest(n).Digest)
	}
	if m.bytes != 0 || len(m.manifests) != 0 {
		t.Errorf("%d manifests, %d bytes are left", len(m.manifests), m.bytes)
	}
	m.put(repository, &Manifest{Digest: digest.FromString("x"), Size: maxMemoryBytes + 1})
	if len(m.manifests) != 0 {
		t.Error("what is larger than all may be is remembered")
	}
}

// A file is not served if an image wants another size, until its digest has shown that the image is wrong.
func TestSizesOfBlobs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	content := layer(1000)
	d := f.upstream.addBlob(repository, content)
	for range 2 {
		if got, _, err := f.read(t, repository, d); err != nil || len(got) != len(content) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		f.settle()
	}
	f.upstream.seen()
	lie := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":999},"layers":[]}`, oci.MediaTypeManifest, d)
	f.want(t, "manifest", oci.Reference{Digest: f.upstream.addManifest(repository, "lie", lie)}, lie, result.Miss, "GET"+byDigest+digest.FromString(lie).String())
	for step, calls := range [][]string{{"GET" + byDigest + d.String()}, nil} {
		if got, _, err := f.read(t, repository, d); err != nil || len(got) != len(content) {
			t.Errorf("step %d: %d bytes, %v", step, len(got), err)
		}
		f.settle()
		f.wantCalls(t, fmt.Sprint("step ", step), calls...)
	}
	m := newMemory()
	for n := range 2 * maxSizes / 1000 {
		references := make([]string, 1000)
		for i := range references {
			references[i] = fmt.Sprintf(`{"digest":"sha256:%064x","size":1}`, n*1000+i)
		}
		content := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q},"layers":[%s]}`, oci.MediaTypeManifest, d, strings.Join(references, ","))
		m.put(repository, &Manifest{Digest: digest.FromString(content), Content: []byte(content), Size: int64(len(content))})
		if len(m.sizes) == 0 || len(m.sizes) > maxSizes {
			t.Fatalf("%d sizes are remembered", len(m.sizes))
		}
	}
}
