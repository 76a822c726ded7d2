// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/registry-cache/extension/pkg/contract/contracttest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	server := start(t, nil)
	check := func(cache string, valid bool) {
		t.Helper()
		shoot := `{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","spec":{"extensions":[{"type":"registry-cache","providerConfig":{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[` + cache + `]}}]}}`
		response := server.send(t, &admissionv1.AdmissionRequest{Operation: admissionv1.Create, Object: runtime.RawExtension{Raw: []byte(shoot)}})
		if response.Allowed != valid {
			t.Errorf("%.200s: allowed = %t, want %t: %.300v", cache, response.Allowed, valid, response.Result)
		}
	}
	for _, tc := range contracttest.Hosts() {
		check(`{"upstream":`+tc.MarshalInput()+`}`, tc.Valid())
	}
	for _, tc := range contracttest.URLs() {
		check(`{"upstream":"registry.example.com","remoteURL":`+tc.MarshalInput()+`}`, tc.Valid())
		check(`{"upstream":"docker.io","proxy":{"httpProxy":`+tc.MarshalInput()+`}}`, tc.Valid())
		check(`{"upstream":"docker.io","proxy":{"httpsProxy":`+tc.MarshalInput()+`}}`, tc.Valid())
	}
	for _, tc := range contracttest.RemotePaths() {
		check(`{"upstream":"registry.example.com","remoteURL":`+tc.MarshalInput()+`}`, tc.Valid())
		check(`{"upstream":"docker.io","proxy":{"httpProxy":`+tc.MarshalInput()+`}}`, false)
	}
	for _, tc := range contracttest.NoProxies() {
		check(`{"upstream":"docker.io","proxy":{"noProxy":`+tc.MarshalInput()+`}}`, tc.Valid())
	}
	for _, tc := range contracttest.Retentions() {
		ttl, watermarks := tc.JSON()
		if watermarks != "" {
			ttl += ","
		}
		check(`{"upstream":"docker.io","garbageCollection":{`+ttl+watermarks+`}}`, tc.Valid)
	}
}
