// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/hack/ociimage"
)

func TestImageConfig(t *testing.T) {
	t.Parallel()
	programs := map[string]string{}
	for _, m := range modules() {
		for _, p := range m.programs {
			programs[p.name] = "/programs/" + p.name
		}
	}
	for ref, want := range map[string]ociimage.Config{
		"registry.k8s.io/kube-apiserver:v1.34.4": {
			Files:      []ociimage.File{{Path: "/usr/local/bin/kube-apiserver", Mode: 0o755, Source: "/programs/kube-apiserver"}},
			Entrypoint: []string{"/usr/local/bin/kube-apiserver"},
		},
		"registry.k8s.io/etcd:3.6.5-0": {
			Files:      []ociimage.File{{Path: "/usr/local/bin/etcd", Mode: 0o755, Source: "/programs/etcd"}},
			Entrypoint: []string{"/usr/local/bin/etcd"},
		},
		"registry.k8s.io/coredns/coredns:v1.12.1": {
			Files:      []ociimage.File{{Path: "/coredns", Mode: 0o755, Source: "/programs/coredns"}},
			Entrypoint: []string{"/coredns"},
		},
		"registry.k8s.io/pause:3.10.1": {
			Files:      []ociimage.File{{Path: "/pause", Mode: 0o755, Source: "/programs/pause"}},
			Entrypoint: []string{"/pause"},
		},
		"registry.k8s.io/kube-proxy:v1.34.4": {LayerTars: []string{"/proxy.tar"}, Entrypoint: []string{"/usr/local/bin/kube-proxy"}},
	} {
		got, err := imageConfig(ref, programs, "/proxy.tar")
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", ref, diff)
		}
	}
	const unknown = "registry.k8s.io/kube-new:v1"
	if _, err := imageConfig(unknown, programs, ""); err == nil || !strings.Contains(err.Error(), unknown) {
		t.Errorf("an image that the testbed does not know: %v, want an error that names it", err)
	}
}

func TestKubernetesFlags(t *testing.T) {
	t.Parallel()
	flags := kubernetesFlags("v1.34.4")
	for _, want := range []string{
		"-X k8s.io/component-base/version.gitVersion=v1.34.4", "-X k8s.io/component-base/version.gitMajor=1",
		"-X k8s.io/component-base/version.gitMinor=34", "-X k8s.io/client-go/pkg/version.gitVersion=v1.34.4",
	} {
		if !strings.Contains(flags+" ", want+" ") {
			t.Errorf("flags %q lack %q", flags, want)
		}
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	source := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(source, []byte("ELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := stream([]file{
		{path: "/usr/bin/program", mode: 0o755, source: source},
		{path: "/kind/version", mode: 0o644, content: []byte("v1.34.4")},
		{path: "/usr/sbin/iptables", link: "xtables-nft-multi"},
	})
	defer archive.Close()
	var got []string
	r := tar.NewReader(archive)
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
		got = append(got, strings.Join([]string{h.Name, h.FileInfo().Mode().String(), h.Linkname, string(content)}, "|"))
	}
	want := []string{"usr/bin/program|-rwxr-xr-x||ELF", "kind/version|-rw-r--r--||v1.34.4", "usr/sbin/iptables|Lrwxrwxrwx|xtables-nft-multi|"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}

	broken := stream([]file{{path: "/missing", source: source + ".missing"}})
	defer broken.Close()
	if _, err := io.Copy(io.Discard, broken); err == nil || !strings.Contains(err.Error(), "adding /missing") {
		t.Errorf("reading a file that does not exist: %v, want an error that names it", err)
	}
}

func TestReplaceKeepsTheOldFileUntilTheNewOneIsComplete(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "new", "file")
	put := func(content string, fail error) error {
		return replace(name, func(w io.Writer) error {
			if _, err := io.WriteString(w, content); err != nil {
				return err
			}
			return fail
		})
	}
	if err := put("complete", nil); err != nil {
		t.Fatal(err)
	}
	if err := put("half", io.ErrUnexpectedEOF); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want the writer's own", err)
	}
	content, err := os.ReadFile(name)
	if err != nil || string(content) != "complete" {
		t.Errorf("content %q, %v, want the first one", content, err)
	}
	left, err := os.ReadDir(filepath.Dir(name))
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
