// SPDX-License-Identifier: Apache-2.0

// The race detector needs memory of its own, so "make test" runs these tests without it.
//go:build !race

package manifests

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/oci"
)

// C1: concurrent large manifests need little more memory than their content. The test does not run in parallel with other
// tests, because the whole heap is measured.
func TestLargeManifestsNeedLittleMemory(t *testing.T) {
	const parallel, limit = 24, 150 << 20
	f := newFixture(t, forEver, store.Options{})
	var references []oci.Reference
	for i := range parallel {
		prefix, suffix := `{"schemaVersion":2,"config":{"digest":"`+oldDigest.String()+`"},"layers":[`, `{}]}`
		elements := (oci.MaxManifestSize-len(prefix)-len(suffix))/3 - i
		content := prefix + strings.Repeat("{},", elements) + suffix
		references = append(references, oci.Reference{Digest: f.upstream.addManifest(repository, "v1", content)})
	}
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	before := heapSize()
	peak := make(chan uint64)
	stop := make(chan struct{})
	go sampleHeap(stop, peak)
	answers := make(chan *Manifest, parallel)
	var clients sync.WaitGroup
	for _, ref := range references {
		clients.Go(func() {
			found, err := f.Get(t.Context(), repository, ref)
			if err != nil || digest.FromBytes(found.Content) != ref.Digest {
				t.Errorf("%s: %v", ref, err)
			}
			answers <- found // keeps the content in memory like a slow client
		})
	}
	clients.Wait()
	close(stop)
	needed := <-peak - before
	t.Logf("%d manifests need %d MiB", len(answers), needed>>20)
	if needed > limit {
		t.Errorf("%d manifests need %d MiB, at most %d MiB are allowed", parallel, needed>>20, limit>>20)
	}
}

// sampleHeap sends the largest size of the heap until stop is closed, in bytes.
func sampleHeap(stop <-chan struct{}, peak chan<- uint64) {
	sample := time.NewTicker(time.Millisecond)
	defer sample.Stop()
	highest := heapSize()
	for {
		select {
		case <-stop:
			peak <- highest
			return
		case <-sample.C:
			highest = max(highest, heapSize())
		}
	}
}

func heapSize() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
