// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/gc"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	now    = time.Date(2026, 3, 8, 12, 0, 0, 0, time.UTC)
	policy = evict.Limits{TTL: 7 * 24 * time.Hour, HighWatermark: 90, LowWatermark: 80}
)

// testVolume is filled by the store.
type testVolume struct {
	t     *testing.T
	root  string
	store *store.Store
	uses  map[digest.Digest]time.Time
}

func newVolume(t *testing.T) *testVolume {
	t.Helper()
	v := &testVolume{t: t, root: t.TempDir(), uses: map[digest.Digest]time.Time{}}
	var err error
	if v.store, err = store.Open(v.root, store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.store.Close)
	return v
}

// blob stores content of the size in the repositories, last used some time ago.
func (v *testVolume) blob(name string, size int, ago time.Duration, repositories ...string) descriptor {
	v.t.Helper()
	content := bytes.Repeat([]byte(name+"\n"), size/len(name)+1)[:size]
	d := descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(content), Size: int64(size)}
	p, _, err := v.store.Receive(d.Digest)
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := p.WriteAt(content, 0); err != nil {
		v.t.Fatal(err)
	}
	if err := errors.Join(p.Commit(d.Digest, d.Size, repositories), p.Close()); err != nil {
		v.t.Fatal(err)
	}
	v.uses[d.Digest] = now.Add(-ago)
	return d
}

type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	Platform  *platform     `json:"platform,omitempty"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

// manifest stores an image in the repository, last used some time ago.
func (v *testVolume) manifest(repository string, ago time.Duration, config descriptor, layers ...descriptor) descriptor {
	v.t.Helper()
	return v.put(repository, ago, document{2, oci.MediaTypeManifest, &config, layers, nil})
}

func (v *testVolume) index(repository string, ago time.Duration, manifests ...descriptor) descriptor {
	v.t.Helper()
	return v.put(repository, ago, document{2, oci.MediaTypeIndex, nil, nil, manifests})
}

func (v *testVolume) put(repository string, ago time.Duration, content document) descriptor {
	v.t.Helper()
	encoded, err := json.Marshal(content)
	if err != nil {
		v.t.Fatal(err)
	}
	d := descriptor{MediaType: content.MediaType, Digest: digest.FromBytes(encoded), Size: int64(len(encoded))}
	if err := v.store.PutManifest(repository, d.Digest, encoded); err != nil {
		v.t.Fatal(err)
	}
	v.uses[d.Digest] = now.Add(-ago)
	return d
}

func (v *testVolume) tag(repository, tag string, d descriptor) {
	v.t.Helper()
	if err := v.store.SetTag(repository, tag, d.Digest); err != nil {
		v.t.Fatal(err)
	}
}

// write writes a file behind the back of the store, some time ago.
func (v *testVolume) write(path, content string, ago time.Duration) {
	v.t.Helper()
	path = filepath.Join(v.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		v.t.Fatal(err)
	}
	if err := os.Chtimes(path, now.Add(-ago), now.Add(-ago)); err != nil {
		v.t.Fatal(err)
	}
}

func (v *testVolume) data(d digest.Digest) string {
	return "docker/registry/v2/blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data"
}

// describe records the last uses, 3 minutes ago, and describes the volume as if it had the size.
func (v *testVolume) describe(p evict.Limits, size evict.Amount) *Report {
	v.t.Helper()
	var uses strings.Builder
	for d, used := range v.uses {
		fmt.Fprintf(&uses, "%s %s\n", d, used.Format(time.RFC3339))
	}
	v.write("registry-cache/last-use", uses.String(), 3*time.Minute)
	before := v.traces()
	files := volume.New(v.root, volume.Options{})
	v.t.Cleanup(files.Close)
	content, err := gc.Scan(v.t.Context(), files, v.root, evict.NewLRU(p.TTL), now)
	if err != nil {
		v.t.Fatal(err)
	}
	content.Usage.FileSystem = size
	r, err := describe("/var/lib/registry", content, p, now)
	if err != nil {
		v.t.Fatal(err)
	}
	if diff := cmp.Diff(before, v.traces()); diff != "" {
		v.t.Errorf("inspecting has left traces: -before +after\n%s", diff)
	}
	return r
}

// traces returns for each path the attributes that a write changes, and for each file when it was last read.
func (v *testVolume) traces() map[string]string {
	v.t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(v.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		found[path] = fmt.Sprint(info.Mode(), stat.Ino, stat.Size, stat.Mtim, stat.Ctim)
		if filepath.Base(path) == "data" {
			found[path] += fmt.Sprint(" ", stat.Atim)
		}
		return nil
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return found
}

const (
	minute = time.Minute
	hour   = time.Hour
	day    = 24 * time.Hour
	kib    = 1 << 10
)

// example has something of everything.
func example(t *testing.T) (*testVolume, *Report) {
	t.Helper()
	const alpine, tool, stock = "library/alpine", "gardener/ops-toolbelt", "stock/image"
	v := newVolume(t)
	base := v.blob("base", 3000*kib, 2*hour, alpine, tool)

	// An index of which one platform was pulled, under two tags.
	amd64 := v.manifest(alpine, 2*hour, v.blob("alpine config", 1500, 2*hour, alpine), base)
	amd64.Platform = &platform{"linux", "amd64"}
	arm64 := descriptor{oci.MediaTypeManifest, digest.FromString("never pulled"), 900, &platform{"linux", "arm64"}}
	index := v.index(alpine, 5*minute, amd64, arm64)
	v.tag(alpine, "latest", index)
	v.tag(alpine, "3.13.2", index)

	// An image without a tag, and with layers that were not used for long.
	v.manifest(tool, 26*hour, v.blob("tool config", 2000, 6*day+2*hour, tool), base,
		v.blob("tool 1", 5000*kib, 6*day+hour, tool), v.blob("tool 2", 100*kib, 8*day, tool))

	// Images with expired content only.
	old := v.manifest(alpine, 7*day, v.blob("old config", 1000, 7*day+hour, alpine), base)
	v.tag(alpine, "3.12", old)

	// Content of no image.
	v.blob("nobody has it", 700, day)
	v.blob("the manifest is gone", 800, 2*day, stock)
	lost := digest.FromString("lost")
	v.write("docker/registry/v2/repositories/"+stock+"/_layers/sha256/"+lost.Encoded()+"/link", lost.String(), 9*day)
	v.write("docker/registry/v2/repositories/"+stock+"/_manifests/tags/v1/current/link", "", 9*day)
	v.write("docker/registry/v2/repositories/"+stock+"/_uploads/6d8f/data", strings.Repeat("x", 5000), 3*hour)
	v.write("docker/registry/v2/repositories/"+stock+"/_uploads/6d8f/startedat", "2026-03-08T09:00:00Z", 3*hour)
	v.write("registry-cache/partial/"+digest.FromString("partial").Encoded()+"-123", strings.Repeat("x", 300*kib), 10*time.Second)
	empty := v.blob("empty", 10, 4*day, stock)
	v.write(v.data(empty.Digest), "", 4*day)
	return v, v.describe(policy, evict.Amount{Used: 50 << 20, Limit: 64 << 20})
}

func TestTable(t *testing.T) {
	t.Parallel()
	_, r := example(t)
	var b bytes.Buffer
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "table.txt", b.Bytes())
}

func TestJSON(t *testing.T) {
	t.Parallel()
	_, r := example(t)
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b.Bytes())
	var decoded Report
	decoder := json.NewDecoder(&b)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&decoded); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, &decoded); diff != "" {
		t.Errorf("decoded again: -want +got\n%s", diff)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-update writes it): -want +got\n%s", file, diff)
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	v, r := example(t)
	var sum int64
	err := filepath.WalkDir(filepath.Join(v.root, "docker/registry/v2/blobs"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		sum += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Totals.SizeBytes != sum {
		t.Errorf("total %d, on the volume are %d", r.Totals.SizeBytes, sum)
	}
	for _, i := range r.Images {
		if i.Repository == "library/alpine" && i.SizeBytes < 3000*kib {
			t.Errorf("%v has %d bytes, without the blob that it shares", i.Tags, i.SizeBytes)
		}
	}
}

// TestBrokenImages takes one thing away at a time.
func TestBrokenImages(t *testing.T) {
	t.Parallel()
	const repository = "library/alpine"
	for _, test := range []struct {
		name  string
		spoil func(v *testVolume, config, layer, manifest descriptor)
		// present is -1 where there is no image any more.
		present int
		kinds   []Kind
		note    string
	}{
		{"whole", func(*testVolume, descriptor, descriptor, descriptor) {}, 3, nil, ""},
		{"no layer", func(v *testVolume, _, layer, _ descriptor) { v.remove(v.data(layer.Digest)) }, 2, []Kind{Links}, "the content is missing"},
		{"empty layer", func(v *testVolume, _, layer, _ descriptor) { v.write(v.data(layer.Digest), "", 0) }, 2, []Kind{Corrupt}, "the file is empty"},
		{"cut layer", func(v *testVolume, _, layer, _ descriptor) { v.write(v.data(layer.Digest), "cut", 0) }, 2, []Kind{Corrupt},
			"it has 3 bytes, but a manifest of repository library/alpine requires 100"},
		{"layer of another repository", func(v *testVolume, _, layer, _ descriptor) {
			v.remove(v.link(repository, "_layers", layer.Digest))
			v.write(v.link("other", "_layers", layer.Digest), layer.Digest.String(), 0)
		}, 2, []Kind{Content}, "no image refers to it"},
		{"torn layer link", func(v *testVolume, _, layer, _ descriptor) {
			v.write(v.link(repository, "_layers", layer.Digest), "sha", 0)
		}, 2,
			[]Kind{Corrupt, Content}, "the link does not contain its digest"},
		{"no link of the manifest", func(v *testVolume, _, _, manifest descriptor) {
			v.remove(v.link(repository, "_manifests/revisions", manifest.Digest))
		}, -1, []Kind{Content, Content, Content}, "no link"},
		{"changed manifest", func(v *testVolume, _, _, manifest descriptor) { v.write(v.data(manifest.Digest), "{}", 0) }, -1,
			[]Kind{Corrupt, Content, Content}, "reading manifest"},
		{"huge manifest", func(v *testVolume, _, _, manifest descriptor) {
			v.write(v.data(manifest.Digest), strings.Repeat(" ", oci.MaxManifestSize+1), 0)
		}, -1, []Kind{Corrupt, Content, Content}, "reading manifest"},
		{"no manifest", func(v *testVolume, _, _, manifest descriptor) { v.remove(v.data(manifest.Digest)) }, -1,
			[]Kind{Links, Content, Content}, "the content is missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := newVolume(t)
			config, layer := v.blob("config", 50, hour, repository), v.blob("layer", 100, hour, repository)
			manifest := v.manifest(repository, hour, config, layer)
			v.tag(repository, "v1", manifest)
			test.spoil(v, config, layer, manifest)
			r := v.describe(policy, evict.Amount{})
			if test.present < 0 {
				if len(r.Images) > 0 {
					t.Errorf("images: %+v", r.Images)
				}
			} else if len(r.Images) != 1 || r.Images[0].Objects != (Count{test.present, 3}) {
				t.Errorf("images: %+v", r.Images)
			}
			var kinds []Kind
			for _, o := range r.Orphans {
				kinds = append(kinds, o.Kind)
			}
			if diff := cmp.Diff(test.kinds, kinds); diff != "" {
				t.Errorf("orphans: -want +got\n%s", diff)
			}
			if test.note != "" && !slices.ContainsFunc(r.Orphans, func(o Orphan) bool { return strings.HasPrefix(o.Note, test.note) }) {
				t.Errorf("orphans %+v, want the note %q", r.Orphans, test.note)
			}
		})
	}
}

func (v *testVolume) link(repository, folder string, d digest.Digest) string {
	return "docker/registry/v2/repositories/" + repository + "/" + folder + "/sha256/" + d.Encoded() + "/link"
}

// remove removes a file with the folder around it, as the store does.
func (v *testVolume) remove(path string) {
	v.t.Helper()
	if err := os.RemoveAll(filepath.Dir(filepath.Join(v.root, path))); err != nil {
		v.t.Fatal(err)
	}
}

func TestManifestOfNoKnownType(t *testing.T) {
	t.Parallel()
	v := newVolume(t)
	const content = `{"schemaVersion":1,"fsLayers":[]}`
	d := digest.FromString(content)
	if err := v.store.PutManifest("old", d, []byte(content)); err != nil {
		t.Fatal(err)
	}
	r := v.describe(policy, evict.Amount{})
	if len(r.Images) > 0 || len(r.Orphans) != 1 || r.Orphans[0].Kind != Corrupt || r.Orphans[0].Note != "not a manifest of a known type: schema version 1" {
		t.Errorf("images %+v, orphans %+v", r.Images, r.Orphans)
	}
}

func TestWithoutTTLNothingGoes(t *testing.T) {
	t.Parallel()
	v := newVolume(t)
	v.blob("nobody has it", 700, 1000*day)
	r := v.describe(evict.Limits{HighWatermark: 90, LowWatermark: 80}, evict.Amount{Used: 10, Limit: 10})
	if diff := cmp.Diff(Eviction{}, r.Orphans[0].Eviction); diff != "" || r.Totals.EvictableObjects > 0 || r.Totals.Objects != 1 {
		t.Errorf("totals %+v, eviction: -want +got\n%s", r.Totals, diff)
	}
	var b bytes.Buffer
	if err := r.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "nothing is evicted") {
		t.Errorf("table:\n%s", b.String())
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for bytes, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB", 10 << 30: "10.0 GiB", 1 << 62: "4.0 EiB",
	} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %q, want %q", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", hour: "1h", hour + 5*time.Second: "1h", 3*day + 4*hour + 5*minute: "3d4h", 400 * day: "400d",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %q, want %q", d, got, want)
		}
	}
	if got := printable("a\x1b[2J\tb"); got != `"a\x1b[2J\tb"` {
		t.Errorf("printable: %s", got)
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	v, _ := example(t)
	r, err := Inspect(t.Context(), v.root, policy, now)
	if err != nil {
		t.Fatal(err)
	}
	if r.Volume == nil || r.Volume.LimitBytes <= 0 || r.Volume.FreeBytes+r.Volume.UsedBytes != r.Volume.LimitBytes || r.Totals.Images != 3 {
		t.Errorf("volume %+v, totals %+v", r.Volume, r.Totals)
	}
	if _, err := Inspect(t.Context(), filepath.Join(v.root, "missing"), policy, now); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("no volume: %v", err)
	}
}
