// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

func TestLinksOfTheRepository(t *testing.T) {
	t.Parallel()
	var files []string
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		switch name := entry.Name(); {
		case entry.IsDir() && (relative == "bin" || name == "testdata" || strings.HasPrefix(name, ".") && relative != "." && name != ".github"):
			return fs.SkipDir
		case !entry.IsDir() && filepath.Ext(name) == ".md":
			files = append(files, filepath.ToSlash(relative))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(files, "README.md") {
		t.Fatalf("README.md is not among the Markdown files: %v", files)
	}
	broken, err := brokenLinks(root, files)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range broken {
		t.Error(line)
	}
}

func TestBrokenLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"README.md": `# Registry cache
[self](#registry-cache) [page](docs/page.md) [heading](docs/page.md#a-code-heading) [html](docs/page.md#by-name)
[folder](docs) [web](https://example.com/missing#x) [mail](mailto:me@example.com) [source](main.go#L10)
` + "```\n[in code](missing.md)\n```\n`[in code](missing.md)`\n" + `
[reference]
![picture](missing.svg)
[no heading](docs/page.md#missing) [no self](#missing)
<img src="missing.png">
[no definition][undefined] ` + "`[in code][undefined]`" + `

[reference]: docs/missing.md
`,
		"docs/page.md": "# A `code` *heading*\n<a name=\"by-name\"></a>\n[up](../README.md#registry-cache) [outside](../../README.md) [root](/README.md)\n",
		"main.go":      "package main\n",
	} {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := brokenLinks(dir, []string{"README.md", "docs/page.md"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"README.md: docs/missing.md: file does not exist",
		"README.md: missing.svg: file does not exist",
		"README.md: docs/page.md#missing: docs/page.md has no such heading",
		"README.md: #missing: README.md has no such heading",
		"README.md: missing.png: file does not exist",
		"README.md: [no definition][undefined]: the reference is not defined",
		"docs/page.md: ../../README.md: is outside of the repository",
		"docs/page.md: /README.md: is outside of the repository",
	}
	if !slices.Equal(got, want) {
		t.Errorf("broken links:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The expected anchors are those of GitHub.
func TestSlugs(t *testing.T) {
	t.Parallel()
	slugs := slugger{}
	for _, tc := range []struct{ heading, want string }{
		{"Registry Cache", "registry-cache"},
		{"What's new?", "whats-new"},
		{"Watermarks: 75 % / 90 %", "watermarks-75---90-"},
		{"hosts.toml and certs.d", "hoststoml-and-certsd"},
		{"snake_case – and dash", "snake_case--and-dash"},
		{"Größe", "größe"},
		{"Registry cache", "registry-cache-1"},
		{"Registry cache", "registry-cache-2"},
	} {
		if got := slugs.slug(tc.heading); got != tc.want {
			t.Errorf("slug(%q) = %q, want %q", tc.heading, got, tc.want)
		}
	}
}

// The README is the entry point; details belong to the pages that it links to.
func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	const limit = 150
	content, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(content, []byte("\n")); lines > limit {
		t.Errorf("README.md has %d lines, want no more than %d", lines, limit)
	}
}
