// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

func TestUpstream(t *testing.T) {
	t.Parallel()
	const format = "must be host[:port], for example docker.io"
	longest := strings.Repeat(strings.Repeat("a", 49)+".", 4) + strings.Repeat("a", 50) + ":5000"
	for _, tc := range []struct{ upstream, want string }{
		{"docker.io", ""},
		{"registry.example.com:5000", ""},
		{"localhost:65535", ""},
		{"10.1.2.3", ""},
		{"", `caches[0].upstream: Required value: ` + format},
		{"https://docker.io", `caches[0].upstream: Invalid value: "https://docker.io": ` + format + `, without a scheme; write "docker.io"`},
		{"http://Reg.example.com:5000/v2/", `caches[0].upstream: Invalid value: "http://Reg.example.com:5000/v2/": ` + format + `, without a scheme; write "reg.example.com:5000"`},
		{"https://", `caches[0].upstream: Invalid value: "https://": ` + format + `, without a scheme`},
		{"docker.io/library", `caches[0].upstream: Invalid value: "docker.io/library": ` + format + `, without a path; write "docker.io"`},
		{"Docker.io", `caches[0].upstream: Invalid value: "Docker.io": ` + format + `, in lower case; write "docker.io"`},
		{"user:secret@docker.io", `caches[0].upstream: Invalid value: ` + format + `, without user name or password`},
		{"docker.io:", `caches[0].upstream: Invalid value: "docker.io:": ` + format + ` or registry.example.com:5000`},
		{"docker.io:0", `caches[0].upstream: Invalid value: "docker.io:0": ` + format + ` or registry.example.com:5000`},
		{"docker.io:65536", `caches[0].upstream: Invalid value: "docker.io:65536": ` + format + ` or registry.example.com:5000`},
		{"docker.io:0443", `caches[0].upstream: Invalid value: "docker.io:0443": ` + format + ` or registry.example.com:5000`},
		{"docker.io:https", `caches[0].upstream: Invalid value: "docker.io:https": ` + format + ` or registry.example.com:5000`},
		{longest, ""},
		{longest + "0", `caches[0].upstream: Invalid value: "` + longest + `0": must have at most 255 characters, because it is the name of a directory on the nodes`},
		{"docker_io", `caches[0].upstream: Invalid value: "docker_io": ` + format + ` or registry.example.com:5000`},
		{"[::1]:5000", `caches[0].upstream: Invalid value: "[::1]:5000": must be host[:port], for example registry.example.com:5000, with a DNS name instead of an IPv6 address, also in image references; only remoteURL may have an IPv6 address`},
	} {
		checkErrors(t, tc.upstream, v1alpha3.RegistryCache{Upstream: tc.upstream}, tc.want)
	}
}

func TestRemoteURL(t *testing.T) {
	t.Parallel()
	const format = "must be http or https with a host and an optional port, for example https://registry.example.com"
	for _, tc := range []struct{ remoteURL, want string }{
		{"https://docker.io", ""},
		{"https://registry-1.docker.io", ""},
		{"http://10.1.2.3:5000", ""},
		{"https://registry.example.com/", ""},
		{"", `caches[0].remoteURL: Invalid value: "": ` + format},
		{"registry.example.com", `caches[0].remoteURL: Invalid value: "registry.example.com": ` + format},
		{"ftp://registry.example.com", `caches[0].remoteURL: Invalid value: "ftp://registry.example.com": ` + format},
		{"https://", `caches[0].remoteURL: Invalid value: "https://": ` + format},
		{"https://registry.example.com/v2", `caches[0].remoteURL: Invalid value: "https://registry.example.com/v2": must have no path, or the beginning of a repository name in lower case of at most 128 bytes, without v2, for example https://registry.example.com/project`},
		{"https://registry.example.com/project", ""},
		{"https://user:secret@registry.example.com", `caches[0].remoteURL: Invalid value: ` + format + `, without user name or password`},
		{"https://registry.example.com?token=secret", `caches[0].remoteURL: Invalid value: ` + format + `, without query or fragment`},
		{"user:secret@registry.example.com", `caches[0].remoteURL: Invalid value: ` + format + `, without user name or password`},
		{"https://user:secret@registry.example.com:x", `caches[0].remoteURL: Invalid value: ` + format + `, without user name or password`},
	} {
		checkErrors(t, tc.remoteURL, v1alpha3.RegistryCache{Upstream: "a", RemoteURL: &tc.remoteURL}, tc.want)
	}
}

func TestVolumeAndGarbageCollection(t *testing.T) {
	t.Parallel()
	checkErrors(t, "storage class", v1alpha3.RegistryCache{Upstream: "a", Volume: &v1alpha3.Volume{StorageClassName: new("gp3")}}, "")
	checkErrors(t, "bad storage class", v1alpha3.RegistryCache{Upstream: "a", Volume: &v1alpha3.Volume{StorageClassName: new("")}},
		`caches[0].volume.storageClassName: Invalid value: "": must be the name of a StorageClass: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`)
	for ttl, want := range map[time.Duration]string{
		0:            "",
		time.Hour:    "",
		-time.Second: `caches[0].garbageCollection.ttl: Invalid value: "-1s": must not be negative, for example 168h; 0s means that nothing is ever deleted`,
	} {
		checkErrors(t, ttl.String(), v1alpha3.RegistryCache{
			Upstream: "a", GarbageCollection: &v1alpha3.GarbageCollection{TTL: &metav1.Duration{Duration: ttl}},
		}, want)
	}
}

func TestCollidingNames(t *testing.T) {
	t.Parallel()
	config := &v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{
		{Upstream: "ghcr.io"}, {Upstream: "my.registry.io"}, {Upstream: "my-registry.io"}, {Upstream: "ghcr.io"},
	}}
	want := []string{
		`providerConfig.caches[2].upstream: Invalid value: "my-registry.io": its objects in the Shoot would be named "registry-my-registry-io" like those of providerConfig.caches[1].upstream "my.registry.io"; give the cache of "my-registry.io" a serviceNameSuffix (a field of v1alpha3)`,
		`providerConfig.caches[3].upstream: Duplicate value: "ghcr.io"`,
	}
	if diff := cmp.Diff(want, messages(ValidateRegistryConfig(config, field.NewPath("providerConfig")))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// With a name of its own, each of them may stay.
func TestSuffixResolvesCollision(t *testing.T) {
	t.Parallel()
	for _, caches := range [][]v1alpha3.RegistryCache{
		{{Upstream: "my.registry.io"}, {Upstream: "my-registry.io", ServiceNameSuffix: new("mine")}},
		{{Upstream: "my.registry.io", ServiceNameSuffix: new("mine")}, {Upstream: "my-registry.io"}},
		{{Upstream: "reg.io:5000", ServiceNameSuffix: new("a")}, {Upstream: "reg.io-5000", ServiceNameSuffix: new("b")}},
		{{Upstream: "a", ServiceNameSuffix: new(strings.Repeat("s", 54))}, {Upstream: "b", ServiceNameSuffix: new(strings.Repeat("s", 53))}},
	} {
		if errs := ValidateRegistryConfig(&v1alpha3.RegistryConfig{Caches: caches}, nil); len(errs) > 0 {
			t.Errorf("%s and %s: %v", caches[0].ServiceName(), caches[1].ServiceName(), errs)
		}
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	for _, proxy := range []v1alpha3.Proxy{
		{},
		{HTTPProxy: new("http://10.1.2.3"), HTTPSProxy: new("https://proxy.example.com:3128/")},
		{NoProxy: new("*")},
		{NoProxy: new(" .example.com, example.org:5000 ,*.Example.net,10.1.2.3,10.1.2.3:443,10.0.0.0/8,fd00::/8,fd00::1,[fd00::1]:443")},
	} {
		checkErrors(t, fmt.Sprint(proxy), v1alpha3.RegistryCache{Upstream: "a", Proxy: &proxy}, "")
	}
	checkErrors(t, "blank reference", v1alpha3.RegistryCache{Upstream: "a", Proxy: &v1alpha3.Proxy{HTTPProxy: new("http://proxy"), SecretReferenceName: new(" ")}},
		`caches[0].proxy.secretReferenceName: Invalid value: " ": must be the name of an entry of spec.resources, or be left out`)
	checkErrors(t, "credentials without a proxy", v1alpha3.RegistryCache{Upstream: "a", Proxy: &v1alpha3.Proxy{NoProxy: new("a"), SecretReferenceName: new("proxy")}},
		"caches[0].proxy.secretReferenceName: Forbidden: credentials need a proxy: set httpProxy or httpsProxy, or remove them")
	for _, noProxy := range []string{"", ",", "a,", "**", "*a", "..a", "a b", "a:0", "http://a", "10.0.0.0/33", "$(HOME)", "[fd00::1]"} {
		entry := 1
		if noProxy == "a," {
			entry = 2
		}
		checkErrors(t, noProxy, v1alpha3.RegistryCache{Upstream: "a", Proxy: &v1alpha3.Proxy{NoProxy: &noProxy}}, fmt.Sprintf(
			"caches[0].proxy.noProxy: Invalid value: %q: entry %d must be a domain, an IP address or an IP range; separate entries by commas, for example .example.com,10.0.0.0/8", noProxy, entry))
	}
}

// checkErrors validates a config of one cache and wants one error, or none if want is "".
func checkErrors(t *testing.T, input string, cache v1alpha3.RegistryCache, want string) {
	t.Helper()
	var wanted []string
	if want != "" {
		wanted = []string{want}
	}
	got := messages(ValidateRegistryConfig(&v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{cache}}, nil))
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("%q: -want +got:\n%s", input, diff)
	}
}

func messages(errs field.ErrorList) []string {
	var all []string
	for _, err := range errs {
		all = append(all, err.Error())
	}
	return all
}
