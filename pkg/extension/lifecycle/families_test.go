// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/registry-cache/extension/test/testbed/controlplane"
)

// The cache has an address of the primary family of the Shoot, whichever that is, and keeps it.
func TestIPFamilies(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cidrs  []string
		family corev1.IPFamily
	}{
		"ipv6":      {[]string{"fd00:10::/112"}, corev1.IPv6Protocol},
		"ipv4-ipv6": {[]string{"10.0.0.0/24", "fd00:10::/112"}, corev1.IPv4Protocol},
		"ipv6-ipv4": {[]string{"fd00:10::/112", "10.0.0.0/24"}, corev1.IPv6Protocol},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := name + ".families.example.com"
			s := ownLandscape(t, seedOptions, controlplane.Options{ServiceCIDRs: tc.cidrs}).newShoot(t, "families-"+name)
			s.setShoot(t, map[string]any{"networking": map[string]any{"ipFamilies": strings.Split(strings.NewReplacer("ipv", "IPv").Replace(name), "-")}}, nil)
			s.deploy(t, cacheFor(upstream))

			service, ok := s.getService(t, objectName(upstream))
			if !ok || len(service.Spec.IPFamilies) != 1 || service.Spec.IPFamilies[0] != tc.family {
				t.Fatalf("Service exists %t with families %v, want %s", ok, service.Spec.IPFamilies, tc.family)
			}
			address := netip.MustParseAddr(service.Spec.ClusterIP)
			want := "https://" + netip.AddrPortFrom(address, 5000).String()
			if got := s.status(t)[upstream]; got.Endpoint != want || got.ClusterIP != service.Spec.ClusterIP {
				t.Errorf("nodes are told %s and %s, want %s", got.Endpoint, got.ClusterIP, want)
			}
			s.deleteService(t, service)
			if again, took := s.waitForService(t, repairTime, service.Name, service.UID); again.Spec.ClusterIP != service.Spec.ClusterIP {
				t.Errorf("the Service came back with %s, want %s", again.Spec.ClusterIP, service.Spec.ClusterIP)
			} else {
				t.Logf("%s is back after %s", again.Spec.ClusterIP, took)
			}
			s.deploy(t, cacheFor(upstream))
			s.deploy(t, cacheFor(upstream))
			if got := s.status(t)[upstream].ClusterIP; got != service.Spec.ClusterIP {
				t.Errorf("nodes are told %s after another reconciliation, want %s", got, service.Spec.ClusterIP)
			}
		})
	}
}
