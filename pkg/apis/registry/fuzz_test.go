// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha2"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/apis/registry/validation"
)

// seeds are providerConfigs of all versions, good and bad.
var seeds = []string{
	`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"docker.io","size":"100Gi"},{"upstream":"quay.io:5000","garbageCollection":{"enabled":false}}]}`,
	`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"https://u:p@docker.io/x","size":"1e30"},null]}`,
	`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha2","kind":"RegistryConfig","caches":[{"upstream":"docker.io","volume":{"size":"20Gi","storageClassName":"fast"},"garbageCollection":{"enabled":true}},{"upstream":"a","volume":{},"secretReferenceName":"s"}]}`,
	`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[{"upstream":"registry.example.com:5000","remoteURL":"http://10.1.2.3","volume":{"size":"1Ti","storageClassName":"fast"},"garbageCollection":{"ttl":"24h","highWatermark":70,"lowWatermark":20},"proxy":{"httpProxy":"http://proxy:3128","httpsProxy":"http://proxy","noProxy":"10.0.0.0/8,.example.com"},"http":{"tls":false},"highAvailability":{"enabled":false},"serviceNameSuffix":"ours"}]}`,
	`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[{"upstream":"my.reg.io"},{"upstream":"my-reg.io","serviceNameSuffix":"x","garbageCollection":{"highWatermark":5},"http":{},"proxy":{},"caBundleSecretReferenceName":"c"}]}`,
	`{"apiVersion":1}`, `[]`, `null`, `{`, ``,
}

// Whatever a Shoot owner writes is refused with a path, or is a config with which everything behind the decoder can work.
func FuzzDecode(f *testing.F) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := field.NewPath("providerConfig")
		config, errs := Decode(raw, path)
		if (config == nil) != (len(errs) > 0) {
			t.Fatalf("config %v beside errors %v", config, errs)
		}
		for _, err := range errs {
			if !strings.HasPrefix(err.Field, "providerConfig") {
				t.Errorf("error without the field's path: %v", err)
			}
		}
		if config == nil {
			return
		}
		if again := validation.ValidateRegistryConfig(config, path); len(again) > 0 {
			t.Errorf("accepted, then refused: %v", again)
		}
		var names []string
		for _, cache := range config.Caches {
			if slices.Contains(names, cache.ObjectName()) || slices.Contains(names, cache.ServiceName()) {
				t.Errorf("%q has the name of another cache", cache.Upstream)
			}
			names = append(names, cache.ObjectName(), cache.ServiceName())
		}

		written, err := json.Marshal(config)
		if err != nil {
			t.Fatal(err)
		}
		same, errs := decode(written, raw, path)
		if len(errs) > 0 {
			t.Fatalf("the same in v1alpha3, %s, is refused: %v", written, errs)
		}
		if !equality.Semantic.DeepEqual(config, same) {
			t.Errorf("changed by writing it in v1alpha3: %s", cmp.Diff(config, same))
		}
	})
}

// Whichever config replaces another one, the path of what cannot be changed is told, or all that must stay has stayed.
func FuzzUpdate(f *testing.F) {
	for i, seed := range seeds {
		f.Add([]byte(seed), []byte(seeds[(i+1)%len(seeds)]))
	}
	f.Fuzz(func(t *testing.T, raw, oldRaw []byte) {
		config, errs := decode(raw, oldRaw, field.NewPath("providerConfig"))
		for _, err := range errs {
			if !strings.HasPrefix(err.Field, "providerConfig") {
				t.Errorf("error without the field's path: %v", err)
			}
		}
		old, _ := Decode(oldRaw, nil)
		if len(errs) > 0 || old == nil {
			return
		}
		for _, before := range old.Caches {
			for _, cache := range config.Caches {
				if sameName, same := before.ObjectName() == cache.ObjectName(), before.Upstream == cache.Upstream; sameName != same {
					t.Errorf("%q was %s, now %q is %s", before.Upstream, before.ObjectName(), cache.Upstream, cache.ObjectName())
				} else if same && (cache.Volume.Size.Cmp(*before.Volume.Size) < 0 || !equality.Semantic.DeepEqual(before.Volume.StorageClassName, cache.Volume.StorageClassName)) {
					t.Errorf("volume of %q was %v, now %v", cache.Upstream, before.Volume, cache.Volume)
				}
			}
		}
	})
}

// What can be decoded at all, valid or not, can be converted to v1alpha3 and loses nothing by it, and filling in the
// defaults a second time changes nothing.
func FuzzConvert(f *testing.F) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		roundTrip(t, raw, fromV1alpha1, toV1alpha1)
		roundTrip(t, raw, fromV1alpha2, toV1alpha2)
		same := func(in *v1alpha3.RegistryConfig) *v1alpha3.RegistryConfig { return in }
		roundTrip(t, raw, same, same)
	})
}

func roundTrip[T any](t *testing.T, raw []byte, from func(*T) *v1alpha3.RegistryConfig, to func(*v1alpha3.RegistryConfig) *T) {
	t.Helper()
	in := new(T)
	if json.Unmarshal(raw, in) != nil {
		return
	}
	config := from(in)
	// Both sides go through from, which is the only one of the two that says what is the same as left out.
	if again := from(to(config)); !equality.Semantic.DeepEqual(config, again) {
		t.Errorf("%T does not survive: %s", *in, cmp.Diff(config, again))
	}
	v1alpha3.SetDefaults(config)
	once := config.DeepCopy()
	v1alpha3.SetDefaults(config)
	if !equality.Semantic.DeepEqual(once, config) {
		t.Errorf("defaults change with the second time: %s", cmp.Diff(once, config))
	}
	validation.ValidateRegistryConfig(config, nil)
	validation.ValidateRegistryConfigUpdate(once, config, nil)
}

// toV1alpha1 is the inverse of fromV1alpha1, as far as there is one.
func toV1alpha1(in *v1alpha3.RegistryConfig) *v1alpha1.RegistryConfig {
	out := &v1alpha1.RegistryConfig{}
	for _, cache := range in.Caches {
		converted := v1alpha1.RegistryCache{Upstream: cache.Upstream}
		if cache.Volume != nil {
			converted.Size = cache.Volume.Size
		}
		if gc := cache.GarbageCollection; gc != nil {
			converted.GarbageCollection = &v1alpha1.GarbageCollection{Enabled: new(gc.TTL.Duration > 0)}
		}
		out.Caches = append(out.Caches, converted)
	}
	return out
}

// toV1alpha2 is the inverse of fromV1alpha2, as far as there is one.
func toV1alpha2(in *v1alpha3.RegistryConfig) *v1alpha2.RegistryConfig {
	out := &v1alpha2.RegistryConfig{}
	for _, cache := range in.Caches {
		converted := v1alpha2.RegistryCache{Upstream: cache.Upstream, SecretReferenceName: cache.SecretReferenceName}
		if cache.Volume != nil {
			converted.Volume = &v1alpha2.Volume{Size: cache.Volume.Size, StorageClassName: cache.Volume.StorageClassName}
		}
		if gc := cache.GarbageCollection; gc != nil {
			converted.GarbageCollection = &v1alpha2.GarbageCollection{Enabled: new(gc.TTL.Duration > 0)}
		}
		out.Caches = append(out.Caches, converted)
	}
	return out
}
