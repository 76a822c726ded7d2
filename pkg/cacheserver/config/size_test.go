// SPDX-License-Identifier: Apache-2.0

package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSizeFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	write := func(content string) {
		t.Helper()
		at = at.Add(time.Second)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	const rest = "upstream: {host: docker.io, remoteURL: https://registry-1.docker.io}\n"
	write(rest + "storage: {size: 10Gi}\n")
	cfg, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f := NewSizeFile(path, cfg.Storage.Size, slog.New(slog.DiscardHandler))
	for _, step := range []struct {
		content string
		want    int64
	}{
		{rest + "storage: {size: 10Gi}\n", 10 << 30},
		{rest + "storage: {size: 20Gi}\n", 20 << 30},
		{"storage: {size: x}\n", 20 << 30},
		{rest, 0},
		{rest + "storage: {size: 5Gi}\n", 5 << 30},
	} {
		write(step.content)
		if got := f.Get(); got != step.want {
			t.Errorf("%q: got %d, want %d", step.content, got, step.want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := f.Get(); got != 5<<30 {
		t.Errorf("without the file: %d", got)
	}
}
