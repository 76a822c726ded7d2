// SPDX-License-Identifier: Apache-2.0

package config

import (
	"testing"

	"github.com/registry-cache/extension/pkg/contract/contracttest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	for _, tc := range contracttest.Hosts() {
		cfg, err := Parse([]byte(`{"upstream":{"remoteURL":"https://registry.example.com","host":` + tc.MarshalInput() + `}}`))
		if (err == nil) != tc.Valid() || cfg.Upstream.Host != tc.Canonical {
			t.Errorf("host %q: got %q, %v, want %q", tc.Input, cfg.Upstream.Host, err, tc.Canonical)
		}
	}
	for _, tc := range append(contracttest.URLs(), contracttest.RemotePaths()...) {
		cfg, err := Parse([]byte(`{"upstream":{"host":"docker.io","remoteURL":` + tc.MarshalInput() + `}}`))
		if (err == nil) != tc.Valid() || cfg.Upstream.RemoteURL != tc.Canonical {
			t.Errorf("remoteURL %q: got %q, %v, want %q", tc.Input, cfg.Upstream.RemoteURL, err, tc.Canonical)
		}
	}
	for _, tc := range contracttest.Retentions() {
		ttl, watermarks := tc.JSON()
		cfg, err := Parse([]byte(`{"upstream":{"host":"docker.io","remoteURL":"https://docker.io"},"garbageCollection":{` + ttl + `},"storage":{` + watermarks + `}}`))
		if (err == nil) != tc.Valid || cfg.Storage.HighWatermark != tc.WantHigh || cfg.Storage.LowWatermark != tc.WantLow {
			t.Errorf("%s %s: got %d, %d, %v, want %d, %d", ttl, watermarks, cfg.Storage.HighWatermark, cfg.Storage.LowWatermark, err, tc.WantHigh, tc.WantLow)
		}
	}
}
