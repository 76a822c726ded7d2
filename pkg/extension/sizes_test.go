// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"encoding/json"
	"testing"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

func TestContentSize(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, configured    string
		requested, capacity string // "" for no claim, or one that is not bound
		want                string
	}{
		{"no claim", "20Gi", "", "", "20Gi"},
		{"not bound", "20Gi", "10Gi", "", "10Gi"},
		{"as configured", "10Gi", "10Gi", "10Gi", "10Gi"},
		{"rounded up by the storage", "10Gi", "10Gi", "16Gi", "16Gi"},
		{"enlarged by the owner", "10Gi", "50Gi", "50Gi", "50Gi"},
		{"enlarged by the owner just now", "10Gi", "50Gi", "10Gi", "10Gi"},
		{"growing", "20Gi", "20Gi", "10Gi", "10Gi"},
		{"cannot grow", "20Gi", "10Gi", "10Gi", "10Gi"},
	} {
		cache := v1alpha3.RegistryCache{Volume: &v1alpha3.Volume{Size: new(resource.MustParse(tc.configured))}}
		want := resource.MustParse(tc.want)
		if got := contentSize(cache, newVolume(tc.requested, tc.capacity)); got != want.Value() {
			t.Errorf("%s: got %d bytes, want %s", tc.name, got, tc.want)
		}
	}
}

func TestWhichSizeIsDeployed(t *testing.T) {
	t.Parallel()
	small, large := newVolume("10Gi", "10Gi"), newVolume("50Gi", "50Gi")
	now := metav1.Now()
	for _, tc := range []struct {
		name          string
		before, after *extensionsv1alpha1.Extension
		want          bool
	}{
		{"grown", extensionOf(t, "10Gi", small), extensionOf(t, "10Gi", large), true},
		{"the same", extensionOf(t, "10Gi", small), extensionOf(t, "10Gi", small), false},
		{"requested, and not there yet", extensionOf(t, "10Gi", small), extensionOf(t, "10Gi", newVolume("50Gi", "10Gi")), false},
		{"first claim, as configured", extensionOf(t, "10Gi", nil), extensionOf(t, "10Gi", newVolume("10Gi", "")), false},
		{"first volume, as configured", extensionOf(t, "10Gi", newVolume("10Gi", "")), extensionOf(t, "10Gi", small), false},
		{"first volume, rounded up", extensionOf(t, "10Gi", nil), extensionOf(t, "10Gi", newVolume("10Gi", "16Gi")), true},
		{"configured", extensionOf(t, "10Gi", nil), extensionOf(t, "50Gi", nil), false},
		{"claim deleted", extensionOf(t, "10Gi", large), extensionOf(t, "10Gi", nil), true},
		{"first status", extensionOf(t, "10Gi"), extensionOf(t, "10Gi", large), false},
		{"no longer configured", extensionOf(t, "", small), extensionOf(t, "", large), false},
		{"being deleted", extensionOf(t, "10Gi", small), func() *extensionsv1alpha1.Extension {
			ex := extensionOf(t, "10Gi", large)
			ex.DeletionTimestamp = &now
			return ex
		}(), false},
		{"of another type", extensionOf(t, "10Gi", small), func() *extensionsv1alpha1.Extension {
			ex := extensionOf(t, "10Gi", large)
			ex.Spec.Type = "other"
			return ex
		}(), false},
	} {
		if got := contentSizeChanged().Update(event.UpdateEvent{ObjectOld: tc.before, ObjectNew: tc.after}); got != tc.want {
			t.Errorf("%s: got %t, want %t", tc.name, got, tc.want)
		}
	}
	if contentSizeChanged().Create(event.CreateEvent{Object: extensionOf(t, "10Gi", small)}) {
		t.Error("a start of the controller deploys all caches")
	}
}

// newVolume returns the sizes of a volume, nil without a request.
func newVolume(requested, capacity string) *v1alpha3.VolumeStatus {
	if requested == "" {
		return nil
	}
	volume := &v1alpha3.VolumeStatus{Requested: resource.MustParse(requested)}
	if capacity != "" {
		volume.Capacity = new(resource.MustParse(capacity))
	}
	return volume
}

// extensionOf returns an Extension with a cache of docker.io of the given size, "" for a cache of quay.io, and with the
// caches of docker.io that its status has.
func extensionOf(t *testing.T, size string, volumes ...*v1alpha3.VolumeStatus) *extensionsv1alpha1.Extension {
	t.Helper()
	ex := &extensionsv1alpha1.Extension{}
	ex.Spec.Type = Type
	cache := map[string]any{"upstream": "quay.io"}
	if size != "" {
		cache = map[string]any{"upstream": "docker.io", "volume": map[string]any{"size": size}}
	}
	ex.Spec.ProviderConfig = encoded(t, map[string]any{
		"apiVersion": "registry.extensions.gardener.cloud/v1alpha3", "kind": "RegistryConfig", "caches": []any{cache},
	})
	var caches []v1alpha3.RegistryCacheStatus
	for _, volume := range volumes {
		caches = append(caches, v1alpha3.RegistryCacheStatus{Upstream: "docker.io", Volume: volume})
	}
	ex.Status.ProviderStatus = encoded(t, registry.NewStatus(caches))
	return ex
}

func encoded(t *testing.T, v any) *runtime.RawExtension {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return &runtime.RawExtension{Raw: raw}
}
