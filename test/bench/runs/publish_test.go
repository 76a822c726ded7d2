// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/registry-cache/extension/test/bench/ranges"
	"github.com/registry-cache/extension/test/bench/result"
)

// The published files and the range file belong to the stored run.
func TestPublishedIsUpToDate(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	files, err := generated(root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
		}
		if string(got) != want {
			t.Errorf("%s is out of date: run \"make generate\"", name)
		}
	}
	// The README has three headline numbers and one picture.
	part := strings.Split(strings.Split(files["README.md"], begin)[1], end)[0]
	if rows, pictures := strings.Count(part, "\n| ")-2, strings.Count(part, "!["); rows != 3 || pictures != 1 {
		t.Errorf("the README has %d headline rows and %d pictures, want 3 and 1", rows, pictures)
	}
	folder, err := stored(root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ranges.Read(filepath.Join(root, rangeFile))
	if err != nil {
		t.Fatal(err)
	}
	if r.Run != filepath.Base(folder) {
		t.Errorf("%s is of the run %s, and %s is stored: run \"make bench-store\"", rangeFile, r.Run, folder)
	}
	if err := check(root, filepath.Join(root, folder)); err != nil {
		t.Errorf("the stored run is not in its own ranges: %v", err)
	}
}

// newRepository returns a folder with the files that store reads and replaces.
func newRepository(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{filepath.Dir(rangeFile), filepath.Join(storedRuns, "old")} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "README.md"), []byte("before\n"+begin+"old\n"+end+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func newRun(t *testing.T, quick bool) (dir string) {
	t.Helper()
	r := &result.Run{Rounds: 3, Quick: quick}
	for _, v := range []float64{1, 1.1, .9} {
		r.Add("herd/clients=50", result.Stock, "upstream-B/blob-B", 10*v)
		r.Add("herd/clients=50", result.Ours, "upstream-B/blob-B", 1)
		r.Add("cold/rtt=80ms", result.Direct, "s", v)
		r.Add("cold/rtt=80ms", result.Stock, "s", 3*v)
		r.Add("cold/rtt=80ms", result.Ours, "s", 1.2*v)
	}
	dir = filepath.Join(t.TempDir(), "new")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestStore(t *testing.T) {
	t.Parallel()
	root, dir := newRepository(t), newRun(t, false)
	for range 2 { // the second time, the run is already the stored run
		if err := store(root, dir); err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(root, storedRuns, "new")
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n" + begin, end + "after\n", "docs/benchmarks/new/herd-amplification.svg", "| – | 10 × | 1 × |"} {
		if !strings.Contains(string(readme), want) {
			t.Errorf("the README has no %q:\n%s", want, readme)
		}
	}
	// The head of the table has two lines.
	if rows := strings.Count(string(readme), "\n| "); strings.Contains(string(readme), "old") || rows != 3 {
		t.Errorf("the README contains rows that were not measured, or the old part:\n%s", readme)
	}
	index, err := os.ReadFile(filepath.Join(root, storedRuns, indexPage))
	if want := "| 1 s | 3 s | 1.2 s |\n"; err != nil || !strings.Contains(string(index), want) {
		t.Errorf("%s: %v, want a line that ends with %q in\n%s", indexPage, err, want, index)
	}
	if entries, err := os.ReadDir(filepath.Join(root, storedRuns)); err != nil || len(entries) != 2 {
		t.Errorf("stored: %v, %v, want only the new run and its page", entries, err)
	}
	if got, want := names(t, dir), []string{"herd-amplification.svg", "results.json", "summary.md"}; !slices.Equal(got, want) {
		t.Errorf("the stored run contains %v, want %v", got, want)
	}
	if err := check(root, dir); err != nil {
		t.Error(err)
	}
}

// names returns the names of the files in a folder, sorted.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

// The page and the input of benchstat are not written into the folder of the run.
func TestPage(t *testing.T) {
	t.Parallel()
	root, dir := t.TempDir(), newRun(t, false)
	if err := page(root, dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{"results.json"}) {
		t.Errorf("the folder of the run contains %v", got)
	}
	for file, want := range map[string]string{"report.html": "medians of 3 rounds", "bench.txt": "BenchmarkCold/rtt=80ms/engine=ours 1 1.2 s\n"} {
		content, err := os.ReadFile(filepath.Join(root, "bin", "bench", "new", file))
		if err != nil || !strings.Contains(string(content), want) {
			t.Errorf("%s: %v, want %q in\n%s", file, err, want, content)
		}
	}
	if err := page(root, t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder without results.json: the error is %v", err)
	}
}

// A run that cannot be stored does not change the stored run.
func TestStoreRefusesQuickRuns(t *testing.T) {
	t.Parallel()
	root := newRepository(t)
	if err := store(root, newRun(t, true)); err == nil || !strings.Contains(err.Error(), "quick") {
		t.Errorf("the error is %v", err)
	}
	if folder, err := stored(root); err != nil || folder != storedRuns+"/old" {
		t.Errorf("%s is stored, %v", folder, err)
	}
}

func TestReplacePartNeedsBothLines(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", begin, end, end + begin} {
		if _, err := replacePart(text, "x"); err == nil {
			t.Errorf("no error for %q", text)
		}
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"missing command": nil, "-run is missing": {"page"}, "unknown command": {"paint", "-run", "x"}, "results.json": {"check", "-run", t.TempDir()},
	} {
		if err := run(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: the error is %v, want %q", args, err, want)
		}
	}
}
