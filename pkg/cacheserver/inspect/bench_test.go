// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/oci"
)

// -objects 100000 measures a large volume; it takes a minute to make.
var objects = flag.Int("objects", 2_000, "objects of the volume of BenchmarkInspect")

// BenchmarkInspect inspects images of one config and eight layers each, three of which all images of a repository share.
func BenchmarkInspect(b *testing.B) {
	root := b.TempDir()
	put := func(path, content string) {
		b.Helper()
		path = filepath.Join(root, "docker/registry/v2", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	stored := 0
	content := func(repository, folder, content string) descriptor {
		d := digest.FromString(content)
		path := "blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data"
		if _, err := os.Stat(filepath.Join(root, "docker/registry/v2", path)); err != nil {
			put(path, content)
			stored++
		}
		put("repositories/"+repository+"/"+folder+"/sha256/"+d.Encoded()+"/link", d.String())
		return descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(content))}
	}
	for n := 0; stored < *objects; n++ {
		repository := fmt.Sprintf("library/image-%d", n%100)
		config := content(repository, "_layers", fmt.Sprint("config ", n))
		var layers []descriptor
		for i := range 8 {
			if i < 3 {
				layers = append(layers, content(repository, "_layers", fmt.Sprint("base ", i, repository)))
			} else {
				layers = append(layers, content(repository, "_layers", fmt.Sprint("layer ", i, n)))
			}
		}
		manifest, err := json.Marshal(document{2, oci.MediaTypeManifest, &config, layers, nil})
		if err != nil {
			b.Fatal(err)
		}
		d := content(repository, "_manifests/revisions", string(manifest))
		for _, link := range []string{"current/link", "index/sha256/" + d.Digest.Encoded() + "/link"} {
			put(fmt.Sprintf("repositories/%s/_manifests/tags/v%d/%s", repository, n, link), d.Digest.String())
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		r, err := Inspect(b.Context(), root, policy, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		if r.Totals.Objects != stored || len(r.Orphans) > 0 {
			b.Fatalf("totals %+v, orphans %+v", r.Totals, r.Orphans)
		}
		var table bytes.Buffer
		if err := r.WriteTable(&table); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(stored), "ns/object")
}
