// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

const dockerClaim = "cache-volume-registry-docker-io-0"

func TestDecideVolume(t *testing.T) {
	t.Parallel()
	expandable := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "std"}, AllowVolumeExpansion: new(true)}
	fixed := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "std"}, AllowVolumeExpansion: new(false)}
	silent := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "std"}}
	pending := func(claim *corev1.PersistentVolumeClaim) { claim.Status.Phase = corev1.ClaimPending }
	for _, tc := range []struct {
		name                      string
		size, requested, capacity string
		class                     *storagev1.StorageClass
		change                    func(*corev1.PersistentVolumeClaim)
		grow                      bool
		status                    metav1.ConditionStatus
		reason, message           string // the beginning of it
	}{
		{"as configured", "10Gi", "10Gi", "10Gi", nil, nil, false, "True", "AsConfigured", "has the 10Gi that are configured"},
		{"written otherwise", "10240Mi", "10Gi", "10Gi", nil, nil, false, "True", "AsConfigured", "has the 10Gi that are configured"},
		{"rounded up by the storage", "10Gi", "10Gi", "16Gi", nil, nil, false, "True", "AsConfigured", "has the 10Gi that are configured"},
		{"enlarged by the owner", "10Gi", "20Gi", "20Gi", expandable, nil, false, "True", "LargerThanConfigured", "has 20Gi, more than the 10Gi that are configured, and stays so"},
		{"enlarged by the owner just now", "10Gi", "20Gi", "10Gi", expandable, nil, false, "False", "Resizing", "grows from 10Gi to 20Gi"},
		{"too small", "20Gi", "10Gi", "10Gi", expandable, nil, true, "", "", ""},
		{"too small by a byte", "10737418241", "10Gi", "10Gi", expandable, nil, true, "", "", ""},
		{"too small, though it has more than it asks for", "20Gi", "10Gi", "30Gi", expandable, nil, true, "", "", ""},
		{"too small, and growing already", "30Gi", "20Gi", "10Gi", expandable, nil, true, "", "", ""},
		{"growing", "20Gi", "20Gi", "10Gi", expandable, nil, false, "False", "Resizing", "grows from 10Gi to 20Gi"},
		{"growing, the storage has something to say", "20Gi", "20Gi", "10Gi", expandable, func(claim *corev1.PersistentVolumeClaim) {
			claim.Status.Conditions = []corev1.PersistentVolumeClaimCondition{
				{Type: "Resizing", Status: "True"},
				{Type: "NodeResizeError", Status: "False", Message: "gone"},
				{Type: "ControllerResizeError", Status: "True", Message: "out of space"},
			}
		}, false, "False", "Resizing", "grows from 10Gi to 20Gi; ControllerResizeError: out of space"},
		{"class forbids it", "20Gi", "10Gi", "10Gi", fixed, nil, false, "False", "NotExpandable", "has 10Gi, 20Gi are configured, and it cannot grow: its StorageClass std does not allow that. Nothing was changed"},
		{"class does not say", "20Gi", "10Gi", "10Gi", silent, nil, false, "False", "NotExpandable", "has 10Gi, 20Gi are configured, and it cannot grow: its StorageClass std does not allow that. Nothing was changed"},
		{"class is gone", "20Gi", "10Gi", "10Gi", nil, nil, false, "False", "NotExpandable", "has 10Gi, 20Gi are configured, and it cannot grow: its StorageClass std does not exist. Nothing was changed"},
		{"no class", "20Gi", "10Gi", "10Gi", nil, func(claim *corev1.PersistentVolumeClaim) { claim.Spec.StorageClassName = nil }, false, "False", "NotExpandable", "has 10Gi, 20Gi are configured, and it cannot grow: it has no StorageClass. Nothing was changed"},
		{"empty class", "20Gi", "10Gi", "10Gi", nil, func(claim *corev1.PersistentVolumeClaim) { claim.Spec.StorageClassName = new("") }, false, "False", "NotExpandable", "has 10Gi, 20Gi are configured, and it cannot grow: it has no StorageClass. Nothing was changed"},
		{"class forbids it, and nobody wants it", "10Gi", "10Gi", "10Gi", fixed, nil, false, "True", "AsConfigured", "has the 10Gi that are configured"},
		{"not bound", "20Gi", "10Gi", "", expandable, pending, false, "Unknown", "NotProvisioned", "asks for 10Gi and has no volume yet"},
	} {
		claim := newClaim(dockerClaim, tc.requested, tc.capacity)
		if tc.change != nil {
			tc.change(claim)
		}
		grow, condition := decideVolume(claim, tc.class, resource.MustParse(tc.size))
		if grow != tc.grow || condition.Status != tc.status || condition.Reason != tc.reason {
			t.Errorf("%s: got %t, %s %s, want %t, %s %s", tc.name, grow, condition.Status, condition.Reason, tc.grow, tc.status, tc.reason)
		}
		if want := "PersistentVolumeClaim kube-system/" + dockerClaim + " " + tc.message; !grow && !strings.HasPrefix(condition.Message, want) {
			t.Errorf("%s: got message %q, want %q", tc.name, condition.Message, want)
		}
		if wayOut := strings.Contains(condition.Message, "remove the cache from the Shoot and add it again"); wayOut != (tc.reason == "NotExpandable") {
			t.Errorf("%s: the message tells a way out: %t: %s", tc.name, wayOut, condition.Message)
		}
	}
}

func TestVolumeGrows(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.createClass(t, true)
	s.reconcile(t, s.askSize(t, "10Gi"))
	s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
	s.setReady(t, "docker.io", 1)
	s.takeLog()

	s.actuator.waitTimeout = time.Minute
	s.reconcile(t, s.askSize(t, "20Gi"))
	want := []string{
		"patch " + dockerClaim, "apply " + workloads, "status docker.io",
		"delete registry-docker-io", "apply " + workloads,
	}
	if diff := cmp.Diff(want, s.takeLog()); diff != "" {
		t.Errorf("log: -want +got:\n%s", diff)
	}
	s.checkRequest(t, dockerClaim, "20Gi")
	s.checkVolume(t, "20Gi", "10Gi", "False", "Resizing")
	s.checkContentSize(t, "10Gi")
	pod := s.set(t).Spec.Template

	// The storage is slow. The cache is ready all the time, and uses what the volume has.
	r := &readiness{seed: s.seed, forShoot: s.client, intervals: testIntervals}
	s.setReady(t, "docker.io", 1)
	for _, step := range []struct {
		capacity       string
		requeue        time.Duration
		status, reason string
		larger         bool
	}{
		{"10Gi", testIntervals.Unready, "False", "Resizing", false},
		{"15Gi", testIntervals.Unready, "False", "Resizing", true},
		{"20Gi", testIntervals.Ready, "True", "AsConfigured", true},
	} {
		s.setCapacity(t, dockerClaim, step.capacity)
		before := s.extension(t)
		result, err := r.Reconcile(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if result.RequeueAfter != step.requeue {
			t.Errorf("at %s it looks again after %s, want %s", step.capacity, result.RequeueAfter, step.requeue)
		}
		s.checkVolume(t, "20Gi", step.capacity, step.status, step.reason)
		if !meta.IsStatusConditionTrue(s.status(t).Caches[0].Conditions, "Ready") {
			t.Errorf("at %s the cache is not ready", step.capacity)
		}
		update := event.UpdateEvent{ObjectOld: before, ObjectNew: s.extension(t)}
		if larger := contentSizeChanged().Update(update); larger != step.larger {
			t.Errorf("at %s the actuator is called: %t, want %t", step.capacity, larger, step.larger)
		}
		if step.larger {
			s.reconcile(t, s.extension(t))
		}
		s.checkContentSize(t, step.capacity)
	}
	if diff := cmp.Diff(pod, s.set(t).Spec.Template); diff != "" {
		t.Errorf("the pod is restarted: -before +after:\n%s", diff)
	}

	before := s.writes
	s.reconcile(t, s.extension(t))
	if _, err := r.Reconcile(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if s.writes != before {
		t.Errorf("%d writes although nothing has changed: %v", s.writes-before, s.takeLog())
	}
}

// An error of one volume stops no cache. The content keeps the size of the volume, because a larger one would not fit.
func TestVolumeThatFails(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.createClass(t, true)
	s.reconcile(t, s.askSize(t, "10Gi"))
	s.createClaim(t, newClaim(dockerClaim, "10Gi", "9Gi"))
	s.reconcile(t, s.extension(t))
	s.takeLog()

	s.actuator.waitTimeout = time.Minute
	s.beforePatch = func(obj client.Object) error {
		return apierrors.NewInternalError(errors.New("the webhook of " + obj.GetName() + " is unavailable"))
	}
	err := s.actuator.Reconcile(t.Context(), logr.Discard(), s.askSize(t, "20Gi"))
	if err == nil || !strings.Contains(err.Error(), "the webhook of "+dockerClaim) {
		t.Errorf("got %v", err)
	}
	if log := s.takeLog(); !slices.Contains(log, "apply "+workloads) {
		t.Errorf("the caches were not deployed: %v", log)
	}
	s.checkVolume(t, "10Gi", "9Gi", "False", "Resizing")
	s.checkContentSize(t, "9Gi")
	s.checkTemplate(t, "20Gi")

	// The error is reported with that of a later step.
	seed := s.actuator.seed
	s.actuator.seed = interceptor.NewClient(s.seed.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, ok := list.(*resourcesv1alpha1.ManagedResourceList); ok {
				return errors.New("no list")
			}
			return c.List(ctx, list, opts...)
		},
	})
	err = s.actuator.Reconcile(t.Context(), logr.Discard(), s.extension(t))
	if err == nil || !strings.Contains(err.Error(), "the webhook of "+dockerClaim) || !strings.Contains(err.Error(), "no list") {
		t.Errorf("got %v", err)
	}
	s.actuator.seed = seed

	s.beforePatch = nil
	s.reconcile(t, s.extension(t))
	s.checkVolume(t, "20Gi", "9Gi", "False", "Resizing")
}

func TestVolumeThatIsNotGrown(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name                string
		prepare             func(t *testing.T, s *testShoot)
		size                string
		requested, capacity string // in the status
		status, reason      string
		contentSize         string // of the server
		patches             int
	}{
		{"enlarged by the owner beyond what is configured", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			s.createClaim(t, newClaim(dockerClaim, "50Gi", "50Gi"))
		}, "20Gi", "50Gi", "50Gi", "True", "LargerThanConfigured", "50Gi", 0},
		{"configured smaller", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
		}, "5Gi", "10Gi", "10Gi", "True", "LargerThanConfigured", "10Gi", 0},
		{"not expandable", func(t *testing.T, s *testShoot) {
			s.createClass(t, false)
			s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
		}, "20Gi", "10Gi", "10Gi", "False", "NotExpandable", "10Gi", 0},
		{"no such class", func(t *testing.T, s *testShoot) {
			s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
		}, "20Gi", "10Gi", "10Gi", "False", "NotExpandable", "10Gi", 0},
		{"quota", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
			s.beforePatch = func(obj client.Object) error {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "persistentvolumeclaims"}, obj.GetName(), errors.New("exceeded quota"))
			}
		}, "20Gi", "10Gi", "10Gi", "False", "Refused", "10Gi", 1},
		{"not bound", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			claim := newClaim(dockerClaim, "10Gi", "")
			claim.Status.Phase = corev1.ClaimPending
			s.createClaim(t, claim)
		}, "20Gi", "10Gi", "", "Unknown", "NotProvisioned", "10Gi", 0},
		{"claims of others and of a replica that is gone", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			s.createClaim(t, newClaim(dockerClaim, "20Gi", "20Gi"))
			s.createClaim(t, newClaim("cache-volume-registry-docker-io-1", "10Gi", "10Gi"))
			s.createClaim(t, newClaim("data-of-somebody-0", "1Gi", "1Gi"))
		}, "20Gi", "20Gi", "20Gi", "True", "AsConfigured", "20Gi", 0},
		{"the smaller one of two replicas counts", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			s.setReplicas(t, 2)
			s.createClaim(t, newClaim(dockerClaim, "50Gi", "50Gi"))
			s.createClaim(t, newClaim("cache-volume-registry-docker-io-1", "30Gi", "20Gi"))
		}, "20Gi", "30Gi", "20Gi", "False", "Resizing", "20Gi", 0},
		{"a volume of the second replica is not there yet", func(t *testing.T, s *testShoot) {
			s.createClass(t, true)
			s.setReplicas(t, 2)
			s.createClaim(t, newClaim(dockerClaim, "20Gi", "32Gi"))
			claim := newClaim("cache-volume-registry-docker-io-1", "20Gi", "")
			claim.Status.Phase = corev1.ClaimPending
			s.createClaim(t, claim)
		}, "20Gi", "20Gi", "32Gi", "Unknown", "NotProvisioned", "32Gi", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newTestShoot(t)
			s.actuator.waitTimeout = time.Minute
			s.reconcile(t, s.askSize(t, "10Gi"))
			tc.prepare(t, s)
			s.takeLog()
			s.reconcile(t, s.askSize(t, tc.size))
			patches := 0
			for _, entry := range s.takeLog() {
				if strings.HasPrefix(entry, "patch ") {
					patches++
				}
			}
			if patches != tc.patches {
				t.Errorf("%d patches, want %d", patches, tc.patches)
			}
			s.checkVolume(t, tc.requested, tc.capacity, tc.status, tc.reason)
			s.checkContentSize(t, tc.contentSize)
			// Later replicas get what is configured all the same.
			s.checkTemplate(t, tc.size)
		})
	}
}

// What could not grow at first grows as soon as it can.
func TestPendingVolumeGrowsLater(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.actuator.waitTimeout = time.Minute
	s.createClass(t, true)
	s.reconcile(t, s.askSize(t, "10Gi"))
	claim := newClaim(dockerClaim, "10Gi", "")
	claim.Status.Phase = corev1.ClaimPending
	s.createClaim(t, claim)
	s.reconcile(t, s.askSize(t, "20Gi"))
	s.setReady(t, "docker.io", 1)
	r := &readiness{seed: s.seed, forShoot: s.client, intervals: testIntervals}
	if result, err := r.Reconcile(t.Context(), request); err != nil || result.RequeueAfter != testIntervals.Unready {
		t.Errorf("not bound: got %v, %v, want another look", result, err)
	}
	s.checkRequest(t, dockerClaim, "10Gi")
	s.setCapacity(t, dockerClaim, "10Gi")
	if _, err := r.Reconcile(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	s.checkRequest(t, dockerClaim, "20Gi")
	s.checkVolume(t, "20Gi", "10Gi", "False", "Resizing")
}

// The owner asks for more in the moment between our look and our patch.
func TestOwnerIsFaster(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.actuator.waitTimeout = time.Minute
	s.createClass(t, true)
	s.reconcile(t, s.askSize(t, "10Gi"))
	s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
	s.beforePatch = func(client.Object) error {
		claim := s.claim(t, dockerClaim)
		claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("50Gi")
		return s.shoot.Update(t.Context(), claim)
	}
	s.reconcile(t, s.askSize(t, "20Gi"))
	s.checkRequest(t, dockerClaim, "50Gi")
	s.checkVolume(t, "50Gi", "10Gi", "False", "Resizing")
}

// Whatever call fails, read or write, the next attempt ends where an undisturbed one would have.
func TestGrowingConvergesIfAnyCallFails(t *testing.T) {
	t.Parallel()
	calls := int64(0)
	for failAt := int64(1); ; failAt++ {
		s := newTestShoot(t)
		s.actuator.waitTimeout = time.Minute
		s.createClass(t, true)
		s.reconcile(t, s.askSize(t, "10Gi"))
		s.createClaim(t, newClaim(dockerClaim, "10Gi", "10Gi"))
		ex := s.askSize(t, "20Gi")
		before := s.calls.Load()
		s.failCall = before + failAt
		err := s.actuator.Reconcile(t.Context(), logr.Discard(), ex)
		if s.calls.Load() < s.failCall {
			if err != nil || calls < 15 {
				t.Errorf("%d calls, error %v: this test does not test what it should", calls, err)
			}
			return
		}
		calls++
		if !errors.Is(err, errInjected) {
			t.Errorf("call %d fails: got error %v", failAt, err)
		}
		s.reconcile(t, s.extension(t))
		s.checkRequest(t, dockerClaim, "20Gi")
		s.checkTemplate(t, "20Gi")
		s.checkVolume(t, "20Gi", "10Gi", "False", "Resizing")
		if t.Failed() {
			t.Fatalf("call %d has failed", failAt)
		}
	}
}

// A volume that cannot be looked at is no reason to hide which caches are ready.
func TestReadinessIsReportedWithoutVolumes(t *testing.T) {
	t.Parallel()
	s := newTestShoot(t)
	s.reconcile(t, s.ask(t, "docker.io"))
	s.setReady(t, "docker.io", 1)
	noClaims := func(ctx context.Context, namespace string) (client.Client, error) {
		c, err := s.client(ctx, namespace)
		return failingClaims{c}, err
	}
	if _, err := (&readiness{seed: s.seed, forShoot: noClaims}).Reconcile(t.Context(), request); !errors.Is(err, errInjected) {
		t.Errorf("got error %v", err)
	}
	if !meta.IsStatusConditionTrue(s.status(t).Caches[0].Conditions, "Ready") {
		t.Error("the cache is not ready")
	}
}

type failingClaims struct{ client.Client }

func (f failingClaims) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if _, ok := list.(*corev1.PersistentVolumeClaimList); ok {
		return errInjected
	}
	return f.Client.List(ctx, list, opts...)
}

func TestWhichStatusIsLookedAt(t *testing.T) {
	t.Parallel()
	extension := func(kind, status string) *extensionsv1alpha1.Extension {
		ex := &extensionsv1alpha1.Extension{}
		ex.Spec.Type = kind
		if status != "" {
			ex.Status.ProviderStatus = &runtime.RawExtension{Raw: []byte(status)}
		}
		return ex
	}
	for _, tc := range []struct {
		name          string
		before, after client.Object
		want          bool
	}{
		{"first status", extension(Type, ""), extension(Type, "{}"), true},
		{"changed", extension(Type, "{}"), extension(Type, `{"caches":[]}`), true},
		{"the same", extension(Type, "{}"), extension(Type, "{}"), false},
		{"of another type", extension("other", ""), extension("other", "{}"), false},
	} {
		if got := statusChanged().Update(event.UpdateEvent{ObjectOld: tc.before, ObjectNew: tc.after}); got != tc.want {
			t.Errorf("%s: got %t, want %t", tc.name, got, tc.want)
		}
	}
}

// newClaim is a claim of docker.io of StorageClass std. It is bound; capacity "" leaves that out.
func newClaim(name, requested, capacity string) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
		Namespace: "kube-system", Name: name, Labels: map[string]string{"upstream-host": "docker.io"},
	}}
	claim.Spec.StorageClassName = new("std")
	claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(requested)}
	claim.Status.Phase = corev1.ClaimBound
	if capacity != "" {
		claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(capacity)}
	}
	return claim
}

func (s *testShoot) createClass(t *testing.T, expandable bool) {
	t.Helper()
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "std"}, AllowVolumeExpansion: &expandable}
	if err := s.shoot.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) createClaim(t *testing.T, claim *corev1.PersistentVolumeClaim) {
	t.Helper()
	status := claim.Status
	if err := s.shoot.Create(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	claim.Status = status
	if err := s.shoot.Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) claim(t *testing.T, name string) *corev1.PersistentVolumeClaim {
	t.Helper()
	claim := &corev1.PersistentVolumeClaim{}
	if err := s.shoot.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: name}, claim); err != nil {
		t.Fatal(err)
	}
	return claim
}

// setCapacity binds a claim, or has its volume grow.
func (s *testShoot) setCapacity(t *testing.T, name, capacity string) {
	t.Helper()
	claim := s.claim(t, name)
	claim.Status.Phase = corev1.ClaimBound
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(capacity)}
	if err := s.shoot.Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
}

// setReplicas does what the webhook for high availability does, now and whenever the StatefulSet is written.
func (s *testShoot) setReplicas(t *testing.T, replicas int32) {
	t.Helper()
	s.mu.Lock()
	s.replicas = replicas
	s.mu.Unlock()
	set := s.set(t)
	set.Spec.Replicas = &replicas
	if err := s.shoot.Update(t.Context(), set); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) checkRequest(t *testing.T, name, want string) {
	t.Helper()
	if got := s.claim(t, name).Spec.Resources.Requests.Storage().String(); got != want {
		t.Errorf("%s asks for %s, want %s", name, got, want)
	}
}

// checkContentSize checks the limit of the server's configuration in the Shoot.
func (s *testShoot) checkContentSize(t *testing.T, want string) {
	t.Helper()
	document := s.configSecret(t, "registry-docker-io")["config.yaml"]
	if line := "\n  size: " + want + "\n"; !strings.Contains(document, line) {
		t.Errorf("the content may not use %s:\n%s", want, document)
	}
}

func (s *testShoot) checkVolume(t *testing.T, requested, capacity, status, reason string) {
	t.Helper()
	cache := s.status(t).Caches[0]
	want := &v1alpha3.VolumeStatus{Requested: resource.MustParse(requested)}
	if capacity != "" {
		want.Capacity = new(resource.MustParse(capacity))
	}
	if diff := cmp.Diff(want, cache.Volume); diff != "" {
		t.Errorf("volume: -want +got:\n%s", diff)
	}
	condition := meta.FindStatusCondition(cache.Conditions, "VolumeResized")
	if condition == nil || string(condition.Status) != status || condition.Reason != reason {
		t.Errorf("got condition %v, want %s %s", condition, status, reason)
	}
}
