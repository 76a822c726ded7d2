// SPDX-License-Identifier: Apache-2.0

package gardenlet

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/yaml"
)

const shootNamespace = "shoot--dev--crazy-botany"

// documented is the Shoot of the user's document, as Gardener's API server returns it.
const documented = `apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
metadata:
  name: crazy-botany
  namespace: garden-dev
spec:
  cloudProfile: {kind: CloudProfile, name: local}
  region: local
  kubernetes: {version: 1.34.4}
  networking: {type: local}
  provider:
    type: local
    workers:
    - name: worker
      minimum: 2
      maximum: 2
      cri: {name: containerd}
      machine: {type: local, architecture: amd64, image: {name: local, version: 1.0.0}}
  extensions:
  - type: registry-cache
    providerConfig:
      apiVersion: registry.extensions.gardener.cloud/v1alpha1
      kind: RegistryConfig
      caches:
      - upstream: docker.io
        size: 100Gi
`

// seed is a cluster in memory in which an extension controller, its webhook, a resource manager and a node agent do
// their work at once, whenever something is written. It is the garden, too.
type seed struct {
	client.Client
	t *testing.T

	mu sync.Mutex // guards the rest
	// writes are "<verb> <kind> <name>", in their order and without nodes and Shoots.
	writes []string
	// refuse is the error that the extension reports.
	refuse *gardencorev1beta1.LastError
	// agentless is a node whose agent does nothing.
	agentless string
	// meddle is called once, before a Shoot loses its finalizers.
	meddle func()
}

func newSeed(t *testing.T) *seed {
	s := &seed{t: t}
	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "garden-dev", Labels: map[string]string{"project.gardener.cloud/name": "dev"}}},
		&gardencorev1beta1.Project{ObjectMeta: metav1.ObjectMeta{Name: "dev"}},
		&gardencorev1beta1.CloudProfile{ObjectMeta: metav1.ObjectMeta{Name: "local"}, Spec: gardencorev1beta1.CloudProfileSpec{Type: "local"}},
	}
	for _, name := range []string{"control-plane", "worker"} {
		objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}})
	}
	s.Client = fake.NewClientBuilder().WithScheme(Scheme()).WithObjects(objects...).WithStatusSubresource(&gardencorev1beta1.Shoot{}).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			s.mutate(object)
			if err := c.Create(ctx, object, options...); err != nil {
				return err
			}
			return s.wrote(ctx, c, "write", object)
		},
		Patch: func(ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
			if meddle := s.meddle; meddle != nil && object.GetDeletionTimestamp() != nil && len(object.GetFinalizers()) == 0 {
				s.meddle = nil
				meddle()
			}
			if err := c.Patch(ctx, object, patch, options...); err != nil {
				return err
			}
			if s.mutate(object) {
				if err := c.Update(ctx, object); err != nil {
					return err
				}
			}
			return s.wrote(ctx, c, "write", object)
		},
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			if err := c.Update(ctx, object, options...); err != nil {
				return err
			}
			return s.wrote(ctx, c, "write", object)
		},
		Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
			if err := c.Delete(ctx, object, options...); err != nil {
				return err
			}
			return s.wrote(ctx, c, "delete", object)
		},
	}).Build()
	return s
}

// mutate is the webhook of an extension: it adds a file to an OperatingSystemConfig while there is an Extension.
func (s *seed) mutate(object client.Object) bool {
	osc, ok := object.(*extensionsv1alpha1.OperatingSystemConfig)
	if !ok {
		return false
	}
	extension := &extensionsv1alpha1.Extension{}
	if err := s.Get(s.t.Context(), client.ObjectKey{Namespace: osc.Namespace, Name: "registry-cache"}, extension); err != nil {
		return false
	}
	osc.Spec.Files = []extensionsv1alpha1.File{{Path: "/from/the/webhook", Content: extensionsv1alpha1.FileContent{Inline: &extensionsv1alpha1.FileContentInline{Data: "x"}}}}
	return true
}

// wrote gets the client without the interceptor, so what it does with it is not taken for a write of the flow.
func (s *seed) wrote(ctx context.Context, c client.Client, verb string, object client.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	gvk, err := apiutil.GVKForObject(object, c.Scheme())
	if err != nil {
		return err
	}
	name := object.GetName()
	if _, hash, ok := strings.Cut(name, "managedresource-"+nodeAgentResource); ok && hash != "" {
		name = "managedresource-" + nodeAgentResource
	}
	if gvk.Kind != "Node" && gvk.Kind != "Shoot" {
		if entry := verb + " " + gvk.Kind + " " + name; !slices.Contains(s.writes[max(0, len(s.writes)-1):], entry) {
			s.writes = append(s.writes, entry)
		}
	}
	if verb == "delete" {
		return nil
	}
	switch object := object.(type) {
	case *extensionsv1alpha1.Extension:
		return s.controller(ctx, c, object)
	case *resourcesv1alpha1.ManagedResource:
		return s.resourceManager(ctx, c, object)
	}
	return nil
}

func (s *seed) controller(ctx context.Context, c client.Client, written *extensionsv1alpha1.Extension) error {
	extension := written.DeepCopy()
	if extension.Annotations["gardener.cloud/operation"] == "" {
		return nil
	}
	patch := client.MergeFrom(extension.DeepCopy())
	delete(extension.Annotations, "gardener.cloud/operation")
	extension.Status.LastError = s.refuse
	state := gardencorev1beta1.LastOperationStateSucceeded
	if s.refuse != nil {
		state = gardencorev1beta1.LastOperationStateError
	}
	extension.Status.LastOperation = &gardencorev1beta1.LastOperation{State: state, LastUpdateTime: metav1.Now()}
	extension.Status.ProviderStatus = &runtime.RawExtension{Raw: []byte(`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha3","kind":"RegistryStatus","caches":[{"upstream":"docker.io","endpoint":"http://10.96.1.2:5000"}]}`)}
	return c.Patch(ctx, extension, patch)
}

func (s *seed) resourceManager(ctx context.Context, c client.Client, written *resourcesv1alpha1.ManagedResource) error {
	resource := written.DeepCopy()
	patch := client.MergeFrom(resource.DeepCopy())
	now := metav1.Now()
	for _, condition := range []gardencorev1beta1.ConditionType{resourcesv1alpha1.ResourcesApplied, resourcesv1alpha1.ResourcesHealthy} {
		resource.Status.Conditions = append(resource.Status.Conditions, gardencorev1beta1.Condition{Type: condition, Status: gardencorev1beta1.ConditionTrue, LastTransitionTime: now, LastUpdateTime: now})
	}
	if err := c.Patch(ctx, resource, patch); err != nil {
		return err
	}
	objects, err := managedresources.GetObjects(ctx, c, resource.Namespace, resource.Name)
	if err != nil {
		return err
	}
	for _, object := range objects {
		secret, ok := object.(*corev1.Secret)
		if !ok || secret.Name != NodeAgentSecretName {
			continue
		}
		nodes := &corev1.NodeList{}
		if err := c.List(ctx, nodes, client.MatchingLabels(map[string]string{"worker.gardener.cloud/pool": secret.Labels["worker.gardener.cloud/pool"]})); err != nil {
			return err
		}
		for i := range nodes.Items {
			node := &nodes.Items[i]
			if node.Name == s.agentless {
				continue
			}
			patch := client.MergeFrom(node.DeepCopy())
			metav1.SetMetaDataAnnotation(&node.ObjectMeta, "checksum/cloud-config-data", secret.Annotations["checksum/data-script"])
			metav1.SetMetaDataAnnotation(&node.ObjectMeta, "test/osc", string(secret.Data["osc.yaml"]))
			if err := c.Patch(ctx, node, patch); err != nil {
				return err
			}
		}
	}
	return nil
}

// write makes the Shoot what the manifest says, as Gardener's API server does.
func (s *seed) write(t *testing.T, manifest string) {
	t.Helper()
	wanted := &gardencorev1beta1.Shoot{}
	if err := yaml.UnmarshalStrict([]byte(manifest), wanted); err != nil {
		t.Fatal(err)
	}
	shoot := &gardencorev1beta1.Shoot{}
	if err := s.Get(t.Context(), client.ObjectKeyFromObject(wanted), shoot); apierrors.IsNotFound(err) {
		wanted.Generation = 1
		if err := s.Create(t.Context(), wanted); err != nil {
			t.Fatal(err)
		}
		return
	} else if err != nil {
		t.Fatal(err)
	}
	shoot.Spec = wanted.Spec
	shoot.Generation++
	if err := s.Update(t.Context(), shoot); err != nil {
		t.Fatal(err)
	}
}

// shoot returns the Shoot of that name.
func (s *seed) shoot(t *testing.T, name string) *gardencorev1beta1.Shoot {
	t.Helper()
	shoot := &gardencorev1beta1.Shoot{}
	if err := s.Get(t.Context(), client.ObjectKey{Namespace: "garden-dev", Name: name}, shoot); err != nil {
		t.Fatal(err)
	}
	return shoot
}

// operate lets the gardenlet look at the Shoot of that name.
func (s *seed) operate(ctx context.Context, name string) error {
	_, err := s.reconciler().Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKey{Namespace: "garden-dev", Name: name}})
	return err
}

func (s *seed) reconciler() *reconciler {
	return &reconciler{
		client:   s,
		options:  Options{Version: "v1.2.3", Kubeconfig: []byte("kubeconfig"), Containerd: Containerd{SandboxImage: "pause", CgroupDriver: "systemd"}},
		interval: time.Millisecond,
	}
}

func (s *seed) writesSince(t *testing.T, do func()) []string {
	t.Helper()
	s.mu.Lock()
	s.writes = nil
	s.mu.Unlock()
	do()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

// reconcile writes the Shoot and lets the gardenlet come to a good end with it.
func (s *seed) reconcile(t *testing.T, manifest string) {
	t.Helper()
	s.write(t, manifest)
	if err := s.operate(t.Context(), "crazy-botany"); err != nil {
		t.Fatal(err)
	}
}

// appliedOn returns the OperatingSystemConfig that the agent of a node has applied last.
func (s *seed) appliedOn(t *testing.T, name string) string {
	t.Helper()
	node := &corev1.Node{}
	if err := s.Get(t.Context(), client.ObjectKey{Name: name}, node); err != nil {
		t.Fatal(err)
	}
	return node.Annotations["test/osc"]
}
