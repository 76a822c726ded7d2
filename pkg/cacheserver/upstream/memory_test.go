// SPDX-License-Identifier: Apache-2.0

// The race detector needs memory of its own, so "make test" runs these tests without it.
//go:build !race

package upstream_test

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/oci"
)

// Concurrent large lists of tags need little more memory than their text. The test does not run in parallel with other
// tests, because the whole heap is measured.
func TestLargeTagListsNeedLittleMemory(t *testing.T) {
	// The text is 96 MiB. limit has room for garbage: its amount depends on the speed of the machine.
	const parallel, limit, keptLimit = 24, 200 << 20, 100 << 20
	body := []byte(`{"tags":[` + strings.Repeat(`"v1.2.3",`, oci.MaxManifestSize/9-4) + `"v1.2.4"]}`)
	r := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	client := r.client(t, upstream.Options{AnswerTimeout: time.Minute, HeaderTimeout: contract.MaxAnswerTime})
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	before := heapSize()
	stop, peak := make(chan struct{}), make(chan uint64)
	go sampleHeap(stop, peak)
	lists := make(chan *upstream.TagPage, parallel) // keeps the lists in memory like slow clients
	var clients sync.WaitGroup
	for range parallel {
		clients.Go(func() {
			page, err := client.Tags(t.Context(), repository, nil)
			if err != nil {
				t.Error(err)
			}
			lists <- page
		})
	}
	clients.Wait()
	close(stop)
	needed := <-peak - before
	runtime.GC()
	kept := heapSize() - before
	t.Logf("%d lists need %d MiB, and keep %d MiB", len(lists), needed>>20, kept>>20)
	if kept > keptLimit {
		t.Errorf("%d lists keep %d MiB, at most %d MiB are allowed", parallel, kept>>20, keptLimit>>20)
	}
	if needed > limit {
		t.Errorf("%d lists need %d MiB, at most %d MiB are allowed", parallel, needed>>20, limit>>20)
	}
	runtime.KeepAlive(lists)
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
