// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const hexPattern = `([0-9a-f]{64})`

// The files that a volume may contain, by the layout of the distribution project.
var (
	blobFile     = regexp.MustCompile(`^docker/registry/v2/blobs/sha256/[0-9a-f]{2}/` + hexPattern + `/data$`)
	layerFile    = regexp.MustCompile(`^docker/registry/v2/repositories/(.+)/_layers/sha256/` + hexPattern + `/link$`)
	revisionFile = regexp.MustCompile(`^docker/registry/v2/repositories/(.+)/_manifests/revisions/sha256/` + hexPattern + `/link$`)
	currentFile  = regexp.MustCompile(`^docker/registry/v2/repositories/(.+)/_manifests/tags/([^/]+)/current/link$`)
	indexFile    = regexp.MustCompile(`^docker/registry/v2/repositories/(.+)/_manifests/tags/([^/]+)/index/sha256/` + hexPattern + `/link$`)
	ownFile      = regexp.MustCompile(`^(registry-cache/last-use|registry-cache/probe[^/]*|scheduler-state\.json)$`)
)

// isKept reports that a file, relative to root, is a partial download or its record, which the next download of the
// blob continues.
func isKept(root, file string) bool {
	name := strings.TrimSuffix(file, ".json")
	if !strings.HasPrefix(name, "registry-cache/partial/") {
		return false
	}
	for _, path := range []string{name, name + ".json"} {
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			return false
		}
	}
	return true
}

// notKept returns the files on a volume, except partial downloads that the next one continues.
func notKept(t *testing.T, root string) []string {
	t.Helper()
	return slices.DeleteFunc(files(t, root), func(file string) bool { return isKept(root, file) })
}

// inconsistencies returns the defects of a volume, sorted: content with another digest than its name, content and
// links without each other, tags without their content, and files that nothing needs. Files that go meanwhile do not
// count.
func inconsistencies(t *testing.T, root string) (complaints []string) {
	t.Helper()
	complain := func(format string, arguments ...any) {
		complaints = append(complaints, fmt.Sprintf(format, arguments...))
	}
	blobs, linked := map[string]bool{}, map[string]bool{}
	revisions, records := map[string]bool{}, map[string]bool{} // by repository@digest, repository:tag@digest
	current := map[string][2]string{}                          // repository and digest by repository:tag
	type link struct{ path, hex string }
	var links []link
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if path, err = filepath.Rel(root, path); err != nil {
			return err
		}
		named := ""
		switch {
		case ownFile.MatchString(path), isKept(root, path):
		case blobFile.MatchString(path):
			hex := blobFile.FindStringSubmatch(path)[1]
			blobs[hex] = true
			if got := fmt.Sprintf("%x", sha256.Sum256(content)); got != hex {
				complain("%s has the digest %s", path, got)
			}
		case layerFile.MatchString(path):
			named = layerFile.FindStringSubmatch(path)[2]
			linked[named] = true
		case revisionFile.MatchString(path):
			m := revisionFile.FindStringSubmatch(path)
			named = m[2]
			linked[named] = true
			revisions[m[1]+"@"+named] = true
		case currentFile.MatchString(path):
			m := currentFile.FindStringSubmatch(path)
			current[m[1]+":"+m[2]] = [2]string{m[1], string(content)}
		case indexFile.MatchString(path):
			m := indexFile.FindStringSubmatch(path)
			named = m[3]
			records[m[1]+":"+m[2]+"@sha256:"+named] = true
		default:
			complain("nothing needs %s", path)
		}
		if named != "" {
			links = append(links, link{path, named})
			if string(content) != "sha256:"+named {
				complain("%s is %q", path, content)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if !blobs[l.hex] {
			complain("%s names what is not there", l.path)
		}
	}
	for hex := range blobs {
		if !linked[hex] {
			complain("no repository has %s", hex)
		}
	}
	for name, c := range current {
		if !records[name+"@"+c[1]] {
			complain("tag %s has no record of %s", name, c[1])
		}
		if hex := c[1]; len(hex) < 7 || !revisions[c[0]+"@"+hex[len("sha256:"):]] {
			complain("tag %s names %q, which the repository does not have", name, c[1])
		}
	}
	slices.Sort(complaints)
	return complaints
}
