// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/contract/contracttest"
)

// rendered is what the controller makes of a cache.
type rendered struct {
	status      v1alpha3.RegistryCache
	server      config.Config
	environment map[string]string
}

// hasPath reports whether the remote URL has a path, which distribution does not support.
func hasPath(cache v1alpha3.RegistryCache) bool {
	remote, err := contract.ParseRemoteURL(*cache.RemoteURL)
	return err == nil && remote.Path != ""
}

// render decodes the JSON of a cache like the controller and computes the objects of both engines.
func render(t *testing.T, cache string) (*rendered, error) {
	t.Helper()
	decoded, errs := registry.Decode([]byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[`+cache+`]}`), nil)
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	result := &rendered{status: decoded.Caches[0], environment: map[string]string{}}
	for _, engine := range []configv1alpha1.Engine{configv1alpha1.Distribution, configv1alpha1.RegistryCache} {
		objects, err := Workload(decoded.Caches[0], decoded.Caches[0].Volume.Size.Value(), Secrets{Certificate: &Certificate{}}, Options{Image: "image", Engine: engine})
		if engine == configv1alpha1.Distribution && hasPath(decoded.Caches[0]) {
			if err == nil || !strings.Contains(err.Error(), "engine distribution does not support a path") {
				t.Errorf("%s with distribution: %v", cache, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s is admitted, and cannot be deployed with %s: %v", cache, engine, err)
			return nil, err
		}
		for _, object := range objects {
			switch object := object.(type) {
			case *corev1.Secret:
				if document, ok := object.Data[registryCacheKey]; ok {
					if result.server, err = config.Parse(document); err != nil {
						t.Errorf("%s is admitted, and the server rejects its configuration: %v\n%s", cache, err, document)
						return nil, err
					}
				}
			case *appsv1.StatefulSet:
				for _, variable := range object.Spec.Template.Spec.Containers[0].Env {
					result.environment[variable.Name] = variable.Value
				}
			}
		}
	}
	return result, nil
}

func TestContract(t *testing.T) {
	t.Parallel()
	for _, tc := range contracttest.Hosts() {
		got, err := render(t, `{"upstream":`+tc.MarshalInput()+`}`)
		if (err == nil) != tc.Valid() {
			t.Errorf("upstream %q: error %v, want valid = %t", tc.Input, err, tc.Valid())
		} else if err == nil && (got.status.Upstream != tc.Canonical || got.server.Upstream.Host != tc.Canonical) {
			t.Errorf("upstream %q: got %q for the nodes and %q for the server", tc.Input, got.status.Upstream, got.server.Upstream.Host)
		}
	}
	for _, tc := range append(contracttest.URLs(), contracttest.RemotePaths()...) {
		got, err := render(t, `{"upstream":"registry.example.com","remoteURL":`+tc.MarshalInput()+`}`)
		if (err == nil) != tc.Valid() {
			t.Errorf("remoteURL %q: error %v, want valid = %t", tc.Input, err, tc.Valid())
		} else if err == nil && (*got.status.RemoteURL != tc.Canonical || got.server.Upstream.RemoteURL != tc.Canonical) {
			t.Errorf("remoteURL %q: got %q for the nodes and %q for the server, want %q", tc.Input, *got.status.RemoteURL, got.server.Upstream.RemoteURL, tc.Canonical)
		}
	}
	for field, variable := range map[string]string{"httpProxy": "HTTP_PROXY", "httpsProxy": "HTTPS_PROXY"} {
		for _, tc := range contracttest.URLs() {
			checkEnvironment(t, field, variable, tc)
		}
	}
	for _, tc := range contracttest.NoProxies() {
		checkEnvironment(t, "noProxy", "NO_PROXY", tc)
	}
	for _, tc := range contracttest.Retentions() {
		ttl, watermarks := tc.JSON()
		if watermarks != "" {
			ttl += ","
		}
		got, err := render(t, `{"upstream":"docker.io","garbageCollection":{`+ttl+watermarks+`}}`)
		if (err == nil) != tc.Valid {
			t.Errorf("%s%s: error %v, want valid = %t", ttl, watermarks, err, tc.Valid)
		} else if err == nil && (got.server.Storage.HighWatermark != tc.WantHigh || got.server.Storage.LowWatermark != tc.WantLow) {
			t.Errorf("%s%s: got %d and %d, want %d and %d", ttl, watermarks, got.server.Storage.HighWatermark, got.server.Storage.LowWatermark, tc.WantHigh, tc.WantLow)
		}
	}
}

func checkEnvironment(t *testing.T, field, variable string, tc contracttest.Address) {
	t.Helper()
	got, err := render(t, `{"upstream":"docker.io","proxy":{"`+field+`":`+tc.MarshalInput()+`}}`)
	if (err == nil) != tc.Valid() {
		t.Errorf("%s %.100q: error %.200v, want valid = %t", field, tc.Input, err, tc.Valid())
	} else if err == nil && got.environment[variable] != tc.Canonical {
		t.Errorf("%s %q: %s is %q, want %q", field, tc.Input, variable, got.environment[variable], tc.Canonical)
	}
}
