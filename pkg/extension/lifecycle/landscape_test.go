// SPDX-License-Identifier: Apache-2.0

// Package lifecycle holds the tests of the extension's controllers on real control planes: a kube-apiserver that is the
// Seed, another one that is the Shoot, and gardener-resource-manager between them. There are no nodes, so a test that
// needs a pod to be ready says so itself.
//
// Each test has a namespace in the Seed and upstreams of its own, so that all share the control planes. "make envtest"
// builds the programs; without them the tests are skipped, unless the environment has REQUIRE_ENVTEST.
package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/extension"
	"github.com/registry-cache/extension/pkg/extension/desired"
	"github.com/registry-cache/extension/test/testbed/controlplane"
	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	workloads = "extension-registry-cache"
	// soon is how long what takes a moment may take on a machine that is busy.
	soon     = time.Minute
	interval = 50 * time.Millisecond
)

var imageOptions = desired.Options{Image: "registry.example.com/registry-cache:v1"}

var seedOptions, shootOptions = controlplane.Options{Seed: true}, controlplane.Options{}

// landscape is a Seed and a Shoot with the resource manager and the controllers of Kubernetes.
type landscape struct {
	dir             string
	programs        controlplane.Programs
	seed, shoot     *controlplane.Cluster
	resourceManager *controlplane.Process
}

// shared is the landscape of all tests that do not stop parts of it.
var shared struct {
	sync.Mutex
	landscape *landscape
	err       error
}

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	code := m.Run()
	if shared.landscape != nil {
		err := errors.Join(shared.landscape.stop(), os.RemoveAll(shared.landscape.dir))
		if err != nil {
			fmt.Fprintln(os.Stderr, "stopping the control planes:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// sharedLandscape starts the landscape for the first test that wants it.
func sharedLandscape(t *testing.T) *landscape {
	t.Helper()
	programs := findPrograms(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.landscape == nil && shared.err == nil {
		var dir string
		if dir, shared.err = os.MkdirTemp("", "registry-cache-lifecycle-"); shared.err == nil {
			shared.landscape, shared.err = startLandscape(context.Background(), programs, dir, seedOptions, shootOptions)
		}
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.landscape
}

// ownLandscape is one that the test may take apart.
func ownLandscape(t *testing.T, seed, shoot controlplane.Options) *landscape {
	t.Helper()
	programs := findPrograms(t)
	l, err := startLandscape(t.Context(), programs, t.TempDir(), seed, shoot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.stop(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func findPrograms(t *testing.T) controlplane.Programs {
	t.Helper()
	programs, err := controlplane.Find(t.Context())
	if errors.Is(err, controlplane.ErrNotBuilt) && os.Getenv("REQUIRE_ENVTEST") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return programs
}

func startLandscape(ctx context.Context, programs controlplane.Programs, dir string, seed, shoot controlplane.Options) (l *landscape, err error) {
	l = &landscape{dir: dir, programs: programs}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.stop())
		}
	}()
	for _, name := range []string{"seed", "shoot", "resource-manager"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return l, err
		}
	}
	var starts sync.WaitGroup
	var seedErr, shootErr error
	starts.Go(func() { l.seed, seedErr = controlplane.Start(ctx, programs, filepath.Join(dir, "seed"), seed) })
	starts.Go(func() { l.shoot, shootErr = controlplane.Start(ctx, programs, filepath.Join(dir, "shoot"), shoot) })
	starts.Wait()
	if err := errors.Join(seedErr, shootErr); err != nil {
		return l, err
	}
	if err := l.shoot.StartControllerManager(); err != nil {
		return l, err
	}
	return l, l.startResourceManager(ctx)
}

func (l *landscape) startResourceManager(ctx context.Context) (err error) {
	l.resourceManager, err = controlplane.StartResourceManager(ctx, l.programs, filepath.Join(l.dir, "resource-manager"), l.seed, l.shoot)
	return err
}

func (l *landscape) stop() error {
	var errs []error
	if l.resourceManager != nil {
		errs = append(errs, l.resourceManager.Err(), l.resourceManager.Stop())
	}
	for _, cluster := range []*controlplane.Cluster{l.seed, l.shoot} {
		if cluster != nil {
			errs = append(errs, cluster.Stop())
		}
	}
	return errors.Join(errs...)
}

// hibernate does what gardenlet does with a Shoot that is to be hibernated: the resource manager goes, then the API.
func (l *landscape) hibernate(t *testing.T) {
	t.Helper()
	if err := errors.Join(l.resourceManager.Err(), l.resourceManager.Stop(), l.shoot.MakeUnreachable()); err != nil {
		t.Fatal(err)
	}
}

// wakeUp ends what hibernate began, in gardenlet's order.
func (l *landscape) wakeUp(t *testing.T) {
	t.Helper()
	if err := l.shoot.MakeReachable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.startResourceManager(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// shoot is a Shoot in the Seed: its namespace, as gardenlet prepares it for extensions.
type shoot struct {
	*landscape
	namespace string
	actuator  *extension.Actuator
	log       logr.Logger
}

// newShoot makes a Shoot. What it is called is also the domain of its upstreams.
func (l *landscape) newShoot(t *testing.T, name string) *shoot {
	t.Helper()
	s := &shoot{landscape: l, namespace: "shoot--dev--" + name, log: testr.New(t)}
	s.actuator = extension.NewActuator(l.seed.Client(), s.client, imageOptions)
	s.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace, Labels: map[string]string{
		"gardener.cloud/role": "shoot", "extensions.gardener.cloud/registry-cache": "true",
	}}})
	s.create(t, &extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}, Spec: extensionsv1alpha1.ClusterSpec{
		CloudProfile: runtime.RawExtension{Raw: []byte(`{"apiVersion":"core.gardener.cloud/v1beta1","kind":"CloudProfile"}`)},
		Seed:         &runtime.RawExtension{Raw: []byte(`{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Seed"}`)},
		Shoot:        runtime.RawExtension{Raw: []byte(`{"apiVersion":"core.gardener.cloud/v1beta1","kind":"Shoot"}`)},
	}})
	s.setHibernated(t, false)
	kubeconfig, err := l.shoot.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	s.create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "gardener-internal"}, Data: map[string][]byte{"kubeconfig": kubeconfig}})
	return s
}

func (s *shoot) create(t *testing.T, obj client.Object) {
	t.Helper()
	if err := s.seed.Client().Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
}

// client is a ShootClient, with an address that can become unreachable.
func (s *shoot) client(context.Context, string) (client.Client, error) { return s.watchClient() }

func (s *shoot) watchClient() (client.WithWatch, error) {
	kubeconfig, err := s.shootCluster().Kubeconfig()
	if err != nil {
		return nil, err
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	return client.NewWithWatch(config, client.Options{Scheme: kubernetes.ShootScheme})
}

func (s *shoot) shootCluster() *controlplane.Cluster { return s.landscape.shoot }

// setHibernated changes what the Shoot's owner asks for; see landscape.hibernate for what follows from it.
func (s *shoot) setHibernated(t *testing.T, hibernated bool) {
	t.Helper()
	s.setShoot(t, map[string]any{"hibernation": map[string]any{"enabled": hibernated}}, nil)
}

func (s *shoot) setShoot(t *testing.T, spec, metadata map[string]any) {
	t.Helper()
	all := map[string]any{"name": "shoot", "namespace": "garden-dev"}
	for key, value := range metadata {
		all[key] = value
	}
	raw, err := json.Marshal(map[string]any{"apiVersion": "core.gardener.cloud/v1beta1", "kind": "Shoot", "metadata": all, "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	cluster := &extensionsv1alpha1.Cluster{}
	if err := s.seed.Client().Get(t.Context(), client.ObjectKey{Name: s.namespace}, cluster); err != nil {
		t.Fatal(err)
	}
	cluster.Spec.Shoot.Raw = raw
	if err := s.seed.Client().Update(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
}

// cacheFor is the configuration of a cache, "1Gi" by default.
func cacheFor(upstream string, size ...string) map[string]any {
	cache := map[string]any{"upstream": upstream, "volume": map[string]any{"size": append(size, "1Gi")[0]}}
	return cache
}

// ask makes or changes the Extension so that it asks for caches.
func (s *shoot) ask(t *testing.T, caches ...map[string]any) *extensionsv1alpha1.Extension {
	t.Helper()
	s.write(t, s.asked(t, caches...))
	return s.extension(t)
}

// asked is the Extension as it is, with other caches. It is not written.
func (s *shoot) asked(t *testing.T, caches ...map[string]any) *extensionsv1alpha1.Extension {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"apiVersion": "registry.extensions.gardener.cloud/v1alpha3", "kind": "RegistryConfig", "caches": caches})
	if err != nil {
		t.Fatal(err)
	}
	ex := &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: extension.Type}}
	ex.Spec.Type = extension.Type
	if err := s.seed.Client().Get(t.Context(), client.ObjectKeyFromObject(ex), ex); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	ex.Spec.ProviderConfig = &runtime.RawExtension{Raw: raw}
	return ex
}

// write makes or changes the Extension. A change wins against those that a controller makes at the same time.
func (s *shoot) write(t *testing.T, ex *extensionsv1alpha1.Extension) {
	t.Helper()
	if ex.ResourceVersion == "" {
		s.create(t, ex)
		return
	}
	patch := &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: ex.Namespace, Name: ex.Name}}
	before := client.MergeFrom(patch.DeepCopy())
	patch.Annotations, patch.Spec.ProviderConfig = ex.Annotations, ex.Spec.ProviderConfig
	if err := s.seed.Client().Patch(t.Context(), patch, before); err != nil {
		t.Fatal(err)
	}
}

func (s *shoot) extension(t *testing.T) *extensionsv1alpha1.Extension {
	t.Helper()
	ex := &extensionsv1alpha1.Extension{}
	if err := s.seed.Client().Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: extension.Type}, ex); err != nil {
		t.Fatal(err)
	}
	return ex
}

// deploy asks for caches and has them reconciled.
func (s *shoot) deploy(t *testing.T, caches ...map[string]any) {
	t.Helper()
	if err := s.actuator.Reconcile(t.Context(), s.log, s.ask(t, caches...)); err != nil {
		t.Fatal(err)
	}
}

// status is the provider status that nodes would get, by upstream.
func (s *shoot) status(t *testing.T) map[string]v1alpha3.RegistryCacheStatus {
	t.Helper()
	all := map[string]v1alpha3.RegistryCacheStatus{}
	raw := s.extension(t).Status.ProviderStatus
	if raw == nil {
		return all
	}
	status, err := registry.DecodeStatus(raw.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, cache := range status.Caches {
		all[cache.Upstream] = cache
	}
	return all
}

// resources are the ManagedResources of the extension by name.
func (s *shoot) resources(t *testing.T) map[string]resourcesv1alpha1.ManagedResource {
	t.Helper()
	list := &resourcesv1alpha1.ManagedResourceList{}
	if err := s.seed.Client().List(t.Context(), list, client.InNamespace(s.namespace)); err != nil {
		t.Fatal(err)
	}
	all := map[string]resourcesv1alpha1.ManagedResource{}
	for _, resource := range list.Items {
		all[resource.Name] = resource
	}
	return all
}

func objectName(upstream string) string { return v1alpha3.ObjectName(upstream) }

func kubeSystem(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}
}

// getService returns a Service of the Shoot, and whether it exists.
func (s *shoot) getService(t *testing.T, name string) (*corev1.Service, bool) {
	t.Helper()
	service := &corev1.Service{ObjectMeta: kubeSystem(name)}
	return service, s.exists(t, service)
}

// exists reads an object of the Shoot.
func (s *shoot) exists(t *testing.T, obj client.Object) bool {
	t.Helper()
	err := s.shootCluster().Client().Get(t.Context(), client.ObjectKeyFromObject(obj), obj)
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// eventually waits for what the processes around the test do.
func eventually(t *testing.T, timeout time.Duration, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	if err := poll.Until(t.Context(), interval, timeout, func(context.Context) error { return check() }); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// waitForPods waits until the StatefulSet of an upstream is there with its pods, and marks those ready: there is no
// kubelet. It returns the first pod.
func (s *shoot) waitForPods(t *testing.T, upstream string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: kubeSystem(objectName(upstream) + "-0")}
	eventually(t, soon, func() error {
		return s.shootCluster().Client().Get(t.Context(), client.ObjectKeyFromObject(pod), pod)
	})
	if err := s.shootCluster().MarkReady(t.Context(), pod, "10.1.2.3"); err != nil {
		t.Fatal(err)
	}
	set := &appsv1.StatefulSet{ObjectMeta: kubeSystem(objectName(upstream))}
	eventually(t, soon, func() error {
		if err := s.shootCluster().Client().Get(t.Context(), client.ObjectKeyFromObject(set), set); err != nil {
			return err
		}
		if set.Status.ReadyReplicas != 1 {
			return fmt.Errorf("StatefulSet %s has %d ready replicas", set.Name, set.Status.ReadyReplicas)
		}
		return nil
	})
	return pod
}

// asService lets a test intercept the calls to both APIs.
func (s *shoot) withInterceptor(funcs interceptor.Funcs) *extension.Actuator {
	return extension.NewActuator(interceptor.NewClient(s.seed.Client(), funcs), func(context.Context, string) (client.Client, error) {
		c, err := s.watchClient()
		if err != nil {
			return nil, err
		}
		return interceptor.NewClient(c, funcs), nil
	}, imageOptions)
}
