// SPDX-License-Identifier: Apache-2.0

package v1alpha3

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/validate/content"
)

func TestNamesWithSuffix(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("s", MaxServiceNameSuffix)
	for _, tc := range []struct {
		suffix              *string
		objectName, service string
	}{
		{nil, "registry-docker-io", "registry-docker-io"},
		{new("hub"), "registry-hub", "registry-hub"},
		{new(longest[:43]), "registry-" + longest[:43], "registry-" + longest[:43]},
		{&longest, "registry-" + longest[:37] + "-bcc39", "registry-" + longest},
	} {
		cache := RegistryCache{Upstream: "docker.io", ServiceNameSuffix: tc.suffix}
		objectName, service := cache.ObjectName(), cache.ServiceName()
		if objectName != tc.objectName || service != tc.service {
			t.Errorf("%s: names are %s and %s, want %s and %s", service, objectName, service, tc.objectName, tc.service)
		}
		if len(objectName) > 52 {
			t.Errorf("%s: has %d characters, a StatefulSet may have 52", objectName, len(objectName))
		}
		if complaints := content.IsDNS1123Label(service); complaints != nil {
			t.Errorf("%s: %v", service, complaints)
		}
		if got := (&RegistryCacheStatus{Upstream: "docker.io", Name: objectName}).ObjectName(); got != objectName {
			t.Errorf("%s: the status says %s", objectName, got)
		}
	}
	if got := (&RegistryCacheStatus{Upstream: "docker.io"}).ObjectName(); got != "registry-docker-io" {
		t.Errorf("a status without name says %s", got)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 40) + ".example.com:5000"
	longest := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + ":5000"
	for _, tc := range []struct {
		upstream, name, label string
	}{
		{"docker.io", "registry-docker-io", "docker.io"},
		{"localhost:5000", "registry-localhost-5000", "localhost-5000"},
		{"my.reg.io", "registry-my-reg-io", "my.reg.io"},
		{"my-reg.io", "registry-my-reg-io", "my-reg.io"},
		{
			"123456789012.dkr.ecr.us-east-1.amazonaws.com",
			"registry-123456789012-dkr-ecr-us-east-1-amazon-8b9ee",
			"123456789012.dkr.ecr.us-east-1.amazonaws.com",
		},
		{long, "registry-" + strings.Repeat("a", 37) + "-850a0", strings.Repeat("a", 40) + ".example.com-5000"},
		{longest, "registry-" + strings.Repeat("a", 37) + "-02e46", strings.Repeat("a", 57) + "-02e46"},
	} {
		name, label := ObjectName(tc.upstream), UpstreamHostValue(tc.upstream)
		if name != tc.name {
			t.Errorf("ObjectName(%q) = %q, want %q", tc.upstream, name, tc.name)
		}
		if label != tc.label {
			t.Errorf("UpstreamHostValue(%q) = %q, want %q", tc.upstream, label, tc.label)
		}
		if len(name) > 52 {
			t.Errorf("ObjectName(%q) has %d characters, a StatefulSet may have 52", tc.upstream, len(name))
		}
		if complaints := content.IsDNS1123Label(name); complaints != nil {
			t.Errorf("ObjectName(%q): %v", tc.upstream, complaints)
		}
		if complaints := content.IsLabelValue(label); complaints != nil {
			t.Errorf("UpstreamHostValue(%q): %v", tc.upstream, complaints)
		}
	}
}
