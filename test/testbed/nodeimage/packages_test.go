// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseRelease(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		content string
		want    release
	}{
		{"PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n", release{"debian", "bookworm"}},
		{"ID=\"ubuntu\"\nID_LIKE=debian\nVERSION_CODENAME='noble'", release{"ubuntu", "noble"}},
		{"ID=fedora\nVERSION_ID=42\n", release{"fedora", ""}},
		{"", release{}},
	} {
		if got := parseRelease([]byte(tc.content)); got != tc.want {
			t.Errorf("parseRelease(%q) = %v, want %v", tc.content, got, tc.want)
		}
	}
}

func TestParseSources(t *testing.T) {
	t.Parallel()
	index := strings.Join([]string{
		"Debian|bookworm|yes|amd64|http://mirror.example/debian|bookworm|main",
		"Debian|bookworm|yes|amd64|http://mirror.example/debian|bookworm|main",
		"Debian|bookworm|yes|amd64|http://mirror.example/debian|bookworm|contrib",
		"Debian|bookworm|yes|i386|http://mirror.example/debian|bookworm|main",
		"Debian|bookworm-updates|yes|amd64|http://mirror.example/debian|stable-updates|main",
		"Debian|bookworm-security|yes|amd64|http://mirror.example/security|bookworm-security|main",
		"Debian|trixie|yes|amd64|http://mirror.example/debian|trixie|main",
		"Debian|bookworm|no|amd64|http://unsigned.example/debian|bookworm|main",
		"Vendor|bookworm|yes|amd64|http://vendor.example/apt|bookworm|main",
		"$(ORIGIN)|$(CODENAME)|no|amd64|http://new.example/debian|bookworm|main",
		"",
	}, "\n")
	want := []string{
		"deb http://mirror.example/debian bookworm main",
		"deb http://mirror.example/debian bookworm contrib",
		"deb http://mirror.example/debian stable-updates main",
		"deb http://mirror.example/security bookworm-security main",
	}
	if diff := cmp.Diff(want, parseSources([]byte(index), release{"debian", "bookworm"}, "amd64")); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestBallast(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"./usr/sbin/mkfs.xfs":                          false,
		"./usr/lib/x86_64-linux-gnu/libinih.so.1":      false,
		"./usr/share/xfsprogs/mkfs/lts_6.1.conf":       false,
		"./etc/xtables.conf":                           false,
		"./":                                           false,
		"./usr/share/doc/xfsprogs/copyright":           true,
		"./usr/share/doc/":                             true,
		"./usr/lib/x86_64-linux-gnu/libicudata.so.72":  true,
		"./usr/lib/x86_64-linux-gnu/gconv/UTF-7.so":    true,
		"./usr/lib/aarch64-linux-gnu/gconv/UTF-7.so":   true,
		"./usr/lib/python3.11/os.py":                   true,
		"./usr/bin/python3.11":                         true,
		"./dev/null":                                   true,
		"./var/lib/dpkg/status":                        true,
		"./usr/share/documentation":                    false,
		"./usr/lib/x86_64-linux-gnu/libpython-less.so": false,
	} {
		if got := ballast(name); got != want {
			t.Errorf("ballast(%q) = %t, want %t", name, got, want)
		}
	}
}

func TestFilterArchive(t *testing.T) {
	t.Parallel()
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, h := range []*tar.Header{
		{Name: "./usr/sbin/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Now()},
		{Name: "./usr/sbin/nft", Typeflag: tar.TypeReg, Mode: 0o755, Size: 3, ModTime: time.Now(), Format: tar.FormatPAX},
		{Name: "./usr/share/doc/nftables/copyright", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3},
		{Name: "./lib/libc.so.6", Typeflag: tar.TypeSymlink, Linkname: "libc-2.36.so", Mode: 0o777},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "abc"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	complete := bytes.Clone(in.Bytes())

	var out bytes.Buffer
	if err := filterArchive(&out, &in); err != nil {
		t.Fatal(err)
	}
	var got []string
	r := tar.NewReader(&out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%s has the time %s: the same packages would give another digest", h.Name, h.ModTime)
		}
		got = append(got, h.Name+" "+h.Linkname+" "+string(content))
	}
	want := []string{"./usr/sbin/  ", "./usr/sbin/nft  abc", "./lib/libc.so.6 libc-2.36.so "}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	if err := filterArchive(io.Discard, bytes.NewReader(complete[:len(complete)/3])); err == nil {
		t.Error("an archive that was cut off is accepted")
	}
}

func TestExtractPackagesNeedsAPackage(t *testing.T) {
	t.Setenv("REGISTRY_CACHE_TESTBED_CACHE", t.TempDir())
	if err := ExtractPackages(t.Context(), t.TempDir()+"/out.tar"); err == nil {
		t.Error("no error without a package")
	}
}
