// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
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
	config, skipped := New(documentCaches(), "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
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
	want, skipped := New(caches, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	slices.Reverse(caches)
	given := slices.Clone(caches)
	got, skipped := New(caches, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
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
	config, skipped := New(nil, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	if len(config.Files) != 0 || len(config.Units) != 0 {
		t.Errorf("got %d files and %d units for no caches, want none", len(config.Files), len(config.Units))
	}
}

// An invalid cache does not affect the others, and the reason names it, the field and the rule.
func TestNewSkips(t *testing.T) {
	t.Parallel()
	const url = "must be http or https with a host and an optional port, for example "
	good := v1alpha3.RegistryCacheStatus{Upstream: "quay.io", Endpoint: "http://10.96.0.12:5000", RemoteURL: "https://quay.io"}
	want, skipped := New([]v1alpha3.RegistryCacheStatus{good}, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	for _, tc := range []struct {
		change func(*v1alpha3.RegistryCacheStatus)
		want   string
	}{
		{func(c *v1alpha3.RegistryCacheStatus) { c.Upstream = "" }, "upstream: must be host[:port], for example docker.io or registry.example.com:5000"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.Upstream = ".." }, "upstream: must be host[:port], for example docker.io or registry.example.com:5000"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.Upstream, c.Endpoint = "quay.io", "http://10.96.0.13:5000" }, "upstream: another cache has the same"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "" }, "endpoint: " + url + "https://10.96.0.10:5000"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "http://a\n" }, "endpoint: " + url + "https://10.96.0.10:5000"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.Endpoint = "https://10.96.0.10:5000" }, "CA bundle: one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.RemoteURL = "https://ghcr.io/v2" }, "remoteURL: must have no path, or the beginning of a repository name in lower case of at most 128 bytes, without v2, for example https://registry.example.com/project"},
		{func(c *v1alpha3.RegistryCacheStatus) { c.RemoteURL = "https://me:secret@ghcr.io" }, "remoteURL: " + url + "https://registry.example.com, without user name or password"},
	} {
		bad := v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: "http://10.96.0.10:5000", RemoteURL: "https://registry-1.docker.io"}
		tc.change(&bad)
		got, skipped := New([]v1alpha3.RegistryCacheStatus{good, bad}, "")
		if len(skipped) != 1 || skipped[0].Upstream != bad.Upstream || skipped[0].Reason.Error() != tc.want {
			t.Errorf("%+v: skipped %v, want %s", bad, skipped, tc.want)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%+v: the other cache is affected (-want +got):\n%s", bad, diff)
		}
	}
}

// Of several caches with the same upstream, one is configured: a valid one, whatever their order is.
func TestNewWithDuplicates(t *testing.T) {
	t.Parallel()
	valid := v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: "http://10.96.0.11:5000", RemoteURL: "https://registry-1.docker.io"}
	invalid, other := valid, valid
	invalid.Endpoint, other.Endpoint = "http://10.96.0.10:5000/v2", "http://10.96.0.12:5000"
	want, skipped := New([]v1alpha3.RegistryCacheStatus{valid}, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	for _, caches := range [][]v1alpha3.RegistryCacheStatus{{invalid, valid, other}, {other, valid, invalid}, {valid, other, invalid}} {
		got, skipped := New(caches, "")
		if len(skipped) != 2 {
			t.Errorf("skipped %v, want two of three", skipped)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", caches, diff)
		}
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
