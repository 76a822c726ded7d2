// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/store/layout"
)

// benchObjects is small enough to be made in a second; the costs grow with it.
const benchObjects = 2_000

// lay makes a volume with n blobs in some repositories.
func lay(b *testing.B, root string, n int) {
	b.Helper()
	l := layout.Root(root)
	for i := range n {
		d := digest.FromString(fmt.Sprint(i))
		for path, content := range map[string]string{
			l.Data(d): "x",
			l.Link(evict.Link{Kind: evict.Layer, Repository: fmt.Sprintf("library/image-%d", i%100)}, d): d.String(),
		} {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				b.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkIndex(b *testing.B) {
	root := b.TempDir()
	lay(b, root, benchObjects)
	for b.Loop() {
		s := open(b, root, setup{limits: week})
		if !s.buildIndex(b.Context()) {
			b.Fatal("the volume was not indexed")
		}
		if got := len(s.index.Records()); got != benchObjects {
			b.Fatalf("%d objects", got)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchObjects, "ns/object")
}

// BenchmarkReadWhileEvicting opens one blob again and again while all others are deleted.
func BenchmarkReadWhileEvicting(b *testing.B) {
	for _, evicting := range []bool{false, true} {
		b.Run(fmt.Sprintf("evicting=%t", evicting), func(b *testing.B) {
			root := b.TempDir()
			lay(b, root, benchObjects)
			s := open(b, root, setup{limits: week})
			if !s.buildIndex(b.Context()) {
				b.Fatal("the volume was not indexed")
			}
			read, err := s.Blob("library/image-0", digest.FromString("0"))
			if err != nil {
				b.Fatal(err)
			}
			defer read.Close()
			done := make(chan int64, 1)
			if evicting {
				go func() { done <- s.evictor.evict(b.Context(), time.Now, evict.Need{Bytes: benchObjects}) }()
			}
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				f, err := s.Blob("library/image-0", digest.FromString("0"))
				if err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				if evicting && len(done) > 0 {
					evicting = false
					b.Logf("all was deleted after %d reads", len(took))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
			b.ReportMetric(float64(took[len(took)-1].Nanoseconds()), "max-ns")
		})
	}
}
