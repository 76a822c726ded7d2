// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

func documentCaches() []v1alpha3.RegistryCacheStatus {
	return []v1alpha3.RegistryCacheStatus{
		{Upstream: "quay.io", Endpoint: "http://10.96.0.12:5000", RemoteURL: "https://quay.io"},
		{Upstream: "docker.io", Endpoint: "http://10.96.0.10:5000", RemoteURL: "https://registry-1.docker.io", Engine: "registry-cache"},
		{Upstream: "registry.example.com:8443", Endpoint: "http://[fd00:10::a]:5000", RemoteURL: "http://registry.example.com:8443/"},
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	config, err := New(documentCaches(), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Files[0]; got.Path != ScriptPath || *got.Permissions != 0o755 || got.Content.Inline.Data != script {
		t.Errorf("first file is %s with mode %o, want the script", got.Path, *got.Permissions)
	}
	config.Files[0].Content.Inline.Data = "the script\n"
	got, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "three-caches.yaml", got)
}

// A Shoot owner who sorts the list of caches must not restart a unit on every node.
func TestNewDoesNotDependOnTheOrder(t *testing.T) {
	t.Parallel()
	caches := documentCaches()
	want, err := New(caches, "")
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(caches)
	given := slices.Clone(caches)
	got, err := New(caches, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("other order, other configuration (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(given, caches); diff != "" {
		t.Errorf("New changed its argument (-want +got):\n%s", diff)
	}
}

func TestNewWithoutCaches(t *testing.T) {
	t.Parallel()
	config, err := New(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Files) != 0 || len(config.Units) != 0 {
		t.Errorf("got %d files and %d units for no caches, want none", len(config.Files), len(config.Units))
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	valid := v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: "http://10.96.0.10:5000", RemoteURL: "https://registry-1.docker.io"}
	for name, tc := range map[string]struct {
		change func(*v1alpha3.RegistryCacheStatus)
		want   string
	}{
		"no upstream":          {func(c *v1alpha3.RegistryCacheStatus) { c.Upstream = "" }, `upstream "": upstream must be host[:port]`},
		"upstream with path":   {func(c *v1alpha3.RegistryCacheStatus) { c.Upstream = "docker.io/library" }, "upstream must be host[:port]"},
		"upstream leaves":      {func(c *v1alpha3.RegistryCacheStatus) { c.Upstream = ".." }, "upstream must be host[:port]"},
		"no endpoint":          {func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "" }, "upstream docker.io: endpoint must be http[s]://host[:port] without a path"},
		"endpoint with quote":  {func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "http://a\"b" }, "endpoint must be"},
		"endpoint, two lines":  {func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "http://a\n" }, "endpoint must be"},
		"endpoint, no scheme":  {func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "10.96.0.10" }, "endpoint must be"},
		"remote URL with path": {func(c *v1alpha3.RegistryCacheStatus) { c.RemoteURL = "https://quay.io/v2" }, "remoteURL must be"},
		"remote URL with user": {func(c *v1alpha3.RegistryCacheStatus) { c.RemoteURL = "https://me:secret@quay.io" }, "remoteURL must be"},
		"remote URL, other":    {func(c *v1alpha3.RegistryCacheStatus) { c.RemoteURL = "ftp://quay.io" }, "remoteURL must be"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache := valid
			tc.change(&cache)
			_, err := New([]v1alpha3.RegistryCacheStatus{cache}, "")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got error %v, want one with %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
	if _, err := New([]v1alpha3.RegistryCacheStatus{valid, valid}, ""); err == nil || !strings.Contains(err.Error(), "docker.io: it has two caches") {
		t.Errorf("got error %v for the same upstream twice", err)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with -update to write it", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}
