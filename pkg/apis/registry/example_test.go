// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Every example Shoot must be one that is accepted, and there is one for each version.
func TestExampleShoots(t *testing.T) {
	t.Parallel()
	type example struct {
		APIVersion string
		Upstreams  []string
	}
	three := []string{"docker.io", "ghcr.io", "quay.io"}
	want := map[string]example{
		"shoot.yaml":          {"registry.extensions.gardener.cloud/v1alpha1", three},
		"shoot-v1alpha2.yaml": {"registry.extensions.gardener.cloud/v1alpha2", three},
		"shoot-v1alpha3.yaml": {"registry.extensions.gardener.cloud/v1alpha3", []string{"docker.io", "ghcr.io", "registry.example.com:5000", "registry.example.com-5000"}},
	}

	server := httptest.NewTLSServer(nil)
	defer server.Close()
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})

	files, err := filepath.Glob(filepath.Join("..", "..", "..", "example", "shoot*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]example{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var shoot gardencorev1beta1.Shoot
		if err := yaml.UnmarshalStrict(data, &shoot); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		asDescribed := func(name string) (*corev1.Secret, error) {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Immutable: new(true)}
			switch name {
			case "example-credentials-1", "example-proxy-1":
				secret.Data = map[string][]byte{"username": []byte("robot"), "password": []byte("hunter2")}
			case "example-roots-1":
				secret.Data = map[string][]byte{"bundle.crt": roots}
			default:
				return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
			}
			return secret, nil
		}
		if errs := ValidateShoot(&shoot, &shoot, asDescribed); len(errs) > 0 {
			t.Errorf("%s: %v", file, errs)
		}
		raw := shoot.Spec.Extensions[enabledExtension(&shoot)].ProviderConfig.Raw
		config, errs := Decode(raw, field.NewPath("providerConfig"))
		if len(errs) > 0 {
			continue
		}
		var found example
		if err := yaml.Unmarshal(raw, &struct{ APIVersion *string }{&found.APIVersion}); err != nil {
			t.Fatal(err)
		}
		for _, cache := range config.Caches {
			found.Upstreams = append(found.Upstreams, cache.Upstream)
		}
		got[filepath.Base(file)] = found
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
