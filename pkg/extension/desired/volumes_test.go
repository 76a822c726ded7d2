// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"testing"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

func TestClaimOrdinal(t *testing.T) {
	t.Parallel()
	docker, suffixed := v1alpha3.RegistryCache{Upstream: "docker.io"}, v1alpha3.RegistryCache{Upstream: "docker.io", ServiceNameSuffix: new("mine")}
	for _, tc := range []struct {
		name    string
		cache   v1alpha3.RegistryCache
		claim   string
		ordinal int32
		ok      bool
	}{
		{"the first", docker, "cache-volume-registry-docker-io-0", 0, true},
		{"the eleventh", docker, "cache-volume-registry-docker-io-10", 10, true},
		{"with a suffix", suffixed, "cache-volume-registry-mine-1", 1, true},
		{"of a cache without the suffix", suffixed, "cache-volume-registry-docker-io-0", 0, false},
		{"of a cache whose name begins alike", docker, "cache-volume-registry-docker-io-mirror-0", 0, false},
		{"no ordinal", docker, "cache-volume-registry-docker-io-", 0, false},
		{"negative", docker, "cache-volume-registry-docker-io--1", 0, false},
		{"leading zero", docker, "cache-volume-registry-docker-io-01", 0, false},
		{"too large", docker, "cache-volume-registry-docker-io-2147483648", 0, false},
		{"another template", docker, "data-registry-docker-io-0", 0, false},
	} {
		if ordinal, ok := ClaimOrdinal(tc.cache, tc.claim); ordinal != tc.ordinal || ok != tc.ok {
			t.Errorf("%s: got %d, %t, want %d, %t", tc.name, ordinal, ok, tc.ordinal, tc.ok)
		}
	}
}
