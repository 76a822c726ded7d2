// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/inspect"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
)

// runInspect runs the subcommand inspect and returns its output.
func runInspect(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"inspect"}, args...))
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestInspect(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s, err := store.Open(root, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	manifest := []byte(`{"schemaVersion":2,"manifests":[]}`)
	if err := s.PutManifest("library/alpine", digest.FromBytes(manifest), manifest); err != nil {
		t.Fatal(err)
	}
	if err := s.SetTag("library/alpine", "v1", digest.FromBytes(manifest)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	cfg := "upstream: {host: docker.io, remoteURL: https://registry-1.docker.io}\n" +
		"storage: {root: " + root + ", highWatermark: 70, lowWatermark: 60}\ngarbageCollection: {ttl: 48h}\n"
	if err := os.WriteFile(file, []byte(cfg), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want inspect.Policy
	}{
		{[]string{"--root", root}, inspect.Policy{TTLSeconds: 168 * 3600, HighWatermarkPercent: 90, LowWatermarkPercent: 80}},
		{[]string{"--config", file}, inspect.Policy{TTLSeconds: 48 * 3600, HighWatermarkPercent: 70, LowWatermarkPercent: 60}},
		{[]string{"--config", file, "--ttl", "0s", "--high-watermark", "95"}, inspect.Policy{HighWatermarkPercent: 95, LowWatermarkPercent: 60}},
		// The low watermark follows the high one, as in a configuration without it.
		{[]string{"--root", root, "--high-watermark", "70"}, inspect.Policy{TTLSeconds: 168 * 3600, HighWatermarkPercent: 70, LowWatermarkPercent: 60}},
		{[]string{"--root", root, "--ttl", "1h", "--low-watermark", "0"}, inspect.Policy{TTLSeconds: 3600, HighWatermarkPercent: 90}},
	} {
		out, err := runInspect(t, append(test.args, "-o", "json")...)
		if err != nil {
			t.Errorf("%v: %v", test.args, err)
			continue
		}
		var r inspect.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Errorf("%v: %v", test.args, err)
		}
		if r.Policy != test.want || r.Root != root || len(r.Images) != 1 || time.Since(r.Time) > time.Minute {
			t.Errorf("%v: unexpected report %+v", test.args, r)
		}
	}
	out, err := runInspect(t, "--root", root)
	if err != nil || !strings.Contains(out, "\nlibrary/alpine  v1 ") {
		t.Errorf("table: error %v, output:\n%s", err, out)
	}
	// --root overrides storage.root of the configuration file.
	missing := filepath.Join(root, "missing")
	if _, err := runInspect(t, "--config", file, "--root", missing); err == nil || err.Error() != "scanning the volume: directory "+missing+" does not exist" {
		t.Errorf("missing directory: got error %v", err)
	}
}
