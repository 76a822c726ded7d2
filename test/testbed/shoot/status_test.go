// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"strings"
	"testing"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestDecodeStatus(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"":   "has no status.providerStatus",
		"{":  "decoding status.providerStatus",
		"{}": "want registry.extensions.gardener.cloud/v1alpha3 RegistryStatus",
		`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha2","kind":"RegistryStatus"}`: "is registry.extensions.gardener.cloud/v1alpha2 RegistryStatus",
	} {
		extension := &extensionsv1alpha1.Extension{}
		extension.Status.ProviderStatus = &runtime.RawExtension{Raw: []byte(raw)}
		if _, err := decodeStatus(extension); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error for %q is %v, want it to contain %s", raw, err, want)
		}
	}
}
