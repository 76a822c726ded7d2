// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/extension/desired"
)

// repairTime is how long nodes may be without a Service that somebody has deleted.
const repairTime = 15 * time.Second

// waitForService waits until the Service of a cache is there again, and is another one than before.
func (s *shoot) waitForService(t *testing.T, timeout time.Duration, name string, before types.UID) (*corev1.Service, time.Duration) {
	t.Helper()
	service := &corev1.Service{ObjectMeta: kubeSystem(name)}
	took := eventually(t, timeout, func() error {
		if err := s.shootCluster().Client().Get(t.Context(), client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		if service.UID == before {
			return errors.New("the Service is still the one from before")
		}
		return nil
	})
	return service, took
}

func (s *shoot) deleteService(t *testing.T, service *corev1.Service) {
	t.Helper()
	if err := s.shootCluster().Client().Delete(t.Context(), service); err != nil {
		t.Fatal(err)
	}
}

// A Service that a Shoot owner deletes comes back with its address, although the pod of the cache is not ready, and so
// does one that is deleted again at once.
func TestDeletedServiceComesBack(t *testing.T) {
	t.Parallel()
	s := sharedLandscape(t).newShoot(t, "deleted-service")
	upstreams := []string{"one.deleted.example.com", "two.deleted.example.com", "three.deleted.example.com"}
	var caches []map[string]any
	for _, upstream := range upstreams {
		caches = append(caches, cacheFor(upstream))
	}
	s.deploy(t, caches...)
	var slowest time.Duration
	for range 3 {
		before := map[string]*corev1.Service{}
		for _, upstream := range upstreams {
			service, ok := s.getService(t, objectName(upstream))
			if !ok {
				t.Fatalf("no Service for %s", upstream)
			}
			before[upstream] = service
		}
		for _, service := range before {
			s.deleteService(t, service)
		}
		for upstream, old := range before {
			service, took := s.waitForService(t, repairTime, old.Name, old.UID)
			slowest = max(slowest, took)
			if want := s.status(t)[upstream].ClusterIP; service.Spec.ClusterIP != want {
				t.Errorf("%s came back with %s, nodes know %s", upstream, service.Spec.ClusterIP, want)
			}
		}
	}
	t.Logf("the slowest of 9 Services came back after %s", slowest)
}

// The next reconciliation after the address was lost gets another one, tells the nodes, and pins that one.
func TestTakenAddressIsGivenUp(t *testing.T) {
	t.Parallel()
	const upstream = "taken.example.com"
	s := sharedLandscape(t).newShoot(t, "taken")
	s.deploy(t, cacheFor(upstream))
	service, _ := s.getService(t, objectName(upstream))
	old := service.Spec.ClusterIP

	// Held, so that the address is free for the moment in which it is taken.
	s.holdResource(t, "extension-registry-cache-service-"+service.Name, true)
	s.deleteService(t, service)
	foreign := &corev1.Service{ObjectMeta: kubeSystem("taken-by-somebody"), Spec: corev1.ServiceSpec{
		ClusterIP: old, Ports: []corev1.ServicePort{{Port: 80}},
	}}
	if err := s.shootCluster().Client().Create(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	s.holdResource(t, "extension-registry-cache-service-"+service.Name, false)

	s.deploy(t, cacheFor(upstream))
	got, ok := s.getService(t, service.Name)
	if !ok || got.Spec.ClusterIP == old {
		t.Fatalf("the Service has address %q, which somebody else has", got.Spec.ClusterIP)
	}
	if status := s.status(t)[upstream]; status.ClusterIP != got.Spec.ClusterIP || !strings.Contains(status.Endpoint, got.Spec.ClusterIP) {
		t.Errorf("nodes are told %s, want %s", status.Endpoint, got.Spec.ClusterIP)
	}
	// Pinned: it is the same after a deletion.
	s.deleteService(t, got)
	again, _ := s.waitForService(t, repairTime, got.Name, got.UID)
	if again.Spec.ClusterIP != got.Spec.ClusterIP {
		t.Errorf("the new address is not pinned: %s became %s", got.Spec.ClusterIP, again.Spec.ClusterIP)
	}
}

// holdResource makes the resource manager leave a ManagedResource alone, or not.
func (s *shoot) holdResource(t *testing.T, name string, held bool) {
	t.Helper()
	resource := s.resources(t)[name]
	patch := client.MergeFrom(resource.DeepCopy())
	metav1.SetMetaDataAnnotation(&resource.ObjectMeta, "resources.gardener.cloud/ignore", fmt.Sprint(held))
	if !held {
		delete(resource.Annotations, "resources.gardener.cloud/ignore")
	}
	if err := s.seed.Client().Patch(t.Context(), &resource, patch); err != nil {
		t.Fatal(err)
	}
}

// What the Shoot owner or anybody else does to Services, and what the next reconciliation makes of it. None of it may
// fail the reconciliation, and the status has to be what is true.
func TestServicesChangedByHand(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// change gets the cache's Service.
		change func(*corev1.Service)
		// replace makes it a new object instead of an update of the old one.
		replace bool
		newIP   bool
	}{
		"selector":     {change: func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "other"} }},
		"ports":        {change: func(s *corev1.Service) { s.Spec.Ports[0].Port = 5050 }},
		"node-port":    {change: func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }},
		"labels":       {change: func(s *corev1.Service) { s.Labels = nil }},
		"headless":     {change: func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ClusterIPNone, nil }, replace: true},
		"external":     {change: external, newIP: true},
		"foreign-name": {change: func(s *corev1.Service) { s.Labels, s.Spec.ClusterIP, s.Spec.ClusterIPs = nil, "", nil }, replace: true, newIP: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			upstream := name + ".by-hand.example.com"
			s := sharedLandscape(t).newShoot(t, "by-hand-"+name)
			s.deploy(t, cacheFor(upstream))
			service, _ := s.getService(t, objectName(upstream))
			old := service.Spec.ClusterIP
			resource := "extension-registry-cache-service-" + service.Name
			s.holdResource(t, resource, true)
			if tc.replace {
				s.deleteService(t, service)
				service.ObjectMeta = metav1.ObjectMeta{Namespace: service.Namespace, Name: service.Name, Labels: service.Labels}
				tc.change(service)
				s.createInShoot(t, service)
			} else {
				tc.change(service)
				if err := s.shootCluster().Client().Update(t.Context(), service); err != nil {
					t.Fatal(err)
				}
			}
			s.holdResource(t, resource, false)

			s.deploy(t, cacheFor(upstream))
			want := desiredService(t, upstream)
			eventually(t, soon, func() error {
				live, ok := s.getService(t, service.Name)
				if !ok {
					return errors.New("there is no Service")
				}
				status := s.status(t)[upstream]
				switch {
				case live.Spec.Type != corev1.ServiceTypeClusterIP || len(live.Spec.Ports) != 2 || live.Spec.Ports[0].Port != 5000 || live.Spec.Selector["app"] != want.Spec.Selector["app"]:
					return fmt.Errorf("the Service was not repaired: %+v", live.Spec)
				case live.Spec.ClusterIP != status.ClusterIP:
					return fmt.Errorf("the Service has %s, nodes are told %s", live.Spec.ClusterIP, status.ClusterIP)
				case !tc.newIP && live.Spec.ClusterIP != old:
					return fmt.Errorf("the address changed from %s to %s", old, live.Spec.ClusterIP)
				}
				return nil
			})
		})
	}
}

func external(s *corev1.Service) {
	s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "example.com", "", nil
}

func (s *shoot) createInShoot(t *testing.T, obj client.Object) {
	t.Helper()
	if err := s.shootCluster().Client().Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
}

func desiredService(t *testing.T, upstream string) *corev1.Service {
	t.Helper()
	return desired.Service(decode(t, cacheFor(upstream))[0], "")
}

// Services of others with our label do not count: the original takes them for its own.
func TestForeignServiceWithOurLabel(t *testing.T) {
	t.Parallel()
	const upstream = "label.example.com"
	s := sharedLandscape(t).newShoot(t, "label")
	foreign := &corev1.Service{ObjectMeta: kubeSystem("foreign-with-our-label"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	foreign.Labels = map[string]string{"upstream-host": upstream}
	s.createInShoot(t, foreign)
	s.deploy(t, cacheFor(upstream))
	if got := s.status(t); len(got) != 1 || got[upstream].ClusterIP == foreign.Spec.ClusterIP || got[upstream].ClusterIP == "" {
		t.Errorf("got status %+v", got)
	}
	service, _ := s.getService(t, objectName(upstream))
	if err := s.actuator.Delete(t.Context(), s.log, s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if s.exists(t, service) {
		t.Error("the Service of the cache is still there")
	}
	if !s.exists(t, foreign) {
		t.Error("the Service of somebody else is gone")
	}
}

// A pin that is not the address of the live Service would count only after a deletion, when nodes know another one.
func TestWrongPinIsPutRight(t *testing.T) {
	t.Parallel()
	const upstream = "wrong-pin.example.com"
	s := sharedLandscape(t).newShoot(t, "wrong-pin")
	s.deploy(t, cacheFor(upstream))
	service, _ := s.getService(t, objectName(upstream))

	name := "extension-registry-cache-service-" + service.Name
	if err := s.writeResource(t, name, desired.Service(decode(t, cacheFor(upstream))[0], "10.0.0.250")); err != nil {
		t.Fatal(err)
	}
	s.waitUntilApplied(t, name)
	s.deploy(t, cacheFor(upstream))
	s.deleteService(t, service)
	again, _ := s.waitForService(t, repairTime, service.Name, service.UID)
	if want := s.status(t)[upstream].ClusterIP; again.Spec.ClusterIP != want || want != service.Spec.ClusterIP {
		t.Errorf("the Service came back with %s, had %s, nodes know %s", again.Spec.ClusterIP, service.Spec.ClusterIP, want)
	}
}
