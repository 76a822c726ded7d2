// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/registry-cache/extension/test/testbed/workspace"
)

// ExtractPackages writes an uncompressed tar archive with the files of the Debian packages and of what they depend on
// to tarPath: a layer for an image with a few programs. The packages are unpacked but not configured, so links that
// their scripts would make are missing. Documentation, translations, character sets of the C library, Python, ICU and
// the state of the package manager are left out.
//
// The archive is kept in workspace.CacheDir by release and list of packages, and made once. It appears under tarPath
// only when it is complete.
func ExtractPackages(ctx context.Context, tarPath string, packages ...string) error {
	r, err := hostRelease()
	if err != nil {
		return err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return err
	}
	packages = slices.Compact(slices.Sorted(slices.Values(packages)))
	if len(packages) == 0 {
		return errors.New("extracting packages: name at least one")
	}
	a := packageArchive{release: r, variant: "extract", packages: packages, keep: filterArchive}
	cached, err := a.ensure(ctx, cache)
	if err != nil {
		return fmt.Errorf("extracting packages: %w", err)
	}
	return withFile(cached, func(files io.Reader) error {
		return replace(tarPath, func(out io.Writer) error {
			_, err := io.Copy(out, files)
			return err
		})
	})
}

// filterArchive copies the archive without what ballast names, and without times, so that it depends on the packages
// alone.
func filterArchive(out io.Writer, archive io.Reader) error {
	in, filtered := tar.NewReader(archive), tar.NewWriter(out)
	for {
		header, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the packages' files: %w", err)
		}
		if ballast(header.Name) {
			continue
		}
		header.ModTime, header.AccessTime, header.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
		if err := filtered.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(filtered, in); err != nil {
			return err
		}
	}
	return filtered.Close()
}

// ballast tells whether a file is of no use in an image with a few programs.
func ballast(name string) bool {
	name = path.Join("/", name)
	for _, pattern := range []string{
		"/dev", "/etc/apt", "/etc/dpkg", "/etc/fstab", "/etc/hostname", "/etc/resolv.conf", "/tmp", "/var",
		"/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/locale", "/usr/share/lintian", "/usr/share/bug",
		"/usr/share/perl*", "/usr/share/python*", "/usr/share/zsh", "/usr/share/bash-completion",
		"/usr/lib/*-linux-gnu*/gconv", "/usr/lib/*-linux-gnu*/libicu*", "/usr/lib/*-linux-gnu*/perl*",
		"/usr/lib/python*", "/usr/bin/python*", "/usr/bin/perl*",
	} {
		if matchTree(pattern, name) {
			return true
		}
	}
	return false
}

// matchTree tells whether name, or a folder it is in, matches the pattern of path.Match.
func matchTree(pattern, name string) bool {
	for ; name != "/"; name = path.Dir(name) {
		// The patterns are constant and well-formed.
		if matched, err := path.Match(pattern, name); err == nil && matched {
			return true
		}
	}
	return false
}
