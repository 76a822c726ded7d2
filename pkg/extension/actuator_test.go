// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1beta1helper "github.com/gardener/gardener/pkg/api/core/v1beta1/helper"
	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

const (
	workloads = "extension-registry-cache"
	dockerIO  = "extension-registry-cache-service-registry-docker-io"
	ghcrIO    = "extension-registry-cache-service-registry-ghcr-io"
)

func TestReconcile(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	ex := s.ask(t, "docker.io", "ghcr.io")
	s.reconcile(t, ex)

	wantObjects := []string{
		"Secret registry-docker-io-config", "Secret registry-ghcr-io-config",
		"Service registry-docker-io 10.96.0.20", "Service registry-ghcr-io 10.96.0.21",
		"StatefulSet registry-docker-io", "StatefulSet registry-ghcr-io",
	}
	if diff := cmp.Diff(wantObjects, s.inShoot(t)); diff != "" {
		t.Errorf("objects: -want +got:\n%s", diff)
	}
	notReady := func(name string) []metav1.Condition {
		return []metav1.Condition{{Type: "Ready", Status: "False", Reason: "PodNotReady", Message: "no pod of StatefulSet kube-system/" + name + " is ready"}}
	}
	wantStatus := registry.NewStatus([]v1alpha3.RegistryCacheStatus{
		{Upstream: "docker.io", Name: "registry-docker-io", Endpoint: "http://10.96.0.20:5000", RemoteURL: "https://registry-1.docker.io", ClusterIP: "10.96.0.20", Engine: "registry-cache", Conditions: notReady("registry-docker-io")},
		{Upstream: "ghcr.io", Name: "registry-ghcr-io", Endpoint: "http://10.96.0.21:5000", RemoteURL: "https://ghcr.io", ClusterIP: "10.96.0.21", Engine: "registry-cache", Conditions: notReady("registry-ghcr-io")},
	})
	if diff := cmp.Diff(wantStatus, s.status(t), cmpopts.IgnoreFields(metav1.Condition{}, "LastTransitionTime")); diff != "" {
		t.Errorf("status: -want +got:\n%s", diff)
	}

	// Each Service is written a second time when its address is known.
	wantLog := []string{"apply " + dockerIO, "apply " + ghcrIO, "apply " + dockerIO, "apply " + ghcrIO, "apply " + workloads, "status docker.io ghcr.io"}
	if diff := cmp.Diff(wantLog, s.takeLog()); diff != "" {
		t.Errorf("log: -want +got:\n%s", diff)
	}
	for name, address := range map[string]string{dockerIO: "10.96.0.20", ghcrIO: "10.96.0.21"} {
		if got := s.pinnedAddress(t, name); got != address {
			t.Errorf("%s holds the address %q, want %s", name, got, address)
		}
	}
	resource := s.managedResource(t, workloads)
	if resource.Spec.DeletePersistentVolumeClaims == nil || !*resource.Spec.DeletePersistentVolumeClaims {
		t.Error("volumes of removed caches would stay")
	}

	before := s.writes
	s.reconcile(t, s.extension(t))
	if s.writes != before {
		t.Errorf("%d writes although nothing has changed: %v", s.writes-before, s.takeLog())
	}
}

// Whatever write fails, the error is reported, and the next attempt ends where an undisturbed one would have.
func TestReconcileFailsAtAnyWrite(t *testing.T) {
	t.Parallel()
	undisturbed := newTestShoot(t)
	undisturbed.reconcile(t, undisturbed.ask(t, "docker.io", "ghcr.io"))
	want := undisturbed.inShoot(t)

	for failAt := 1; ; failAt++ {
		s := newTestShoot(t)
		ex := s.ask(t, "docker.io", "ghcr.io")
		s.failAt = s.writes + failAt
		err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
		if s.writes < s.failAt {
			if failAt < 10 {
				t.Errorf("only %d writes, this test does not test what it should", failAt-1)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Errorf("write %d fails: got error %v", failAt, err)
		}
		if slices.Contains(s.takeLog(), "status docker.io ghcr.io") {
			t.Errorf("write %d fails: the status claims success", failAt)
		}
		s.reconcile(t, s.extension(t))
		if diff := cmp.Diff(want, s.inShoot(t)); diff != "" {
			t.Errorf("write %d fails, then none: -want +got:\n%s", failAt, diff)
		}
	}
}

func TestBadConfigChangesNothing(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	objects := s.inShoot(t)
	for _, tc := range []struct{ config, want string }{
		{`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"https://docker.io"}]}`, "providerConfig.caches[0].upstream: "},
		{`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"docker.io","size":"0"}]}`, "providerConfig.caches[0].size: "},
		{`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[{"upstream":"docker.io","sizes":"1Gi"}]}`, "providerConfig.caches[0].sizes: "},
		{`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","kind":"RegistryConfig","caches":[]}`, "providerConfig.caches: "},
	} {
		ex := s.askRaw(t, []byte(tc.config))
		before := s.writes
		err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: got error %v, want %s…", tc.config, err, tc.want)
		}
		if codes := v1beta1helper.ExtractErrorCodes(err); !slices.Equal(codes, []gardencorev1beta1.ErrorCode{gardencorev1beta1.ErrorConfigurationProblem}) {
			t.Errorf("%s: got error codes %v", tc.config, codes)
		}
		if s.writes != before {
			t.Errorf("%s: %d writes", tc.config, s.writes-before)
		}
	}
	if diff := cmp.Diff(objects, s.inShoot(t)); diff != "" {
		t.Errorf("the running cache has changed: %s", diff)
	}

	ex := s.extension(t)
	ex.Spec.ProviderConfig = nil
	if err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex); err == nil || !strings.HasPrefix(err.Error(), "providerConfig: Required value") {
		t.Errorf("no config: got error %v", err)
	}
}

// Two caches whose upstreams give the same name, one with a suffix: neither touches the other, and the readiness of each
// is that of its own pod.
func TestCacheWithSuffix(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[
		{"upstream":"my.reg.io"},{"upstream":"my-reg.io","serviceNameSuffix":"mine"}]}`)))
	want := []string{
		"Secret registry-mine-config", "Secret registry-mine-tls", "Secret registry-my-reg-io-config", "Secret registry-my-reg-io-tls",
		"Service registry-mine 10.96.0.21", "Service registry-my-reg-io 10.96.0.20",
		"StatefulSet registry-mine", "StatefulSet registry-my-reg-io",
	}
	if diff := cmp.Diff(want, s.inShoot(t)); diff != "" {
		t.Errorf("objects: -want +got:\n%s", diff)
	}

	set := &appsv1.StatefulSet{}
	if err := s.shoot.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: "registry-mine"}, set); err != nil {
		t.Fatal(err)
	}
	set.Status.ReadyReplicas = 1
	if err := s.shoot.Status().Update(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if _, err := (&readiness{seed: s.seed, forShoot: s.client}).Reconcile(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	got := map[string]metav1.ConditionStatus{}
	for _, cache := range s.status(t).Caches {
		got[cache.Upstream+" "+cache.Name] = cache.Conditions[0].Status
	}
	wantReady := map[string]metav1.ConditionStatus{"my.reg.io registry-my-reg-io": "False", "my-reg.io registry-mine": "True"}
	if diff := cmp.Diff(wantReady, got); diff != "" {
		t.Errorf("readiness: -want +got:\n%s", diff)
	}
}

const highlyAvailableConfig = `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryConfig","caches":[
	{"upstream":"docker.io","highAvailability":{"enabled":true}},{"upstream":"ghcr.io"}]}`

func TestHighAvailabilityOnAndOff(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	for _, step := range []struct {
		name         string
		ask          func() *extensionsv1alpha1.Extension
		wantReplicas map[string]int32
		wantBudgets  []string
	}{
		{"off", func() *extensionsv1alpha1.Extension { return s.ask(t, "docker.io", "ghcr.io") }, map[string]int32{"registry-docker-io": 1, "registry-ghcr-io": 1}, nil},
		{"on", func() *extensionsv1alpha1.Extension { return s.askRaw(t, []byte(highlyAvailableConfig)) }, map[string]int32{"registry-docker-io": 2, "registry-ghcr-io": 1}, []string{"registry-docker-io"}},
		{"off again", func() *extensionsv1alpha1.Extension { return s.ask(t, "docker.io", "ghcr.io") }, map[string]int32{"registry-docker-io": 1, "registry-ghcr-io": 1}, nil},
	} {
		s.reconcile(t, step.ask())
		sets, budgets := &appsv1.StatefulSetList{}, &policyv1.PodDisruptionBudgetList{}
		if err := s.shoot.List(t.Context(), sets); err != nil {
			t.Fatal(err)
		}
		if err := s.shoot.List(t.Context(), budgets); err != nil {
			t.Fatal(err)
		}
		replicas := map[string]int32{}
		for _, set := range sets.Items {
			replicas[set.Name] = *set.Spec.Replicas
			// With the label, the resource manager would make two of one replica.
			_, labelled := set.Labels["high-availability-config.resources.gardener.cloud/type"]
			if labelled != (step.wantReplicas[set.Name] == 2) {
				t.Errorf("%s: the resource manager takes %s for highly available: %t", step.name, set.Name, labelled)
			}
		}
		if diff := cmp.Diff(step.wantReplicas, replicas); diff != "" {
			t.Errorf("%s: replicas: -want +got:\n%s", step.name, diff)
		}
		var names []string
		for _, budget := range budgets.Items {
			names = append(names, budget.Name)
		}
		if diff := cmp.Diff(step.wantBudgets, names); diff != "" {
			t.Errorf("%s: PodDisruptionBudgets: -want +got:\n%s", step.name, diff)
		}
	}
}

func TestHibernatedShootIsLeftAlone(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	ex := s.ask(t, "docker.io")
	s.hibernate(t)
	before := s.writes
	s.reconcile(t, ex)
	if s.writes != before {
		t.Errorf("%d writes", s.writes-before)
	}
}

func TestRemovedCacheLosesItsServiceLast(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
	s.takeLog()

	s.hold(workloads, true)
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), s.ask(t, "ghcr.io"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "waiting for ManagedResource "+shootNamespace+"/"+workloads+" to be applied: ") {
		t.Errorf("got error %v", err)
	}
	// Nodes hear of it although the removal hangs.
	if diff := cmp.Diff([]string{"apply " + workloads, "status ghcr.io"}, s.takeLog()); diff != "" {
		t.Errorf("workload hangs: -want +got:\n%s", diff)
	}

	s.hold(workloads, false)
	s.applyAgain(t, workloads)
	s.takeLog()
	s.reconcile(t, s.extension(t))
	if diff := cmp.Diff([]string{"delete " + dockerIO}, s.takeLog()); diff != "" {
		t.Errorf("workload is gone: -want +got:\n%s", diff)
	}
	want := []string{"Secret registry-ghcr-io-config", "Service registry-ghcr-io 10.96.0.21", "StatefulSet registry-ghcr-io"}
	if diff := cmp.Diff(want, s.inShoot(t)); diff != "" {
		t.Errorf("objects: -want +got:\n%s", diff)
	}
}

func TestAddressIsKept(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		// disturb happens between two reconciliations.
		disturb func(t *testing.T, s *testShoot)
		want    string
	}{
		{"nothing happened", func(*testing.T, *testShoot) {}, "10.96.0.20"},
		{"Service replaced by one without address", func(t *testing.T, s *testShoot) {
			s.deleteService(t)
			s.createService(t, corev1.ClusterIPNone)
		}, "10.96.0.20"},
		{"Service replaced", func(t *testing.T, s *testShoot) {
			s.deleteService(t)
			s.createService(t, "10.96.0.99")
		}, "10.96.0.99"},
		{"status lost, Service there", func(t *testing.T, s *testShoot) { s.loseStatus(t) }, "10.96.0.20"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTestShoot(t)
			s.reconcile(t, s.ask(t, "docker.io"))
			tc.disturb(t, s)
			s.reconcile(t, s.extension(t))
			if got := s.pinnedAddress(t, dockerIO); got != tc.want {
				t.Errorf("pinned is %s, want %s", got, tc.want)
			}
			if got := s.status(t).Caches[0].Endpoint; got != "http://"+tc.want+":5000" {
				t.Errorf("endpoint is %s, want the address %s", got, tc.want)
			}
		})
	}
}

// A reconciliation just between the deletion of a Service and its return must not forget the address.
func TestAddressIsKeptWhileTheServiceIsAway(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.deleteService(t)
	if err := s.actuator.Reconcile(t.Context(), logr.Discard(), s.extension(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
	s.applyAgain(t, dockerIO)
	s.reconcile(t, s.extension(t))
	if got := s.status(t).Caches[0].ClusterIP; got != "10.96.0.20" {
		t.Errorf("the address has become %s", got)
	}
}

// Somebody else has taken the address while the Service was away. With the old one pinned, no reconciliation of the Shoot
// would ever succeed.
func TestTakenAddressIsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestShoot(t)
		s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
		s.deleteService(t)
		s.take("10.96.0.20")
		s.applyAgain(t, dockerIO)
		s.takeLog()

		s.reconcile(t, s.extension(t))
		want := []string{"apply " + dockerIO, "apply " + dockerIO, "status docker.io ghcr.io"}
		if diff := cmp.Diff(want, s.takeLog()); diff != "" {
			t.Errorf("let go, pinned again, published: -want +got:\n%s", diff)
		}
		if got := s.pinnedAddress(t, dockerIO); got != "10.96.0.22" {
			t.Errorf("pinned is %q, want the new address 10.96.0.22", got)
		}
		if got := s.status(t).Caches; got[0].ClusterIP != "10.96.0.22" || got[1].ClusterIP != "10.96.0.21" {
			t.Errorf("published are %s and %s, want 10.96.0.22 and 10.96.0.21", got[0].ClusterIP, got[1].ClusterIP)
		}
	})
}

// An address that was taken and is free again is pinned like any other.
func TestTakenAddressComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestShoot(t)
		s.reconcile(t, s.ask(t, "docker.io"))
		s.deleteService(t)
		s.take("10.96.0.20")
		s.applyAgain(t, dockerIO)
		s.takeLog()
		s.nextAddress = 20
		s.reconcile(t, s.extension(t))
		if got := s.pinnedAddress(t, dockerIO); got != "10.96.0.20" {
			t.Errorf("pinned is %q, want 10.96.0.20: a deleted Service would come back elsewhere", got)
		}
	})
}

// A resource manager that is down, or an address that cannot be had: the error must tell.
func TestReconcileSaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.hold(dockerIO, true)
	ex := s.ask(t, "docker.io")
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
	want := "waiting for the Service of the cache of docker.io to get an address: context deadline exceeded; ManagedResource " + dockerIO + " was not seen by the resource manager yet"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}

	resource := s.managedResource(t, dockerIO)
	resource.Status.ObservedGeneration = resource.Generation
	resource.Status.Conditions = []gardencorev1beta1.Condition{{
		Type: resourcesv1alpha1.ResourcesApplied, Status: gardencorev1beta1.ConditionFalse, Reason: "ApplyFailed", Message: "provided IP is already allocated",
	}}
	if err := s.seed.Status().Update(t.Context(), resource); err != nil {
		t.Fatal(err)
	}
	err = s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
	want = "waiting for the Service of the cache of docker.io to get an address: context deadline exceeded; ManagedResource " + dockerIO + ": ApplyFailed: provided IP is already allocated"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

// What the resource manager said about an earlier version must not count: a pin would be let go that nobody has refused.
func TestAppliedMessage(t *testing.T) {
	t.Parallel()
	refused := []gardencorev1beta1.Condition{{
		Type: resourcesv1alpha1.ResourcesApplied, Status: gardencorev1beta1.ConditionFalse, Reason: "ApplyFailed", Message: addressTaken,
	}}
	for _, tc := range []struct {
		name       string
		observed   int64
		conditions []gardencorev1beta1.Condition
		want       string
	}{
		{"new", 0, nil, "ManagedResource r was not seen by the resource manager yet"},
		{"seen in an earlier version", 1, refused, "ManagedResource r was not seen by the resource manager yet"},
		{"seen", 2, refused, "ManagedResource r: ApplyFailed: provided IP is already allocated"},
	} {
		resource := &resourcesv1alpha1.ManagedResource{ObjectMeta: metav1.ObjectMeta{Name: "r", Generation: 2}}
		resource.Status.ObservedGeneration, resource.Status.Conditions = tc.observed, tc.conditions
		if got := appliedMessage(resource); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
	ex := s.extension(t)
	s.takeLog()

	s.hold(workloads, true)
	err := s.actuator.Delete(t.Context(), logr.Discard(), ex)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "waiting for ManagedResource "+shootNamespace+"/"+workloads+" to be gone: ") {
		t.Errorf("workload hangs: got error %v", err)
	}
	if diff := cmp.Diff([]string{"delete " + workloads}, s.takeLog()); diff != "" {
		t.Errorf("workload hangs: -want +got:\n%s", diff)
	}

	s.hold(workloads, false)
	if err := s.actuator.Delete(t.Context(), logr.Discard(), ex); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"delete " + workloads, "delete " + dockerIO, "delete " + ghcrIO}, s.takeLog()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if left := s.inShoot(t); len(left) > 0 {
		t.Errorf("left in the Shoot: %v", left)
	}
	secrets := &corev1.SecretList{}
	if err := s.seed.List(t.Context(), secrets); err != nil {
		t.Fatal(err)
	}
	for _, secret := range secrets.Items {
		if secret.Labels["resources.gardener.cloud/garbage-collectable-reference"] != "true" {
			t.Errorf("Secret %s stays in the Seed for ever", secret.Name)
		}
	}
	resources := &resourcesv1alpha1.ManagedResourceList{}
	if err := s.seed.List(t.Context(), resources); err != nil {
		t.Fatal(err)
	}
	if len(resources.Items) > 0 {
		t.Errorf("%d ManagedResources left in the Seed", len(resources.Items))
	}

	if err := s.actuator.Delete(t.Context(), logr.Discard(), ex); err != nil {
		t.Errorf("second time: %v", err)
	}
}

// Nodes need the Service for as long as they may still use the cache: without endpoints it refuses connections, without
// the Service packets would vanish.
func TestServicesOutliveTheirEndpoints(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		upstreams []string // that are still asked for
		end       func(a *Actuator, ctx context.Context, log logr.Logger, ex *extensionsv1alpha1.Extension) error
		wantLog   []string
	}{
		{"a cache removed", []string{"ghcr.io"}, (*Actuator).Reconcile, []string{"apply " + workloads, "status ghcr.io"}},
		{"all removed", []string{"docker.io", "ghcr.io"}, (*Actuator).Delete, []string{"delete " + workloads}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newTestShoot(t)
				s.actuator.withdrawAfter = withdrawAfter
				s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
				ex := s.ask(t, tc.upstreams...)
				s.takeLog()

				ctx, cancel := context.WithTimeout(t.Context(), withdrawAfter-time.Millisecond)
				defer cancel()
				if err := tc.end(s.actuator, ctx, logr.Discard(), ex); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("ended after less than %s with error %v", withdrawAfter, err)
				}
				if diff := cmp.Diff(tc.wantLog, s.takeLog()); diff != "" {
					t.Errorf("within %s: -want +got:\n%s", withdrawAfter, diff)
				}
				if err := tc.end(s.actuator, t.Context(), logr.Discard(), s.extension(t)); err != nil {
					t.Error(err)
				}
				if log := s.takeLog(); !slices.Contains(log, "delete "+dockerIO) {
					t.Errorf("the Service is still there: %v", log)
				}
			})
		})
	}
}

func TestForceDeleteWaitsForNothing(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.takeLog()
	s.hold(workloads, true)
	s.hold(dockerIO, true)
	if err := s.actuator.ForceDelete(t.Context(), logr.Discard(), s.extension(t)); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"delete " + workloads, "delete " + dockerIO}, s.takeLog()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMigrateAndRestoreKeepTheCaches(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
	objects := s.inShoot(t)
	s.takeLog()

	if err := s.actuator.Migrate(t.Context(), logr.Discard(), s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"let go " + workloads, "let go " + dockerIO, "let go " + ghcrIO}, withoutApplies(s.takeLog())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(objects, s.inShoot(t)); diff != "" {
		t.Errorf("migrate has changed the Shoot: -want +got:\n%s", diff)
	}

	s.loseStatus(t)
	if err := s.actuator.Restore(t.Context(), logr.Discard(), s.extension(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(objects, s.inShoot(t)); diff != "" {
		t.Errorf("restore has changed the Shoot: -want +got:\n%s", diff)
	}
	if keep := s.managedResource(t, workloads).Spec.KeepObjects; keep == nil || *keep {
		t.Error("the objects would survive the next deletion")
	}
}

func TestDeleteFailsAtAnyWrite(t *testing.T) {
	t.Parallel()
	for failAt := 1; ; failAt++ {
		s := newTestShoot(t)
		s.reconcile(t, s.ask(t, "docker.io"))
		ex := s.extension(t)
		s.failAt = s.writes + failAt
		err := s.actuator.Delete(t.Context(), logr.Discard(), ex)
		if s.writes < s.failAt {
			if failAt < 4 {
				t.Errorf("only %d writes, this test does not test what it should", failAt-1)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Errorf("write %d fails: got error %v", failAt, err)
		}
		if err := s.actuator.Delete(t.Context(), logr.Discard(), ex); err != nil {
			t.Errorf("write %d has failed: %v", failAt, err)
		}
		if left := s.inShoot(t); len(left) > 0 {
			t.Errorf("write %d has failed: left in the Shoot: %v", failAt, left)
		}
	}
}

func (s *testShoot) reconcile(t *testing.T, ex *extensionsv1alpha1.Extension) {
	t.Helper()
	if err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) managedResource(t *testing.T, name string) *resourcesv1alpha1.ManagedResource {
	t.Helper()
	resource := &resourcesv1alpha1.ManagedResource{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: name}, resource); err != nil {
		t.Fatal(err)
	}
	return resource
}

// pinnedAddress is the address with which the resource manager would bring the Service back.
func (s *testShoot) pinnedAddress(t *testing.T, name string) string {
	t.Helper()
	objects := s.objects(t, name)
	if len(objects) != 1 {
		t.Fatalf("%s holds %d objects, want a Service alone", name, len(objects))
	}
	return objects[0].(*corev1.Service).Spec.ClusterIP
}

func withoutApplies(log []string) []string {
	return slices.DeleteFunc(log, func(entry string) bool { return strings.HasPrefix(entry, "apply ") })
}
