// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

var v1alpha1Header = header("v1alpha1")

func TestDecode(t *testing.T) {
	t.Parallel()
	cache := func(upstream, remoteURL, size string, ttl time.Duration) v1alpha3.RegistryCache {
		return v1alpha3.RegistryCache{
			Upstream:  upstream,
			RemoteURL: &remoteURL,
			Volume:    &v1alpha3.Volume{Size: new(resource.MustParse(size))},
			GarbageCollection: &v1alpha3.GarbageCollection{
				TTL: &metav1.Duration{Duration: ttl}, HighWatermark: new(int32(90)), LowWatermark: new(int32(80)),
			},
			HTTP:             &v1alpha3.HTTP{TLS: new(true)},
			HighAvailability: &v1alpha3.HighAvailability{Enabled: new(false)},
		}
	}
	const week = 168 * time.Hour
	for _, tc := range []struct {
		name, caches string
		want         []v1alpha3.RegistryCache
	}{
		{
			name:   "the document's example",
			caches: "caches:\n- upstream: docker.io\n  size: 100Gi\n- upstream: ghcr.io\n- upstream: quay.io\n  garbageCollection:\n    enabled: false\n",
			want: []v1alpha3.RegistryCache{
				cache("docker.io", "https://registry-1.docker.io", "100Gi", week),
				cache("ghcr.io", "https://ghcr.io", "10Gi", week),
				cache("quay.io", "https://quay.io", "10Gi", 0),
			},
		},
		{
			name:   "garbage collection on in each way of saying so",
			caches: "caches:\n- upstream: a\n  garbageCollection: {}\n- upstream: b\n  garbageCollection: null\n- upstream: c\n  garbageCollection: {enabled: true}\n- upstream: d\n  garbageCollection: {enabled: null}\n",
			want: []v1alpha3.RegistryCache{
				cache("a", "https://a", "10Gi", week), cache("b", "https://b", "10Gi", week),
				cache("c", "https://c", "10Gi", week), cache("d", "https://d", "10Gi", week),
			},
		},
		{
			name:   "host with port, size without unit",
			caches: "caches:\n- upstream: 10.1.2.3:5000\n  size: 1073741824\n",
			want:   []v1alpha3.RegistryCache{cache("10.1.2.3:5000", "https://10.1.2.3:5000", "1073741824", week)},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, errs := Decode(toJSON(t, v1alpha1Header+tc.caches), field.NewPath("providerConfig"))
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			want := &v1alpha3.RegistryConfig{
				TypeMeta: metav1.TypeMeta{APIVersion: v1alpha3.APIVersion, Kind: "RegistryConfig"},
				Caches:   tc.want,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestDecodeNewerVersions(t *testing.T) {
	t.Parallel()
	// defaulted has what every cache has that says nothing about it.
	defaulted := func(cache v1alpha3.RegistryCache) v1alpha3.RegistryCache {
		all := &v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{cache}}
		v1alpha3.SetDefaults(all)
		return all.Caches[0]
	}
	off := &v1alpha3.GarbageCollection{TTL: &metav1.Duration{}}
	for _, tc := range []struct {
		name, version, cache string
		want                 v1alpha3.RegistryCache
	}{
		{"upstream alone", "v1alpha2", "{upstream: docker.io}", v1alpha3.RegistryCache{Upstream: "docker.io"}},
		{"empty structs", "v1alpha2", "{upstream: a, volume: {}, garbageCollection: {}}", v1alpha3.RegistryCache{Upstream: "a"}},
		{"everything", "v1alpha2", "{upstream: a, volume: {size: 20Gi, storageClassName: fast}, garbageCollection: {enabled: false}, secretReferenceName: ours}", v1alpha3.RegistryCache{
			Upstream: "a", GarbageCollection: off,
			Volume:              &v1alpha3.Volume{Size: new(resource.MustParse("20Gi")), StorageClassName: new("fast")},
			SecretReferenceName: new("ours"),
		}},
		{"garbage collection on", "v1alpha2", "{upstream: a, garbageCollection: {enabled: true}}", v1alpha3.RegistryCache{Upstream: "a"}},

		{"upstream alone", "v1alpha3", "{upstream: docker.io}", v1alpha3.RegistryCache{Upstream: "docker.io"}},
		// In the public extension the first turns garbage collection off for good, the second TLS.
		{"garbageCollection: {}", "v1alpha3", "{upstream: a, garbageCollection: {}}", v1alpha3.RegistryCache{Upstream: "a"}},
		{"http: {}", "v1alpha3", "{upstream: a, http: {}}", v1alpha3.RegistryCache{Upstream: "a"}},
		{"other empty structs", "v1alpha3", "{upstream: a, volume: {}, proxy: {}, highAvailability: {}}", v1alpha3.RegistryCache{Upstream: "a", Proxy: &v1alpha3.Proxy{}}},
		{"nulls", "v1alpha3", "{upstream: a, remoteURL: null, volume: {size: null}, garbageCollection: {ttl: null, highWatermark: null}, http: {tls: null}}", v1alpha3.RegistryCache{Upstream: "a"}},
		{"watermarks alone leave the ttl", "v1alpha3", "{upstream: a, garbageCollection: {highWatermark: 50}}", v1alpha3.RegistryCache{
			Upstream: "a", GarbageCollection: &v1alpha3.GarbageCollection{HighWatermark: new(int32(50)), LowWatermark: new(int32(40))},
		}},
		{"everything that is supported", "v1alpha3", `
  upstream: registry.example.com:5000
  remoteURL: http://10.1.2.3
  volume: {size: 1Ti, storageClassName: fast}
  garbageCollection: {ttl: 0s, highWatermark: 70, lowWatermark: 20}
  secretReferenceName: our-credentials
  caBundleSecretReferenceName: our-roots
  proxy: {httpProxy: "http://proxy:3128", httpsProxy: "http://proxy:3129", noProxy: "10.0.0.0/8,.example.com", secretReferenceName: our-proxy}
  http: {tls: false}
  highAvailability: {enabled: true}
  serviceNameSuffix: ours`, v1alpha3.RegistryCache{
			Upstream:  "registry.example.com:5000",
			HTTP:      &v1alpha3.HTTP{TLS: new(false)},
			RemoteURL: new("http://10.1.2.3"),
			Volume:    &v1alpha3.Volume{Size: new(resource.MustParse("1Ti")), StorageClassName: new("fast")},
			GarbageCollection: &v1alpha3.GarbageCollection{
				TTL: &metav1.Duration{}, HighWatermark: new(int32(70)), LowWatermark: new(int32(20)),
			},
			Proxy:                       &v1alpha3.Proxy{HTTPProxy: new("http://proxy:3128"), HTTPSProxy: new("http://proxy:3129"), NoProxy: new("10.0.0.0/8,.example.com"), SecretReferenceName: new("our-proxy")},
			HighAvailability:            &v1alpha3.HighAvailability{Enabled: new(true)},
			SecretReferenceName:         new("our-credentials"),
			CABundleSecretReferenceName: new("our-roots"),
			ServiceNameSuffix:           new("ours"),
		}},
	} {
		got, errs := Decode(toJSON(t, header(tc.version)+"caches:\n- "+tc.cache), field.NewPath("providerConfig"))
		if len(errs) > 0 {
			t.Errorf("%s, %s: %v", tc.version, tc.name, errs)
			continue
		}
		want := &v1alpha3.RegistryConfig{
			TypeMeta: metav1.TypeMeta{APIVersion: v1alpha3.APIVersion, Kind: "RegistryConfig"},
			Caches:   []v1alpha3.RegistryCache{defaulted(tc.want)},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s, %s: -want +got:\n%s", tc.version, tc.name, diff)
		}
	}
}

func TestAcceptedUpdates(t *testing.T) {
	t.Parallel()
	v1, v2, v3 := header("v1alpha1"), header("v1alpha2"), header("v1alpha3")
	for _, tc := range []struct{ name, old, config string }{
		{"nothing changed", v3 + "caches: [{upstream: docker.io}]", v3 + "caches: [{upstream: docker.io}]"},
		{"defaults written out, in another version", v1 + "caches: [{upstream: docker.io}]",
			v3 + "caches: [{upstream: docker.io, remoteURL: 'https://registry-1.docker.io', volume: {size: 10240Mi}, garbageCollection: {ttl: 168h}}]"},
		{"back to an older version", v3 + "caches: [{upstream: a, volume: {size: 10Gi}}]", v2 + "caches: [{upstream: a}]"},
		{"larger volume", v1 + "caches: [{upstream: a, size: 10Gi}]", v1 + "caches: [{upstream: a, size: 11Gi}]"},
		{"garbage collection off", v1 + "caches: [{upstream: a}]", v1 + "caches: [{upstream: a, garbageCollection: {enabled: false}}]"},
		{"garbage collection on again", v3 + "caches: [{upstream: a, garbageCollection: {ttl: 0s}}]", v3 + "caches: [{upstream: a, garbageCollection: {ttl: 1h}}]"},
		{"watermarks and proxy", v3 + "caches: [{upstream: a}]", v3 + "caches: [{upstream: a, garbageCollection: {lowWatermark: 5}, proxy: {httpsProxy: 'http://p'}}]"},
		// Canonical addresses are compared, so another spelling of the same host is not a change.
		{"remote URL spelled differently", v3 + "caches: [{upstream: a, remoteURL: 'HTTPS://Registry.Example.com:5000/#'}]", v3 + "caches: [{upstream: a, remoteURL: 'https://registry.example.com:5000'}]"},
		{"spelling of earlier releases", v3 + "caches: [{upstream: a, remoteURL: 'https://b/'}]", v3 + "caches: [{upstream: a, remoteURL: 'hTTps://b#'}]"},
		{"IPv6 spelled differently", v3 + "caches: [{upstream: a, remoteURL: 'https://[FD00:0::1]:5000'}]", v3 + "caches: [{upstream: a, remoteURL: 'https://[fd00::1]:5000/'}]"},
		{"default given in upper case", v3 + "caches: [{upstream: docker.io}]", v3 + "caches: [{upstream: docker.io, remoteURL: 'HTTPS://REGISTRY-1.DOCKER.IO/'}]"},
		{"upstream speaks https now", v3 + "caches: [{upstream: a, remoteURL: 'http://a'}]", v3 + "caches: [{upstream: a}]"},
		{"caches come and go", v3 + "caches: [{upstream: a, volume: {size: 1Ti}}]", v3 + "caches: [{upstream: b, volume: {size: 1Gi}}]"},
		{"order changed", v3 + "caches: [{upstream: a, serviceNameSuffix: x}, {upstream: b}]", v3 + "caches: [{upstream: b}, {upstream: a, serviceNameSuffix: x}]"},
		{"replaced by a cache with a name of its own", v1 + "caches: [{upstream: my.reg.io}]", v3 + "caches: [{upstream: my-reg.io, serviceNameSuffix: x}]"},
		{"what was there is no config", "volume", v1 + "caches: [{upstream: a}]"},
		{"what was there is of no version", "apiVersion: v0\nkind: RegistryConfig", v1 + "caches: [{upstream: a}]"},
		{"what was there is not valid", v1 + "caches: [{upstream: a, size: 0}, {upstream: a}, {upstream: 'https://a'}]", v1 + "caches: [{upstream: a}]"},
	} {
		if _, errs := decode(toJSON(t, tc.config), toJSON(t, tc.old), field.NewPath("providerConfig")); len(errs) > 0 {
			t.Errorf("%s: %v", tc.name, errs)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	t.Parallel()
	const fields = "the fields are kind, apiVersion, caches[].upstream, caches[].size, caches[].garbageCollection.enabled"
	for _, tc := range []struct {
		name, config string
		want         []string
	}{
		{"empty", "", []string{`providerConfig: Required value: must be a RegistryConfig of registry.extensions.gardener.cloud/v1alpha3`}},
		{"null", "null", []string{`providerConfig.apiVersion: Required value: must be one of registry.extensions.gardener.cloud/v1alpha3, registry.extensions.gardener.cloud/v1alpha2, registry.extensions.gardener.cloud/v1alpha1`}},
		{"no object", "[1]", []string{`providerConfig: Invalid value: "[1]": must be an object`}},
		{"no version", "kind: RegistryConfig", []string{`providerConfig.apiVersion: Required value: must be one of registry.extensions.gardener.cloud/v1alpha3, registry.extensions.gardener.cloud/v1alpha2, registry.extensions.gardener.cloud/v1alpha1`}},
		{"number as version", "apiVersion: 1", []string{`providerConfig.apiVersion: Invalid value: "1": must be a string`}},
		{"other version", "apiVersion: registry.extensions.gardener.cloud/v1beta1\nkind: RegistryConfig", []string{
			`providerConfig.apiVersion: Unsupported value: "registry.extensions.gardener.cloud/v1beta1": supported values: "registry.extensions.gardener.cloud/v1alpha3", "registry.extensions.gardener.cloud/v1alpha2", "registry.extensions.gardener.cloud/v1alpha1"`,
		}},
		{"no kind", "apiVersion: registry.extensions.gardener.cloud/v1alpha1", []string{`providerConfig.kind: Required value: must be RegistryConfig`}},
		{"other kind", "apiVersion: registry.extensions.gardener.cloud/v1alpha1\nkind: MirrorConfig", []string{
			`providerConfig.kind: Unsupported value: "MirrorConfig": supported values: "RegistryConfig"`,
		}},
		{"no caches", v1alpha1Header, []string{`providerConfig.caches: Required value: at least one cache must be given, for example {upstream: docker.io}`}},
		{"empty caches", v1alpha1Header + "caches: []", []string{`providerConfig.caches: Required value: at least one cache must be given, for example {upstream: docker.io}`}},
		{"caches no list", v1alpha1Header + "caches: {upstream: docker.io}", []string{`providerConfig.caches: Invalid value: "{\"upstream\":\"docker.io\"}": must be a list`}},
		{"cache no object", v1alpha1Header + "caches: [docker.io]", []string{`providerConfig.caches[0]: Invalid value: "docker.io": must be an object`}},
		{"password in a cache that is no object", v1alpha1Header + "caches: ['https://user:secret@docker.io']", []string{`providerConfig.caches[0]: Invalid value: must be an object`}},
		{"password in a list of upstreams", v1alpha1Header + "caches: [{upstream: ['user:secret@docker.io']}]", []string{`providerConfig.caches[0].upstream: Invalid value: must be a string`}},
		{"cache null", v1alpha1Header + "caches: [null]", []string{`providerConfig.caches[0].upstream: Required value: must be host[:port], for example docker.io`}},
		{"unknown field at the top", v1alpha1Header + "caches: [{upstream: a}]\nregistries: []", []string{`providerConfig.registries: Forbidden: unknown field; ` + fields}},
		{"unknown fields below", v1alpha1Header + "caches:\n- upstream: a\n- upstream: b\n  Size: 1Gi\n  garbageCollection: {ttl: 1h}", []string{
			`providerConfig.caches[1].Size: Forbidden: unknown field; ` + fields,
			`providerConfig.caches[1].garbageCollection.ttl: Forbidden: unknown field; ` + fields,
		}},
		{"field of a later version", v1alpha1Header + "caches: [{upstream: a, volume: {size: 1Gi}}]", []string{`providerConfig.caches[0].volume: Forbidden: unknown field; ` + fields}},
		{"number as upstream", v1alpha1Header + "caches: [{upstream: a}, {upstream: 5}]", []string{`providerConfig.caches[1].upstream: Invalid value: "5": must be a string`}},
		{"word as switch", v1alpha1Header + "caches: [{upstream: a, garbageCollection: {enabled: maybe}}]", []string{
			`providerConfig.caches[0].garbageCollection.enabled: Invalid value: "maybe": must be true or false`,
		}},
		{"word as size", v1alpha1Header + "caches: [{upstream: a, size: big}]", []string{`providerConfig.caches[0].size: Invalid value: "big": must be a quantity, for example 10Gi`}},
		{"long word as size", v1alpha1Header + "caches: [{upstream: a, size: " + strings.Repeat("9x", 100) + "}]", []string{
			`providerConfig.caches[0].size: Invalid value: "` + strings.Repeat("9x", 50) + `…": must be a quantity, for example 10Gi`,
		}},
		{"size 0", v1alpha1Header + "caches: [{upstream: a, size: 0}]", []string{`providerConfig.caches[0].size: Invalid value: "0": must be greater than 0, for example 10Gi`}},
		{"negative size", v1alpha1Header + "caches: [{upstream: a, size: -1Gi}]", []string{`providerConfig.caches[0].size: Invalid value: "-1Gi": must be greater than 0, for example 10Gi`}},
		{"fraction of a byte", v1alpha1Header + "caches: [{upstream: a, size: 500m}]", []string{`providerConfig.caches[0].size: Invalid value: "500m": must be a whole number of bytes, for example 10Gi`}},
		{"scheme", v1alpha1Header + "caches: [{upstream: 'https://docker.io/'}]", []string{
			`providerConfig.caches[0].upstream: Invalid value: "https://docker.io/": must be host[:port], for example docker.io, without a scheme; write "docker.io"`,
		}},
		{"everything at once", v1alpha1Header + "caches: [{upstream: '', size: 0}, {upstream: a}, {upstream: a}]", []string{
			`providerConfig.caches[0].upstream: Required value: must be host[:port], for example docker.io`,
			`providerConfig.caches[0].size: Invalid value: "0": must be greater than 0, for example 10Gi`,
			`providerConfig.caches[2].upstream: Duplicate value: "a"`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var raw []byte
			if tc.config != "" {
				raw = toJSON(t, tc.config)
			}
			config, errs := Decode(raw, field.NewPath("providerConfig"))
			if config != nil {
				t.Errorf("got a config beside errors: %v", config)
			}
			if diff := cmp.Diff(tc.want, messages(errs)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// YAML cannot say these, JSON can.
func TestDecodeErrorsOfJSON(t *testing.T) {
	t.Parallel()
	const header = `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig",`
	for _, tc := range []struct{ raw, want string }{
		{header + `"caches":[{"upstream":"a","upstream":"b"}]}`, `spec.extensions[0].providerConfig.caches[0].upstream: Forbidden: the field is given twice; remove one of the two`},
		{`{"apiVersion"`, `spec.extensions[0].providerConfig: Invalid value: "{\"apiVersion\"": must be an object`},
	} {
		_, errs := Decode([]byte(tc.raw), field.NewPath("spec", "extensions").Index(0).Child("providerConfig"))
		if diff := cmp.Diff([]string{tc.want}, messages(errs)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tc.raw, diff)
		}
	}
}

func TestDecodeStatus(t *testing.T) {
	t.Parallel()
	got, err := DecodeStatus(toJSON(t, `
apiVersion: registry.extensions.gardener.cloud/v1alpha3
kind: RegistryStatus
caches:
- {upstream: docker.io, endpoint: "http://10.96.0.20:5000", remoteURL: "https://registry-1.docker.io", clusterIP: 10.96.0.20, fromTheFuture: 1}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := NewStatus([]v1alpha3.RegistryCacheStatus{{
		Upstream: "docker.io", Endpoint: "http://10.96.0.20:5000", RemoteURL: "https://registry-1.docker.io", ClusterIP: "10.96.0.20",
	}})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	for raw, want := range map[string]string{
		`{"apiVersion":"registry.extensions.gardener.cloud/v1","kind":"RegistryStatus"}`: `decoding provider status: it is "registry.extensions.gardener.cloud/v1" "RegistryStatus", want registry.extensions.gardener.cloud/v1alpha3 RegistryStatus`,
		`{}`: `decoding provider status: it is "" "", want registry.extensions.gardener.cloud/v1alpha3 RegistryStatus`,
		``:   `decoding provider status: unexpected end of JSON input`,
	} {
		if _, err := DecodeStatus([]byte(raw)); err == nil || err.Error() != want {
			t.Errorf("DecodeStatus(%s): got error %v, want %s", raw, err, want)
		}
	}
}

func messages(errs field.ErrorList) []string {
	var all []string
	for _, err := range errs {
		all = append(all, err.Error())
	}
	return all
}

func toJSON(t *testing.T, text string) []byte {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
