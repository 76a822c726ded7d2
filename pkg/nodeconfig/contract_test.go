// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract/contracttest"
)

// configured returns the hosts.toml of upstream in config, "" if it has none.
func configured(config Config, upstream string) string {
	for _, file := range config.Files {
		if file.Path == HostsDirectory+"/"+upstream+"/hosts.toml" {
			return file.Content.Inline.Data
		}
	}
	return ""
}

func TestContract(t *testing.T) {
	t.Parallel()
	healthy := v1alpha3.RegistryCacheStatus{Upstream: "healthy.example.com", Endpoint: "http://10.96.0.99:5000", RemoteURL: "https://healthy.example.com"}
	alone, _ := New([]v1alpha3.RegistryCacheStatus{healthy}, "")
	check := func(t *testing.T, cache v1alpha3.RegistryCacheStatus, want string) {
		t.Helper()
		config, _ := New([]v1alpha3.RegistryCacheStatus{healthy, cache}, "")
		if configured(config, healthy.Upstream) == "" {
			t.Errorf("%+v disables the cache of %s", cache, healthy.Upstream)
		}
		got := configured(config, cache.Upstream)
		if want == "" && len(config.Files) != len(alone.Files) {
			t.Errorf("%+v is accepted: %d files, want %d", cache, len(config.Files), len(alone.Files))
		}
		if want != "" && !strings.Contains(got, want) {
			t.Errorf("%+v gives %q, want %q in it", cache, got, want)
		}
	}
	for _, tc := range contracttest.Hosts() {
		want := ""
		if tc.Valid() {
			want = Marker
		}
		check(t, v1alpha3.RegistryCacheStatus{Upstream: tc.Input, Endpoint: "http://10.96.0.10:5000", RemoteURL: "https://registry.example.com"}, want)
	}
	for _, tc := range contracttest.RemotePaths() {
		remote := ""
		if parsed, err := url.Parse(tc.Canonical); err == nil && tc.Valid() {
			remote = fmt.Sprintf("\nserver = \"%s://%s/v2%s\"\noverride_path = true\n\n[host.", parsed.Scheme, parsed.Host, parsed.Path)
		}
		check(t, v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: "http://10.96.0.10:5000", RemoteURL: tc.Input}, remote)
		check(t, v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: tc.Input, RemoteURL: "https://docker.io"}, "")
	}
	for _, tc := range contracttest.URLs() {
		remote, endpoint := "", ""
		if tc.Valid() {
			remote, endpoint = fmt.Sprintf("\nserver = %q\n", tc.Canonical), fmt.Sprintf("\n[host.%q]\n", tc.Canonical)
		}
		check(t, v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: "http://10.96.0.10:5000", RemoteURL: tc.Input}, remote)
		if !strings.HasPrefix(strings.ToLower(tc.Input), "https://") {
			check(t, v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Endpoint: tc.Input, RemoteURL: "https://docker.io"}, endpoint)
		}
	}
}
