// SPDX-License-Identifier: Apache-2.0

package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

const shootNamespace = "shoot--dev--crazy-botany"

var errInjected = errors.New("injected")

// testShoot is a Seed and a Shoot of fake clients. Between them it does the resource manager's part, at once: what a
// ManagedResource holds appears in the Shoot, and what it no longer holds goes.
type testShoot struct {
	seed client.Client
	// shoot is for the test and the resource manager. The client that the controllers get counts and fails as the one of
	// the Seed does.
	shoot    client.WithWatch
	actuator *Actuator

	// calls counts the writes and the reads; failCall is the one that fails, 0 for none.
	calls    atomic.Int64
	failCall int64

	mu sync.Mutex // guards what follows
	// log has an entry for each change in the order in which they happened: "apply <ManagedResource>", "delete …",
	// "status <upstreams>".
	log []string
	// held are ManagedResources that the resource manager does not touch, neither to apply nor to delete them.
	held map[string]bool
	// taken are addresses that belong to Services of others.
	taken map[string]bool
	// applied are the objects of each ManagedResource in the Shoot.
	applied map[string][]client.Object
	// writes counts the writes of the controllers to the Seed and to the Shoot; failAt is the one that fails, 0 for none.
	writes, failAt int
	// deletions are the options of all deletions in the Shoot, by the name of the object.
	deletions map[string]client.DeleteOptions
	// beforePatch is called before the controllers patch an object of the Shoot, and may fail in the API server's place.
	beforePatch func(client.Object) error
	// replicas is what the webhook for high availability makes of the replicas of StatefulSets, 0 for nothing.
	replicas    int32
	nextAddress int
	nextUID     int
}

func newTestShoot(t *testing.T) *testShoot {
	t.Helper()
	s := &testShoot{held: map[string]bool{}, taken: map[string]bool{}, applied: map[string][]client.Object{}, deletions: map[string]client.DeleteOptions{}, nextAddress: 20}
	// The default converters parse the schema of all of Kubernetes each time, for server-side apply.
	noSchema := managedfields.NewDeducedTypeConverter()
	s.shoot = fake.NewClientBuilder().WithScheme(kubernetes.ShootScheme).WithTypeConverters(noSchema).
		WithStatusSubresource(&appsv1.StatefulSet{}, &corev1.PersistentVolumeClaim{}).
		Build()
	s.seed = fake.NewClientBuilder().WithScheme(kubernetes.SeedScheme).WithTypeConverters(noSchema).
		WithStatusSubresource(&extensionsv1alpha1.Extension{}, &resourcesv1alpha1.ManagedResource{}).
		WithObjects(&extensionsv1alpha1.Cluster{
			ObjectMeta: metav1.ObjectMeta{Name: shootNamespace},
			Spec: extensionsv1alpha1.ClusterSpec{Shoot: runtime.RawExtension{
				Raw: []byte(`{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot","metadata":{"name":"crazy-botany"}}`),
			}},
		}).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				return s.read(func() error { return c.Get(ctx, key, obj, opts...) })
			},
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				return s.read(func() error { return c.List(ctx, list, opts...) })
			},
			Create: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
				return s.write(ctx, c, obj, func() error { return c.Create(ctx, obj, opts...) })
			},
			Update: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
				// The API server counts the changes of the spec, the fake client does not.
				obj.SetGeneration(obj.GetGeneration() + 1)
				return s.write(ctx, c, obj, func() error { return c.Update(ctx, obj, opts...) })
			},
			Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
				return s.write(ctx, c, obj, func() error { return c.Patch(ctx, obj, patch, opts...) })
			},
			Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
				resource, ok := obj.(*resourcesv1alpha1.ManagedResource)
				if !ok {
					return s.write(ctx, c, nil, func() error { return c.Delete(ctx, obj, opts...) })
				}
				return s.write(ctx, c, nil, func() error { return s.delete(ctx, c, resource) })
			},
			SubResourcePatch: func(ctx context.Context, c client.Client, subresource string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
				return s.write(ctx, c, nil, func() error {
					if err := c.SubResource(subresource).Patch(ctx, obj, patch, opts...); err != nil {
						return err
					}
					return s.logStatus(obj)
				})
			},
		}).
		Build()
	s.actuator = NewActuator(s.seed, s.client, desired.Options{Image: "registry.example.com/registry-cache:v1"})
	s.actuator.pollInterval, s.actuator.waitTimeout, s.actuator.withdrawAfter = time.Millisecond, 500*time.Millisecond, 0
	return s
}

func (s *testShoot) client(_ context.Context, namespace string) (client.Client, error) {
	if namespace != shootNamespace {
		return nil, fmt.Errorf("no Shoot in namespace %s", namespace)
	}
	return interceptor.NewClient(s.shoot, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			return s.read(func() error { return c.Get(ctx, key, obj, opts...) })
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			return s.read(func() error { return c.List(ctx, list, opts...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return s.write(ctx, c, nil, func() error {
				s.log = append(s.log, "patch "+obj.GetName())
				if s.beforePatch != nil {
					if err := s.beforePatch(obj); err != nil {
						return err
					}
				}
				return c.Patch(ctx, obj, patch, opts...)
			})
		},
		Delete: func(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return s.write(ctx, c, nil, func() error {
				s.log = append(s.log, "delete "+obj.GetName())
				options := client.DeleteOptions{}
				s.deletions[obj.GetName()] = *options.ApplyOptions(opts)
				return c.Delete(ctx, obj, opts...)
			})
		},
	}), nil
}

// read counts a read, and lets it fail if it is its turn.
func (s *testShoot) read(do func() error) error {
	if err := s.call(); err != nil {
		return err
	}
	return do()
}

func (s *testShoot) call() error {
	if s.calls.Add(1) == s.failCall {
		return errInjected
	}
	return nil
}

// write counts a write, lets it fail if it is its turn, and applies what it has written if that is a ManagedResource.
func (s *testShoot) write(ctx context.Context, c client.Client, obj client.Object, do func() error) error {
	if err := s.call(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.writes == s.failAt {
		return errInjected
	}
	if err := do(); err != nil {
		return err
	}
	if resource, ok := obj.(*resourcesv1alpha1.ManagedResource); ok {
		return s.apply(ctx, c, resource)
	}
	return nil
}

func (s *testShoot) apply(ctx context.Context, c client.Client, resource *resourcesv1alpha1.ManagedResource) error {
	s.log = append(s.log, "apply "+resource.Name)
	if s.held[resource.Name] {
		return nil
	}
	objects, err := managedresources.GetObjects(ctx, c, resource.Namespace, resource.Name)
	if err != nil {
		return err
	}
	setApplied := func(status gardencorev1beta1.ConditionStatus, reason, message string) error {
		resource.Status.ObservedGeneration = resource.Generation
		resource.Status.Conditions = []gardencorev1beta1.Condition{{
			Type: resourcesv1alpha1.ResourcesApplied, Status: status, Reason: reason, Message: message,
		}}
		return c.Status().Update(ctx, resource)
	}
	for _, obj := range objects {
		if service, ok := obj.(*corev1.Service); ok {
			live := &corev1.Service{}
			if err := s.shoot.Get(ctx, client.ObjectKeyFromObject(service), live); err == nil {
				service.Spec.ClusterIP = live.Spec.ClusterIP
			} else if s.taken[service.Spec.ClusterIP] {
				return setApplied(gardencorev1beta1.ConditionFalse, "ApplyFailed", "provided IP is already allocated")
			} else if service.Spec.ClusterIP == "" {
				service.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", s.nextAddress)
				s.nextAddress++
			}
		}
		if set, ok := obj.(*appsv1.StatefulSet); ok && s.replicas > 0 {
			set.Spec.Replicas = &s.replicas
		}
		live := obj.DeepCopyObject().(client.Object)
		if err := s.shoot.Get(ctx, client.ObjectKeyFromObject(obj), live); apierrors.IsNotFound(err) {
			s.nextUID++
			obj.SetUID(types.UID(fmt.Sprintf("uid-%d", s.nextUID)))
			if err := s.shoot.Create(ctx, obj); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		if set, ok := obj.(*appsv1.StatefulSet); ok {
			// As mergeStatefulSet of the resource manager does it.
			set.Spec.VolumeClaimTemplates = live.(*appsv1.StatefulSet).Spec.VolumeClaimTemplates
		}
		obj.SetResourceVersion(live.GetResourceVersion())
		obj.SetUID(live.GetUID())
		obj.SetFinalizers(live.GetFinalizers())
		if err := s.shoot.Update(ctx, obj); err != nil {
			return err
		}
	}
	for _, old := range s.applied[resource.Name] {
		if !slices.ContainsFunc(objects, func(obj client.Object) bool {
			return obj.GetName() == old.GetName() && fmt.Sprintf("%T", obj) == fmt.Sprintf("%T", old)
		}) {
			if err := s.shoot.Delete(ctx, old); err != nil {
				return err
			}
		}
	}
	s.applied[resource.Name] = objects
	return setApplied(gardencorev1beta1.ConditionTrue, "ApplySucceeded", "")
}

func (s *testShoot) delete(ctx context.Context, c client.Client, resource *resourcesv1alpha1.ManagedResource) error {
	if s.held[resource.Name] {
		s.log = append(s.log, "delete "+resource.Name)
		return nil
	}
	live := &resourcesv1alpha1.ManagedResource{}
	if err := c.Get(ctx, client.ObjectKeyFromObject(resource), live); err != nil {
		return err
	}
	if live.Spec.KeepObjects != nil && *live.Spec.KeepObjects {
		s.log = append(s.log, "let go "+resource.Name)
		return c.Delete(ctx, resource)
	}
	s.log = append(s.log, "delete "+resource.Name)
	for _, obj := range s.applied[resource.Name] {
		if err := s.shoot.Delete(ctx, obj); err != nil {
			return err
		}
	}
	delete(s.applied, resource.Name)
	return c.Delete(ctx, resource)
}

func (s *testShoot) logStatus(obj client.Object) error {
	ex, ok := obj.(*extensionsv1alpha1.Extension)
	if !ok || ex.Status.ProviderStatus == nil {
		return nil
	}
	status, err := registry.DecodeStatus(ex.Status.ProviderStatus.Raw)
	if err != nil {
		return err
	}
	var upstreams []string
	for _, cache := range status.Caches {
		upstreams = append(upstreams, cache.Upstream)
	}
	s.log = append(s.log, "status "+strings.Join(upstreams, " "))
	return nil
}

// takeLog returns the log and empties it.
func (s *testShoot) takeLog() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

// hold makes the resource manager stop, or go on, to work on a ManagedResource.
func (s *testShoot) hold(name string, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[name] = held
}

// take gives an address to a Service of somebody else.
func (s *testShoot) take(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[address] = true
}

// ask makes or changes the Extension so that it asks for caches of upstreams, and returns it as it is read back. The caches
// are served by http: what is about https is in certificates_test.go.
func (s *testShoot) ask(t *testing.T, upstreams ...string) *extensionsv1alpha1.Extension {
	t.Helper()
	config := map[string]any{"apiVersion": "registry.extensions.gardener.cloud/v1alpha3", "kind": "RegistryConfig"}
	var caches []any
	for _, upstream := range upstreams {
		caches = append(caches, map[string]any{"upstream": upstream, "http": map[string]any{"tls": false}})
	}
	config["caches"] = caches
	text, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	return s.askRaw(t, raw)
}

func (s *testShoot) askRaw(t *testing.T, raw []byte) *extensionsv1alpha1.Extension {
	t.Helper()
	ex := &extensionsv1alpha1.Extension{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: Type}, ex); err != nil {
		ex = &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: shootNamespace, Name: Type}}
		ex.Spec.Type = Type
		if err := s.seed.Create(t.Context(), ex); err != nil {
			t.Fatal(err)
		}
	}
	ex.Spec.ProviderConfig = &runtime.RawExtension{Raw: raw}
	if err := s.seed.Update(t.Context(), ex); err != nil {
		t.Fatal(err)
	}
	return s.extension(t)
}

func (s *testShoot) extension(t *testing.T) *extensionsv1alpha1.Extension {
	t.Helper()
	ex := &extensionsv1alpha1.Extension{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: Type}, ex); err != nil {
		t.Fatal(err)
	}
	return ex
}

// status is the provider status that nodes would read.
func (s *testShoot) status(t *testing.T) *v1alpha3.RegistryStatus {
	t.Helper()
	ex := s.extension(t)
	if ex.Status.ProviderStatus == nil {
		t.Fatal("no provider status")
	}
	status, err := registry.DecodeStatus(ex.Status.ProviderStatus.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// inShoot lists kind and name of all objects in the Shoot.
func (s *testShoot) inShoot(t *testing.T) []string {
	t.Helper()
	names := []string{}
	for _, list := range []client.ObjectList{&corev1.ServiceList{}, &corev1.SecretList{}, &appsv1.StatefulSetList{}} {
		if err := s.shoot.List(t.Context(), list, client.InNamespace("kube-system")); err != nil {
			t.Fatal(err)
		}
		switch list := list.(type) {
		case *corev1.ServiceList:
			for _, item := range list.Items {
				names = append(names, "Service "+item.Name+" "+item.Spec.ClusterIP)
			}
		case *corev1.SecretList:
			for _, item := range list.Items {
				names = append(names, "Secret "+item.Name)
			}
		case *appsv1.StatefulSetList:
			for _, item := range list.Items {
				names = append(names, "StatefulSet "+item.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// setReady sets the number of ready pods of the cache of upstream.
func (s *testShoot) setReady(t *testing.T, upstream string, pods int32) {
	t.Helper()
	set := &appsv1.StatefulSet{}
	key := client.ObjectKey{Namespace: "kube-system", Name: v1alpha3.ObjectName(upstream)}
	if err := s.shoot.Get(t.Context(), key, set); err != nil {
		t.Fatal(err)
	}
	set.Status.ReadyReplicas = pods
	if err := s.shoot.Status().Update(t.Context(), set); err != nil {
		t.Fatal(err)
	}
}

// objects are the objects of a ManagedResource as it describes them.
func (s *testShoot) objects(t *testing.T, name string) []client.Object {
	t.Helper()
	objects, err := managedresources.GetObjects(t.Context(), s.seed, shootNamespace, name)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// applyAgain makes the resource manager work on a ManagedResource that it was kept from.
func (s *testShoot) applyAgain(t *testing.T, name string) {
	t.Helper()
	resource := &resourcesv1alpha1.ManagedResource{}
	if err := s.seed.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: name}, resource); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.apply(t.Context(), s.seed, resource); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) deleteService(t *testing.T) {
	t.Helper()
	if err := s.shoot.Delete(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "registry-docker-io"}}); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) createService(t *testing.T, address string) {
	t.Helper()
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "registry-docker-io"}}
	service.Spec.ClusterIP = address
	if err := s.shoot.Create(t.Context(), service); err != nil {
		t.Fatal(err)
	}
}

func (s *testShoot) loseStatus(t *testing.T) {
	t.Helper()
	ex := s.extension(t)
	ex.Status.ProviderStatus = nil
	if err := s.seed.Status().Update(t.Context(), ex); err != nil {
		t.Fatal(err)
	}
}
