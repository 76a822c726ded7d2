// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

func TestStatefulSetIsReplacedAndItsPodsStay(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.actuator.waitTimeout = time.Minute
	s.reconcile(t, s.askSize(t, "10Gi"))
	before := s.set(t)
	s.reconcile(t, s.askSize(t, "20Gi"))
	after := s.set(t)
	s.checkTemplate(t, "20Gi")
	if after.UID == before.UID {
		t.Errorf("the StatefulSet is still %s", after.UID)
	}
	// With the same template the pods have the revision that the new StatefulSet wants.
	if diff := cmp.Diff(before.Spec.Template, after.Spec.Template); diff != "" {
		t.Errorf("the pods would restart: -want +got:\n%s", diff)
	}
	want := client.DeleteOptions{
		PropagationPolicy: new(metav1.DeletePropagationOrphan),
		Preconditions:     &metav1.Preconditions{UID: &before.UID},
	}
	if diff := cmp.Diff(map[string]client.DeleteOptions{"registry-docker-io": want}, s.deletions); diff != "" {
		t.Errorf("deletions: -want +got:\n%s", diff)
	}
}

// Kubernetes deletes a StatefulSet with orphans only when it has released the pods. Until then the resource manager sees
// the old one; afterwards it does not come back by itself if something beside it was not healthy.
func TestStatefulSetIsAwaited(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askSize(t, "10Gi"))
	set := s.set(t)
	set.Finalizers = []string{"orphan"}
	if err := s.shoot.Update(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), s.askSize(t, "20Gi"))
	want := "waiting for the StatefulSets of the caches of docker.io to be re-created: context deadline exceeded; StatefulSet registry-docker-io is being deleted"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	set = s.set(t)
	set.Finalizers = nil
	if err := s.shoot.Update(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	s.actuator.waitTimeout = time.Minute
	s.reconcile(t, s.extension(t))
	s.checkTemplate(t, "20Gi")
	if log := s.takeLog(); countOf(log, "delete registry-docker-io") != 1 {
		t.Errorf("not deleted exactly once: %v", log)
	}
}

// A resource manager that has not seen the new template would bring the old one back, or nothing.
func TestStatefulSetStaysWithoutResourceManager(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askSize(t, "10Gi"))
	s.hold(workloads, true)
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), s.askSize(t, "20Gi"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasSuffix(err.Error(), "ManagedResource "+workloads+" was not seen by the resource manager yet") {
		t.Errorf("got error %v", err)
	}
	s.checkTemplate(t, "10Gi")
	if len(s.deletions) > 0 {
		t.Errorf("deleted: %v", s.deletions)
	}

	s.hold(workloads, false)
	s.applyAgain(t, workloads)
	s.actuator.waitTimeout = time.Minute
	s.reconcile(t, s.extension(t))
	s.checkTemplate(t, "20Gi")
}

func TestStatefulSetStaysWhileItsManagedResourceIsIgnored(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askSize(t, "10Gi"))
	ignored := s.managedResource(t, workloads)
	ignored.Annotations["resources.gardener.cloud/ignore"] = "true"
	if err := s.seed.Update(t.Context(), ignored); err != nil {
		t.Fatal(err)
	}
	s.hold(workloads, true)
	s.reconcile(t, s.askSize(t, "20Gi"))
	s.checkTemplate(t, "10Gi")
}

// The controller has ended between the deletion and the return.
func TestMissingStatefulSetComesBack(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.actuator.waitTimeout = time.Minute
	s.reconcile(t, s.askSize(t, "10Gi"))
	if err := s.shoot.Delete(t.Context(), s.set(t)); err != nil {
		t.Fatal(err)
	}
	s.takeLog()
	s.reconcile(t, s.extension(t))
	s.checkTemplate(t, "10Gi")
	if got := s.managedResource(t, workloads).Annotations["gardener.cloud/operation"]; got != "reconcile" {
		t.Errorf("the resource manager was asked for %q, want reconcile", got)
	}
}

// A new cache has no StatefulSet until the resource manager comes to it. That is not waited for.
func TestNewCacheIsNotAwaited(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.hold(workloads, true)
	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
	if log := s.takeLog(); !slices.Contains(log, "status docker.io ghcr.io") {
		t.Errorf("log: %v", log)
	}
}

func TestHasTemplate(t *testing.T) {
	t.Parallel()
	cache := v1alpha3.RegistryCache{Upstream: "docker.io", Volume: &v1alpha3.Volume{Size: new(resource.MustParse("10Gi"))}}
	for _, tc := range []struct {
		name   string
		change func(template *corev1.PersistentVolumeClaim)
		want   bool
	}{
		{"the same", func(*corev1.PersistentVolumeClaim) {}, true},
		{"the same size in another unit", func(c *corev1.PersistentVolumeClaim) { setRequest(c, "10240Mi") }, true},
		{"a label of the resource manager", func(c *corev1.PersistentVolumeClaim) { c.Labels["shoot.gardener.cloud/no-cleanup"] = "true" }, true},
		{"another StorageClass", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = new("other") }, true},
		{"a label missing", func(c *corev1.PersistentVolumeClaim) { delete(c.Labels, "upstream-host") }, false},
		{"a label with another value", func(c *corev1.PersistentVolumeClaim) { c.Labels["app"] = "x" }, false},
		{"larger", func(c *corev1.PersistentVolumeClaim) { setRequest(c, "11Gi") }, false},
		{"smaller", func(c *corev1.PersistentVolumeClaim) { setRequest(c, "9Gi") }, false},
		{"another name", func(c *corev1.PersistentVolumeClaim) { c.Name = "data" }, false},
	} {
		live := desired.VolumeClaimTemplate(cache)
		tc.change(&live)
		set := &appsv1.StatefulSet{}
		set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{live}
		if got := hasTemplate(set, desired.VolumeClaimTemplate(cache)); got != tc.want {
			t.Errorf("%s: got %t, want %t", tc.name, got, tc.want)
		}
	}
	if hasTemplate(&appsv1.StatefulSet{}, desired.VolumeClaimTemplate(cache)) {
		t.Error("none: got true, want false")
	}
}

func setRequest(claim *corev1.PersistentVolumeClaim, size string) {
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
}

func countOf(log []string, entry string) int {
	count := 0
	for _, got := range log {
		if got == entry {
			count++
		}
	}
	return count
}

func (s *testShoot) askSize(t *testing.T, size string) *extensionsv1alpha1.Extension {
	t.Helper()
	return s.askRaw(t, fmt.Appendf(nil, `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"docker.io","size":%q}]}`, size))
}

func (s *testShoot) set(t *testing.T) *appsv1.StatefulSet {
	t.Helper()
	set := &appsv1.StatefulSet{}
	if err := s.shoot.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: "registry-docker-io"}, set); err != nil {
		t.Fatal(err)
	}
	return set
}

func (s *testShoot) checkTemplate(t *testing.T, want string) {
	t.Helper()
	if got := s.set(t).Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage().String(); got != want {
		t.Errorf("new replicas would ask for %s, want %s", got, want)
	}
}
