// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

var testIntervals = ReadinessIntervals{Ready: 5 * time.Minute, Unready: 30 * time.Second}

var request = reconcile.Request{NamespacedName: client.ObjectKey{Namespace: shootNamespace, Name: Type}}

func TestReadinessFollowsThePods(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
	r := &readiness{seed: s.seed, forShoot: s.client, intervals: testIntervals}

	for _, step := range []struct {
		name              string
		dockerIO, ghcrIO  int32
		want              map[string]metav1.ConditionStatus
		wantRequeue       time.Duration
		wantStatusWritten bool
	}{
		{"no pod yet", 0, 0, map[string]metav1.ConditionStatus{"docker.io": "False", "ghcr.io": "False"}, testIntervals.Unready, false},
		{"the first", 1, 0, map[string]metav1.ConditionStatus{"docker.io": "True", "ghcr.io": "False"}, testIntervals.Unready, true},
		{"both", 1, 1, map[string]metav1.ConditionStatus{"docker.io": "True", "ghcr.io": "True"}, testIntervals.Ready, true},
		{"still both", 1, 1, map[string]metav1.ConditionStatus{"docker.io": "True", "ghcr.io": "True"}, testIntervals.Ready, false},
		{"one lost", 1, 0, map[string]metav1.ConditionStatus{"docker.io": "True", "ghcr.io": "False"}, testIntervals.Unready, true},
	} {
		s.setReady(t, "docker.io", step.dockerIO)
		s.setReady(t, "ghcr.io", step.ghcrIO)
		before := s.writes
		result, err := r.Reconcile(t.Context(), request)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if result.RequeueAfter != step.wantRequeue {
			t.Errorf("%s: looks again after %s, want %s", step.name, result.RequeueAfter, step.wantRequeue)
		}
		if written := s.writes > before; written != step.wantStatusWritten {
			t.Errorf("%s: status written: %t, want %t", step.name, written, step.wantStatusWritten)
		}
		got := map[string]metav1.ConditionStatus{}
		for _, cache := range s.status(t).Caches {
			got[cache.Upstream] = cache.Conditions[0].Status
			if cache.Endpoint == "" || cache.RemoteURL == "" {
				t.Errorf("%s: the rest of the status is lost: %v", step.name, cache)
			}
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", step.name, diff)
		}
	}

	// The actuator sees the same and has nothing to write.
	before := s.writes
	s.reconcile(t, s.extension(t))
	if s.writes != before {
		t.Errorf("the actuator disagrees: %v", s.takeLog())
	}
}

// One pod is enough to serve, and the other one is still looked for: the resource manager does not tell of it while some
// other cache is not healthy.
func TestReadinessOfAHighlyAvailableCache(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.askRaw(t, []byte(highlyAvailableConfig)))
	s.setReady(t, "ghcr.io", 1)
	r := &readiness{seed: s.seed, forShoot: s.client, intervals: testIntervals}
	const set = "StatefulSet kube-system/registry-docker-io"
	for _, step := range []struct {
		ready       int32
		want        metav1.Condition
		wantRequeue time.Duration
	}{
		{0, metav1.Condition{Status: "False", Reason: "PodNotReady", Message: "no pod of " + set + " is ready"}, testIntervals.Unready},
		{1, metav1.Condition{Status: "True", Reason: "SomePodsReady", Message: "1 of 2 pods of " + set + " are ready"}, testIntervals.Unready},
		{2, metav1.Condition{Status: "True", Reason: "PodReady", Message: "2 of 2 pods of " + set + " are ready"}, testIntervals.Ready},
		{1, metav1.Condition{Status: "True", Reason: "SomePodsReady", Message: "1 of 2 pods of " + set + " are ready"}, testIntervals.Unready},
	} {
		s.setReady(t, "docker.io", step.ready)
		result, err := r.Reconcile(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if result.RequeueAfter != step.wantRequeue {
			t.Errorf("%d ready: looks again after %s, want %s", step.ready, result.RequeueAfter, step.wantRequeue)
		}
		step.want.Type = "Ready"
		got := s.status(t).Caches[0].Conditions
		if diff := cmp.Diff([]metav1.Condition{step.want}, got, cmpopts.IgnoreFields(metav1.Condition{}, "LastTransitionTime")); diff != "" {
			t.Errorf("%d ready: -want +got:\n%s", step.ready, diff)
		}
	}
}

func TestReadinessHasNothingToReport(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, s *testShoot)
	}{
		{"no Extension", func(*testing.T, *testShoot) {}},
		{"not deployed yet", func(t *testing.T, s *testShoot) { s.ask(t, "docker.io") }},
		{"Extension of another type", func(t *testing.T, s *testShoot) {
			s.reconcile(t, s.ask(t, "docker.io"))
			ex := s.extension(t)
			ex.Spec.Type = "registry-mirror"
			if err := s.seed.Update(t.Context(), ex); err != nil {
				t.Fatal(err)
			}
		}},
		{"being deleted", func(t *testing.T, s *testShoot) {
			s.reconcile(t, s.ask(t, "docker.io"))
			ex := s.extension(t)
			ex.Finalizers = []string{"extensions.gardener.cloud/registry-cache"}
			if err := s.seed.Update(t.Context(), ex); err != nil {
				t.Fatal(err)
			}
			if err := s.seed.Delete(t.Context(), ex); err != nil {
				t.Fatal(err)
			}
		}},
		{"hibernated", func(t *testing.T, s *testShoot) {
			s.reconcile(t, s.ask(t, "docker.io"))
			s.hibernate(t)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTestShoot(t)
			tc.prepare(t, s)
			before := s.writes
			noShoot := func(context.Context, string) (client.Client, error) { return nil, errInjected }
			result, err := (&readiness{seed: s.seed, forShoot: noShoot}).Reconcile(t.Context(), request)
			if err != nil || result != (reconcile.Result{}) {
				t.Errorf("got %v, %v", result, err)
			}
			if s.writes != before {
				t.Errorf("%d writes", s.writes-before)
			}
		})
	}
}

func TestReadinessDoesNotOverwriteTheActuator(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.setReady(t, "docker.io", 1)

	// The actuator publishes ghcr.io just when the readiness has been looked up.
	forShoot := func(ctx context.Context, namespace string) (client.Client, error) {
		s.reconcile(t, s.ask(t, "docker.io", "ghcr.io"))
		return s.client(ctx, namespace)
	}
	result, err := (&readiness{seed: s.seed, forShoot: forShoot}).Reconcile(t.Context(), request)
	if err != nil || result.RequeueAfter == 0 {
		t.Errorf("got %v, %v, want another attempt", result, err)
	}
	if got := len(s.status(t).Caches); got != 2 {
		t.Errorf("%d caches are published, want 2", got)
	}
}

func TestReadinessReportsErrors(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	noShoot := func(context.Context, string) (client.Client, error) { return nil, errInjected }
	if _, err := (&readiness{seed: s.seed, forShoot: noShoot}).Reconcile(t.Context(), request); !errors.Is(err, errInjected) {
		t.Errorf("no Shoot: got error %v", err)
	}
	s.setReady(t, "docker.io", 1)
	s.failAt = s.writes + 1
	if _, err := (&readiness{seed: s.seed, forShoot: s.client}).Reconcile(t.Context(), request); !errors.Is(err, errInjected) {
		t.Errorf("status cannot be written: got error %v", err)
	}
}

// An API server that is reached and never answers would keep a worker for ever.
func TestReadinessGivesUpOnASilentShoot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestShoot(t)
		s.reconcile(t, s.ask(t, "docker.io"))
		silent := func(ctx context.Context, _ string) (client.Client, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		began := time.Now()
		_, err := (&readiness{seed: s.seed, forShoot: silent}).Reconcile(t.Context(), request)
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > time.Minute {
			t.Errorf("got error %v after %s", err, took)
		}
	})
}

func (s *testShoot) hibernate(t *testing.T) {
	t.Helper()
	cluster := &extensionsv1alpha1.Cluster{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, cluster); err != nil {
		t.Fatal(err)
	}
	cluster.Spec.Shoot = runtime.RawExtension{Raw: []byte(`{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","spec":{"hibernation":{"enabled":true}}}`)}
	if err := s.seed.Update(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
}
