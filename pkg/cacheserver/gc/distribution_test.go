// SPDX-License-Identifier: Apache-2.0

package gc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// parseState reads the file as a stock registry does.
func parseState(t *testing.T, content string) map[string]distributionEntry {
	t.Helper()
	entries := map[string]distributionEntry{}
	if err := json.Unmarshal([]byte(content), &entries); err != nil {
		t.Errorf("a stock registry would not start with %q: %v", content, err)
	}
	return entries
}

func TestStateForStock(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 1, 1, 0, 0, 5, time.FixedZone("", 3600))
	both := []evict.Link{
		{Kind: evict.Revision, Repository: "a"}, {Kind: evict.Layer, Repository: "a"},
		{Kind: evict.Tag, Repository: "a", Tag: "v1"}, {Kind: evict.Revision, Repository: "b/c"},
	}
	for _, test := range []struct {
		name    string
		records []evict.Record
		want    string
	}{
		{"empty", nil, "{\n}\n"},
		{"without links", []evict.Record{{Digest: layerDigest, LastUse: at}}, "{\n}\n"},
		{"blob and manifest", []evict.Record{{Digest: layerDigest, LastUse: at, Links: both}}, `{
"a@LAYER":{"Key":"a@LAYER","ExpiryData":"2026-01-01T02:00:00Z","EntryType":0},
"b/c@LAYER":{"Key":"b/c@LAYER","ExpiryData":"2026-01-01T02:00:00Z","EntryType":1}
}
`},
		{"two objects", []evict.Record{
			{Digest: layerDigest, LastUse: at, Links: both[1:2]},
			{Digest: manifestDigest, LastUse: at.Add(time.Second), Links: both[:1]},
		}, `{
"a@LAYER":{"Key":"a@LAYER","ExpiryData":"2026-01-01T02:00:00Z","EntryType":0},
"a@MANIFEST":{"Key":"a@MANIFEST","ExpiryData":"2026-01-01T02:00:01Z","EntryType":1}
}
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var got strings.Builder
			if err := writeDistributionState(&got, test.records, 2*time.Hour); err != nil {
				t.Fatal(err)
			}
			want := strings.NewReplacer("LAYER", layerDigest.String(), "MANIFEST", manifestDigest.String()).Replace(test.want)
			if diff := cmp.Diff(want, got.String()); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			parseState(t, got.String())
		})
	}
}

// TestStateIsThereWheneverTheProcessEnds examines the volume as a kill would leave it: after the start, after some
// minutes, and after an orderly end.
func TestStateIsThereWheneverTheProcessEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		write(t, root, stateFile, "{broken")
		s := open(t, root, setup{limits: week})
		stop := run(t, s)
		if content, ok := files(t, root)[stateFile]; ok {
			t.Errorf("after the start with an empty volume: %q", content)
		}
		d := sized(t, s, 1, 10)
		time.Sleep(saveInterval)
		synctest.Wait()
		key := repository + "@" + d.String()
		if got := parseState(t, files(t, root)[stateFile]); len(got) != 1 || got[key].Key != key {
			t.Errorf("after %v: %v", saveInterval, got)
		}
		used := time.Now()
		use(t, s, d)
		stop()
		got := parseState(t, files(t, root)[stateFile])[key].ExpiryData
		if want := used.Add(week.TTL).Truncate(time.Second); !got.Equal(want) {
			t.Errorf("after the end: expires %v, want %v", got, want)
		}
	})
}

func TestStateIsLeftAloneWithoutTTL(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		write(t, root, stateFile, "{broken")
		s := open(t, root, setup{})
		stop := run(t, s)
		sized(t, s, 1, 10)
		stop()
		if content, err := os.ReadFile(filepath.Join(root, stateFile)); err != nil || string(content) != "{broken" {
			t.Errorf("%q, %v", content, err)
		}
	})
}
