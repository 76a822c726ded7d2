// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const shootNamespace = "shoot--dev--crazy-botany"

// landscape is a garden in memory. Its gardenlet works on a Shoot while that is read, so the next reader sees the outcome.
type landscape struct {
	*garden
	// outcome is what the gardenlet reports.
	outcome gardencorev1beta1.LastOperation
	errors  []gardencorev1beta1.LastError
	// orders are the operations that the annotation has asked for.
	orders []string
	// retries is the number of reads until the gardenlet retries a failed operation successfully, 0 if it never does.
	retries int
	// refuse is the API server's answer to what is written.
	refuse error
}

func newLandscape() *landscape {
	l := &landscape{outcome: gardencorev1beta1.LastOperation{Type: "Create", State: "Succeeded", Progress: 100}}
	c := fake.NewClientBuilder().WithScheme(gardenlet.Scheme()).WithStatusSubresource(&gardencorev1beta1.Shoot{}).
		WithObjects(&extensionsv1alpha1.Extension{
			ObjectMeta: metav1.ObjectMeta{Namespace: shootNamespace, Name: registryCache},
			Status: extensionsv1alpha1.ExtensionStatus{DefaultStatus: extensionsv1alpha1.DefaultStatus{ProviderStatus: &runtime.RawExtension{
				Raw: []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryStatus","caches":[{"upstream":"docker.io","endpoint":"http://10.96.1.2:5000"}]}`),
			}}},
		}).
		WithInterceptorFuncs(interceptor.Funcs{
			Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
				if l.refuse != nil {
					return l.refuse
				}
				object.SetGeneration(1)
				object.SetFinalizers([]string{"gardener"})
				return c.Create(ctx, object, options...)
			},
			Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
				if l.refuse != nil {
					return l.refuse
				}
				stored := &gardencorev1beta1.Shoot{}
				if err := c.Get(ctx, client.ObjectKeyFromObject(object), stored); err != nil {
					return err
				}
				if !equality.Semantic.DeepEqual(stored.Spec, object.(*gardencorev1beta1.Shoot).Spec) {
					object.SetGeneration(object.GetGeneration() + 1)
				}
				return c.Update(ctx, object, options...)
			},
			Patch: func(ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
				if err := c.Patch(ctx, object, patch, options...); err != nil {
					return err
				}
				annotations := object.GetAnnotations()
				if operation := annotations["gardener.cloud/operation"]; operation != "" {
					l.orders = append(l.orders, operation)
					delete(annotations, "gardener.cloud/operation")
					object.SetGeneration(object.GetGeneration() + 1)
				}
				return c.Update(ctx, object)
			},
			Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
				if err := c.Delete(ctx, object, options...); err != nil {
					return err
				}
				if err := c.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
					return err
				}
				object.SetGeneration(object.GetGeneration() + 1)
				return c.Update(ctx, object)
			},
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
				if err := c.Get(ctx, key, object, options...); err != nil {
					return err
				}
				shoot, ok := object.(*gardencorev1beta1.Shoot)
				if !ok {
					return nil
				}
				if l.retries > 0 && l.outcome.State == gardencorev1beta1.LastOperationStateError {
					if l.retries--; l.retries == 0 {
						l.outcome.State, l.errors = gardencorev1beta1.LastOperationStateSucceeded, nil
						return l.work(ctx, c, shoot.DeepCopy())
					}
				}
				if shoot.Status.ObservedGeneration != shoot.Generation {
					return l.work(ctx, c, shoot.DeepCopy())
				}
				return nil
			},
		}).Build()
	l.garden = &garden{client: c, progress: workspace.NewProgress(io.Discard), interval: time.Millisecond}
	return l
}

func (l *landscape) work(ctx context.Context, c client.Client, shoot *gardencorev1beta1.Shoot) error {
	shoot.Status.TechnicalID, shoot.Status.ObservedGeneration = shootNamespace, shoot.Generation
	shoot.Status.LastOperation, shoot.Status.LastErrors = &l.outcome, l.errors
	if err := c.Status().Update(ctx, shoot); err != nil {
		return err
	}
	if shoot.DeletionTimestamp == nil || l.outcome.State != gardencorev1beta1.LastOperationStateSucceeded {
		return nil
	}
	if shoot.Annotations["confirmation.gardener.cloud/deletion"] != "true" {
		return apierrors.NewForbidden(gardencorev1beta1.Resource("shoots"), shoot.Name, nil)
	}
	shoot.Finalizers = nil
	return c.Update(ctx, shoot)
}

func (l *landscape) applyManifest(t *testing.T, manifest string) (*Result, error) {
	t.Helper()
	shoot, err := Parse([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return l.apply(t.Context(), shoot)
}

func (l *landscape) stored(t *testing.T) *gardencorev1beta1.Shoot {
	t.Helper()
	shoot := &gardencorev1beta1.Shoot{}
	if err := l.client.Get(t.Context(), client.ObjectKey{Namespace: "garden-dev", Name: "crazy-botany"}, shoot); err != nil {
		t.Fatal(err)
	}
	return shoot
}

func TestApplyWaitsForTheGardenlet(t *testing.T) {
	t.Parallel()
	l := newLandscape()
	result, err := l.applyManifest(t, documented)
	if err != nil {
		t.Fatal(err)
	}
	if result.Namespace != shootNamespace || len(result.Status.Caches) != 1 || result.Status.Caches[0].Endpoint != "http://10.96.1.2:5000" {
		t.Errorf("result is %+v", result)
	}

	without, _, _ := strings.Cut(documented, "spec:")
	if result, err = l.applyManifest(t, without); err != nil || result.Status != nil {
		t.Errorf("without the extension the result is %+v, %v", result, err)
	}
	shoot := l.stored(t)
	if len(shoot.Spec.Extensions) != 0 || shoot.Generation != 2 || len(l.orders) > 0 {
		t.Errorf("after a change the Shoot is %+v, orders are %q", shoot, l.orders)
	}
	if _, err = l.applyManifest(t, without); err != nil || !slices.Equal(l.orders, []string{"reconcile"}) {
		t.Errorf("orders for the same manifest are %q, %v", l.orders, err)
	}
}

func TestApplyReturnsWhyTheOperationFailed(t *testing.T) {
	t.Parallel()
	l := newLandscape()
	l.outcome = gardencorev1beta1.LastOperation{Type: "Create", State: "Failed", Progress: 44}
	l.errors = []gardencorev1beta1.LastError{{Description: "providerConfig.caches[0].upstream: bad", TaskID: new("Waiting")}}
	_, err := l.applyManifest(t, documented)
	for _, want := range []string{"garden-dev/crazy-botany", "Create Failed (44%)", "Waiting: providerConfig.caches[0].upstream: bad"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v\nwant it to contain %s", err, want)
		}
	}
	l.outcome.State, l.errors = "Succeeded", nil
	if _, err := l.applyManifest(t, documented); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(l.orders, []string{"retry"}) {
		t.Errorf("the orders after a failure are %q, want retry", l.orders)
	}
}

func TestApplyReturnsWhatTheAPIServerRefuses(t *testing.T) {
	t.Parallel()
	l := newLandscape()
	l.refuse = apierrors.NewForbidden(gardencorev1beta1.Resource("shoots"), "crazy-botany", context.Canceled)
	if _, err := l.applyManifest(t, documented); !apierrors.IsForbidden(err) {
		t.Errorf("error is %v, want the API server's", err)
	}
}

func TestDeleteConfirmsAndWaits(t *testing.T) {
	t.Parallel()
	l := newLandscape()
	key := client.ObjectKey{Namespace: "garden-dev", Name: "crazy-botany"}
	if err := l.delete(t.Context(), key); err != nil {
		t.Errorf("deleting what does not exist: %v", err)
	}
	if _, err := l.applyManifest(t, documented); err != nil {
		t.Fatal(err)
	}
	l.outcome = gardencorev1beta1.LastOperation{Type: "Delete", State: "Failed"}
	l.errors = []gardencorev1beta1.LastError{{Description: "stuck"}}
	if err := l.delete(t.Context(), key); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("error is %v, want the gardenlet's", err)
	}
	if _, err := l.applyManifest(t, documented); err == nil || !strings.Contains(err.Error(), "it is being deleted") {
		t.Errorf("error is %v", err)
	}
	l.outcome = gardencorev1beta1.LastOperation{Type: "Delete", State: "Succeeded", Progress: 100}
	if err := l.delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if err := l.client.Get(t.Context(), key, &gardencorev1beta1.Shoot{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Shoot still exists: %v", err)
	}
}

// withShoot returns a landscape with a Shoot.
func withShoot(t *testing.T) (*landscape, client.ObjectKey) {
	t.Helper()
	l := newLandscape()
	if _, err := l.applyManifest(t, documented); err != nil {
		t.Fatal(err)
	}
	return l, client.ObjectKey{Namespace: "garden-dev", Name: "crazy-botany"}
}

// The gardenlet retries an operation in state Error, for example after the timeout of one of its steps.
func TestDeleteWaitsForRetries(t *testing.T) {
	t.Parallel()
	l, key := withShoot(t)
	l.outcome = gardencorev1beta1.LastOperation{Type: "Delete", State: "Error"}
	l.errors = []gardencorev1beta1.LastError{{Description: "timeout"}}
	l.retries = 4
	if err := l.delete(t.Context(), key); err != nil {
		t.Error(err)
	}
	if err := l.client.Get(t.Context(), key, &gardencorev1beta1.Shoot{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Shoot still exists: %v", err)
	}
}

func TestApplyWaitsForRetries(t *testing.T) {
	t.Parallel()
	l := newLandscape()
	l.outcome = gardencorev1beta1.LastOperation{Type: "Create", State: "Error"}
	l.errors = []gardencorev1beta1.LastError{{Description: "timeout"}}
	l.retries = 4
	if _, err := l.applyManifest(t, documented); err != nil {
		t.Error(err)
	}
}

// A reconciliation that fails again and again returns its error, because the caller can correct the Shoot.
func TestAttempts(t *testing.T) {
	t.Parallel()
	shoot := &gardencorev1beta1.Shoot{Status: gardencorev1beta1.ShootStatus{ObservedGeneration: 1, LastOperation: &gardencorev1beta1.LastOperation{State: "Error"}}}
	var tried attempts
	for attempt := range maxFailures {
		shoot.Status.LastOperation.LastUpdateTime = metav1.Unix(int64(attempt), 0)
		for range 2 { // the second read of the same state does not count
			tried.observe(shoot, 1)
		}
		reads := 0
		err := poll.Until(t.Context(), time.Millisecond, 20*time.Millisecond, func(context.Context) error {
			reads++
			return outcome(shoot, 1, tried.failed)
		})
		if last := attempt == maxFailures-1; (reads == 1) != last {
			t.Errorf("attempt %d was read %d times: %v", attempt, reads, err)
		}
	}
	tried = attempts{}
	if tried.observe(shoot, 2); tried.failed != 0 {
		t.Error("a failure of an earlier generation counts")
	}
}

// failTwice makes the first two calls of a method fail.
func failTwice(l *landscape, err error) (calls *int) {
	calls = new(int)
	fail := func() error {
		if *calls++; *calls <= 2 {
			return err
		}
		return nil
	}
	l.client = interceptor.NewClient(l.client.(client.WithWatch), interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
			if err := fail(); err != nil {
				return err
			}
			return c.Delete(ctx, object, options...)
		},
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			if err := fail(); err != nil {
				return err
			}
			return c.Update(ctx, object, options...)
		},
	})
	return calls
}

func TestRequestsAreRepeated(t *testing.T) {
	t.Parallel()
	timeout := apierrors.NewTimeoutError("etcdserver: request timed out", 1)
	l, key := withShoot(t)
	calls := failTwice(l, timeout)
	if err := l.delete(t.Context(), key); err != nil || *calls != 3 {
		t.Errorf("deletion: %v after %d requests", err, *calls)
	}
	l, _ = withShoot(t)
	calls = failTwice(l, &apierrors.StatusError{ErrStatus: metav1.Status{Code: 500, Message: "etcdserver: request timed out"}})
	if _, err := l.applyManifest(t, documented); err != nil || *calls != 3 {
		t.Errorf("update: %v after %d requests", err, *calls)
	}
	// Another request would have the same result.
	for _, rejection := range []error{apierrors.NewBadRequest("no"), apierrors.NewInternalError(errors.New("webhook"))} {
		l, key = withShoot(t)
		calls = failTwice(l, rejection)
		if err := l.delete(t.Context(), key); !errors.Is(err, rejection) || *calls != 1 {
			t.Errorf("rejected deletion: %v after %d requests", err, *calls)
		}
	}
}
