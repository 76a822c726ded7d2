// SPDX-License-Identifier: Apache-2.0

// The race detector needs memory of its own, so "make test" runs these tests without it.
//go:build !race

package oci

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"
)

// peakHeap returns the largest increase of the heap, in bytes, while f runs. The collector runs often, so that the heap
// contains little garbage.
func peakHeap(f func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(25))
	runtime.GC()
	before := heapSize()
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		highest := before
		sample := time.NewTicker(time.Millisecond)
		defer sample.Stop()
		for {
			highest = max(highest, heapSize())
			select {
			case <-stop:
				peak <- highest
				return
			case <-sample.C:
			}
		}
	}()
	f()
	close(stop)
	return <-peak - before
}

func heapSize() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// Documents of 4 MiB with as many elements as possible need at most twice their size.
// They do not run in parallel with other tests, because the whole heap is measured.
func TestLargeDocumentsNeedLittleMemory(t *testing.T) {
	const parallel, limit = 24, 2 * 24 * MaxManifestSize
	fill := func(prefix, element, suffix string) []byte {
		n := (MaxManifestSize - len(prefix) - len(suffix)) / (len(element) + 1)
		return []byte(prefix + strings.TrimSuffix(strings.Repeat(element+",", n), ",") + suffix)
	}
	manifest := `{"schemaVersion":2,"config":{"digest":"` + someDigest + `"},"layers":[`
	for name, document := range map[string]struct {
		content []byte
		parse   func([]byte) any
	}{
		"layers without a digest": {fill(manifest, `{}`, `]}`), references},
		"real layers":             {fill(manifest, `{"mediaType":"application/vnd.oci.empty.v1+json","digest":"`+otherDigest+`","size":2}`, `]}`), references},
		"features of a platform":  {fill(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","platform":{"os.features":[`, `""`, `]}}]}`), references},
		"empty tags":              {fill(`{"tags":[`, `""`, `]}`), tags},
		"short tags":              {fill(`{"tags":[`, `"v1.2.3"`, `]}`), tags},
		"another field":           {fill(`{"tags":[],"other":[`, `""`, `]}`), tags},
	} {
		got := peakHeap(func() {
			results := make(chan any, parallel)
			var parsers sync.WaitGroup
			for range parallel {
				parsers.Go(func() {
					results <- document.parse(document.content)
				})
			}
			parsers.Wait()
		})
		t.Logf("%s: %d KiB", name, got>>10)
		if got > limit {
			t.Errorf("%s: %d parsers need %d MiB, at most %d MiB are allowed", name, parallel, got>>20, limit>>20)
		}
	}
}

func references(content []byte) any {
	count := 0
	for _, err := range References(content) {
		if err != nil {
			return err
		}
		count++
	}
	return count
}

func tags(content []byte) any {
	list, err := ParseTags(content)
	return []any{list, err}
}
