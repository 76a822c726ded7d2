// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// checkout makes a checkout with the inputs and nothing else.
func checkout(t *testing.T) *builder {
	t.Helper()
	b := &builder{root: t.TempDir(), cache: t.TempDir()}
	b.goCommand = func(_ context.Context, dir string, args ...string) (string, error) {
		switch args[0] {
		case "env":
			return "go1.26.8\namd64", nil
		case "list":
			return args[len(args)-1] + " v1.34.4", nil
		}
		return "", fmt.Errorf("unexpected command in %s: %s", dir, args)
	}
	for _, m := range modules() {
		for _, source := range m.sources {
			write(t, b, source, "package main", 0o644)
		}
		if len(m.sources) == 0 {
			write(t, b, m.dir+"/go.mod", "module "+m.dir, 0o644)
			write(t, b, m.dir+"/go.sum", "sum of "+m.dir, 0o644)
		}
	}
	for _, script := range []string{baseScript, loadScript, nodeScript} {
		write(t, b, script, "#!/bin/bash", 0o755)
	}
	write(t, b, overlayDir+"/etc/guard.nft", "table", 0o644)
	write(t, b, overlayDir+"/usr/sbin/guard", "#!/bin/sh", 0o755)
	return b
}

func write(t *testing.T, b *builder, name, content string, mode os.FileMode) {
	t.Helper()
	name = filepath.Join(b.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func baseHash(t *testing.T, b *builder) string {
	t.Helper()
	in, err := b.baseInputs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return in.hash()
}

func overlayHash(t *testing.T, b *builder) string {
	t.Helper()
	hash, err := b.overlayHash()
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

func TestBaseHashCoversEachInput(t *testing.T) {
	t.Parallel()
	b := checkout(t)
	before := baseHash(t, b)
	if again := baseHash(t, b); again != before {
		t.Fatalf("hash of the same inputs: %s, then %s", before, again)
	}
	files := []string{baseScript, loadScript, "hack/kind/pause/main.go"}
	for _, m := range modules() {
		if len(m.sources) == 0 {
			files = append(files, m.dir+"/go.mod", m.dir+"/go.sum")
		}
	}
	if len(files) != 11 {
		t.Errorf("%d files are inputs, want those of 4 modules, 2 scripts and the pause program: %s", len(files), files)
	}
	seen := map[string]string{before: "nothing"}
	for _, name := range files {
		content, err := os.ReadFile(filepath.Join(b.root, name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, b, name, string(content)+" changed", 0o644)
		hash := baseHash(t, b)
		if other, found := seen[hash]; found {
			t.Errorf("a change of %s gives the hash of a change of %s", name, other)
		}
		seen[hash] = name
		write(t, b, name, string(content), 0o644)
	}
	if after := baseHash(t, b); after != before {
		t.Errorf("hash after all changes were undone: %s, want %s", after, before)
	}
	original := b.goCommand
	for _, changed := range []string{"env", kindModule, kubernetesModule} {
		b.goCommand = func(ctx context.Context, dir string, args ...string) (string, error) {
			out, err := original(ctx, dir, args...)
			if args[0] == changed || args[len(args)-1] == changed {
				out += "-changed"
			}
			return out, err
		}
		if baseHash(t, b) == before {
			t.Errorf("another answer of the go command for %s does not change the hash", changed)
		}
	}
	b.goCommand = original
	write(t, b, overlayDir+"/etc/guard.nft", "other", 0o644)
	if after := baseHash(t, b); after != before {
		t.Error("the overlay changes the hash of the base, which would be built again for it")
	}
}

func TestOverlayHashCoversEachInput(t *testing.T) {
	t.Parallel()
	original := overlayHash(t, checkout(t))
	for name, change := range map[string]func(b *builder){
		"content":     func(b *builder) { write(t, b, overlayDir+"/etc/guard.nft", "other", 0o644) },
		"script":      func(b *builder) { write(t, b, nodeScript, "other", 0o755) },
		"new file":    func(b *builder) { write(t, b, overlayDir+"/etc/new", "", 0o644) },
		"executable":  func(b *builder) { chmod(t, filepath.Join(b.root, overlayDir, "etc/guard.nft"), 0o755) },
		"other name":  func(b *builder) { rename(t, b, overlayDir+"/etc/guard.nft", overlayDir+"/etc/guard2.nft") },
		"other place": func(b *builder) { rename(t, b, overlayDir+"/etc/guard.nft", overlayDir+"/usr/guard.nft") },
	} {
		b := checkout(t)
		if change(b); overlayHash(t, b) == original {
			t.Errorf("%s: the hash did not change", name)
		}
	}
	b := checkout(t)
	chmod(t, filepath.Join(b.root, overlayDir, "etc/guard.nft"), 0o600)
	if overlayHash(t, b) != original {
		t.Error("permissions that git does not keep change the hash, so two checkouts would differ")
	}
}

func TestOverlayMustBeRegularFiles(t *testing.T) {
	t.Parallel()
	b := checkout(t)
	if err := os.Symlink("guard.nft", filepath.Join(b.root, overlayDir, "etc/link")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.overlayHash(); err == nil || !strings.Contains(err.Error(), "etc/link is no regular file") {
		t.Errorf("overlay with a link: %v, want an error that names it", err)
	}
}

func TestHashTellsNamesFromValues(t *testing.T) {
	t.Parallel()
	a, b := inputs{{"ab", "c"}}, inputs{{"a", "bc"}}
	if a.hash() == b.hash() {
		t.Error("inputs that only differ in where the name ends have the same hash")
	}
	if nodeTag("x", "y") == nodeTag("y", "x") {
		t.Error("base and overlay may be exchanged without changing the tag")
	}
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, b *builder, from, to string) {
	t.Helper()
	to = filepath.Join(b.root, to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(b.root, from), to); err != nil {
		t.Fatal(err)
	}
}
