package shoot

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	resourcesv1alpha1 "github.com/gardener/gardener/pkg/apis/resources/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/extensions"
	"github.com/gardener/gardener/pkg/utils/managedresources"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/registry-cache/extension/test/testbed/gardener"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const shootNamespace = "shoot--dev--crazy-botany"

// seed is a cluster in memory in which an extension controller, its webhook, a resource manager and a node agent do
// their work at once, whenever something is written.
type seed struct {
	client.Client
	t *testing.T

	mu sync.Mutex // guards the rest
	// writes are "<verb> <kind> <name>", in their order and without the nodes.
	writes []string
	// refuse is the error that the extension reports.
	refuse *gardencorev1beta1.LastError
	// agentless is a node whose agent does nothing.
	agentless string
}

func newSeed(t *testing.T) *seed {
	s := &seed{t: t}
	nodes := []client.Object{}
	for _, name := range []string{"control-plane", "worker"} {
		nodes = append(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}})
	}
	s.Client = fake.NewClientBuilder().WithScheme(kubernetes.SeedScheme).WithObjects(nodes...).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			s.mutate(object)
			if err := c.Create(ctx, object, options...); err != nil {
				return err
			}
			return s.wrote(ctx, c, "write", object)
		},
		Patch: func(ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
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
	if err := s.Get(s.t.Context(), client.ObjectKey{Namespace: osc.Namespace, Name: registryCache}, extension); err != nil {
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
	if gvk.Kind != "Node" {
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
		if !ok || secret.Name != gardener.NodeAgentSecretName {
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

func (s *seed) operation(manifest string) *operation {
	s.t.Helper()
	shoot, err := Parse([]byte(manifest))
	if err != nil {
		s.t.Fatal(err)
	}
	project, _ := projectOf(shoot.Namespace)
	return &operation{
		client:     s,
		progress:   workspace.NewProgress(io.Discard),
		shoot:      shoot,
		namespace:  "shoot--" + project + "--" + shoot.Name,
		facts:      facts{kubernetesVersion: "1.34.4", nodes: 2},
		kubeconfig: []byte("kubeconfig"),
		containerd: containerdSettings{"pause", "systemd"},
		journal:    func(_ context.Context, node string) string { return "journal of " + node },
		interval:   time.Millisecond,
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

func (s *seed) reconcile(t *testing.T, manifest string) *Result {
	t.Helper()
	result, err := s.operation(manifest).reconcile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return result
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

func TestReconcileGoesInTheGardenletsOrder(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	var result *Result
	writes := s.writesSince(t, func() { result = s.reconcile(t, documented) })
	want := []string{
		"write Cluster " + shootNamespace,
		"write Namespace " + shootNamespace,
		"write Secret gardener-internal",
		"write Extension registry-cache",
		"write OperatingSystemConfig gardener-node-agent-testbed-original",
		"write Secret managedresource-shoot-gardener-node-agent",
		"write ManagedResource shoot-gardener-node-agent",
		"write Cluster " + shootNamespace,
	}
	if diff := cmp.Diff(want, writes); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if result.Namespace != shootNamespace || len(result.Status.Caches) != 1 || result.Status.Caches[0].Endpoint != "http://10.96.1.2:5000" {
		t.Errorf("result is %+v", result)
	}

	namespace := &corev1.Namespace{}
	if err := s.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, namespace); err != nil {
		t.Fatal(err)
	}
	for label, value := range map[string]string{"gardener.cloud/role": "shoot", "extensions.gardener.cloud/registry-cache": "true"} {
		if namespace.Labels[label] != value {
			t.Errorf("label %s of the namespace is %q, want %q", label, namespace.Labels[label], value)
		}
	}
	cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
	if err != nil {
		t.Fatal(err)
	}
	if got := cluster.Shoot.Status; got.TechnicalID != shootNamespace || got.UID == "" || got.LastOperation.Type != "Create" || got.LastOperation.State != "Succeeded" {
		t.Errorf("status of the Shoot in the Cluster is %+v", got)
	}
	if cluster.Seed == nil || cluster.CloudProfile == nil || cluster.Shoot.Spec.Kubernetes.Version != "1.34.4" {
		t.Errorf("the Cluster is incomplete: %+v", cluster)
	}
	for _, node := range []string{"control-plane", "worker"} {
		if got := s.appliedOn(t, node); !strings.Contains(got, "/from/the/webhook") || !strings.Contains(got, "sandboxImage: pause") {
			t.Errorf("node %s has applied\n%s", node, got)
		}
	}
}

func TestReconcileAgainKeepsTheIdentity(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	uid := func() (string, gardencorev1beta1.LastOperationType) {
		cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
		if err != nil {
			t.Fatal(err)
		}
		return string(cluster.Shoot.Status.UID), cluster.Shoot.Status.LastOperation.Type
	}
	s.reconcile(t, documented)
	first, _ := uid()
	s.reconcile(t, documented)
	second, operationType := uid()
	if first != second || operationType != gardencorev1beta1.LastOperationTypeReconcile {
		t.Errorf("UIDs are %s and %s, the second operation is %s", first, second, operationType)
	}
}

// An extension that leaves the Shoot is deleted before the nodes learn of it.
func TestReconcileDeletesStaleExtensions(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	without, _, _ := strings.Cut(documented, "spec:")
	var result *Result
	writes := s.writesSince(t, func() { result = s.reconcile(t, without) })
	deleted := slices.Index(writes, "delete Extension registry-cache")
	configured := slices.Index(writes, "write OperatingSystemConfig gardener-node-agent-testbed-original")
	if deleted < 0 || configured < deleted {
		t.Errorf("writes are %q, want the Extension deleted and the OperatingSystemConfig written after it", writes)
	}
	if result.Status != nil {
		t.Errorf("there is a status without the extension: %+v", result.Status)
	}
	if got := s.appliedOn(t, "worker"); strings.Contains(got, "/from/the/webhook") {
		t.Errorf("the node still has\n%s", got)
	}
	namespace := &corev1.Namespace{}
	if err := s.Get(t.Context(), client.ObjectKey{Name: shootNamespace}, namespace); err != nil {
		t.Fatal(err)
	}
	if _, ok := namespace.Labels["extensions.gardener.cloud/registry-cache"]; ok {
		t.Error("the namespace still has the label of the extension, so its webhooks would be called")
	}
}

func TestDisabledExtensionIsNotDeployed(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	result := s.reconcile(t, strings.Replace(documented, "- type: registry-cache", "- type: registry-cache\n    disabled: true", 1))
	if result.Status != nil {
		t.Errorf("result is %+v", result)
	}
}

func TestRefusedConfigurationStopsBeforeTheNodes(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	before := s.appliedOn(t, "worker")

	const complaint = `providerConfig.caches[0].upstream: Invalid value: "https://docker.io": must not have a scheme`
	s.refuse = &gardencorev1beta1.LastError{Description: complaint, Codes: []gardencorev1beta1.ErrorCode{gardencorev1beta1.ErrorConfigurationProblem}}
	var err error
	start := time.Now()
	writes := s.writesSince(t, func() { _, err = s.operation(documented).reconcile(t.Context()) })
	if err == nil || !strings.Contains(err.Error(), "garden-dev/crazy-botany") || !strings.Contains(err.Error(), complaint) {
		t.Errorf("error is %v\nwant it to name the Shoot and %s", err, complaint)
	}
	if took := time.Since(start); took > failureGrace/2 {
		t.Errorf("it took %s to report an error that does not pass", took)
	}
	for _, write := range writes {
		if strings.Contains(write, "OperatingSystemConfig") || strings.Contains(write, "ManagedResource") {
			t.Errorf("%q after a refused configuration", write)
		}
	}
	if got := s.appliedOn(t, "worker"); got != before {
		t.Error("the node has changed")
	}
	cluster, err := extensions.GetCluster(t.Context(), s, shootNamespace)
	if err != nil {
		t.Fatal(err)
	}
	if status := cluster.Shoot.Status; status.LastOperation.State != "Error" || len(status.LastErrors) != 1 || !strings.Contains(status.LastErrors[0].Description, complaint) {
		t.Errorf("status of the Shoot in the Cluster is %+v", status)
	}

	s.refuse = nil
	s.reconcile(t, documented)
}

func TestSecondShootIsRefused(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	var err error
	writes := s.writesSince(t, func() {
		_, err = s.operation(strings.Replace(documented, "crazy-botany", "other", 1)).reconcile(t.Context())
	})
	if err == nil || !strings.Contains(err.Error(), shootNamespace) {
		t.Errorf("error is %v, want one that names %s", err, shootNamespace)
	}
	if len(writes) > 0 {
		t.Errorf("writes are %q, want none", writes)
	}
}

func TestSilentNodeIsNamedWithItsJournal(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.agentless = "worker"
	o := s.operation(documented)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o.journal = func(_ context.Context, node string) string { return "journal of " + node }
	o.client = &cancelOnNodes{Client: s, cancel: cancel}
	_, err := o.reconcile(ctx)
	if err == nil || !strings.Contains(err.Error(), "node worker has applied configuration") || !strings.Contains(err.Error(), "journal of worker") {
		t.Errorf("error is %v", err)
	}
	if err != nil && strings.Contains(err.Error(), "control-plane") {
		t.Errorf("error %v blames a node that is up to date", err)
	}
}

// cancelOnNodes ends the caller's patience once the nodes are being waited for.
type cancelOnNodes struct {
	client.Client
	cancel func()
}

func (c *cancelOnNodes) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	err := c.Client.List(ctx, list, options...)
	if _, ok := list.(*corev1.NodeList); ok && len(options) > 0 {
		c.cancel()
	}
	return err
}

func TestReferencedSecretsAreCopied(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	manifest := documented + "  resources: [{name: credentials, resourceRef: {apiVersion: v1, kind: Secret, name: docker}}]\n"
	if _, err := s.operation(manifest).reconcile(t.Context()); err == nil || !strings.Contains(err.Error(), "spec.resources[0].resourceRef: reading secret garden-dev/docker") {
		t.Errorf("error for a missing secret is %v", err)
	}
	if err := s.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "garden-dev", Name: "docker"}, Immutable: new(true), Data: map[string][]byte{"username": []byte("u")}}); err != nil {
		t.Fatal(err)
	}
	s.reconcile(t, manifest)
	secret := &corev1.Secret{}
	if err := s.Get(t.Context(), client.ObjectKey{Namespace: shootNamespace, Name: "ref-docker"}, secret); err != nil {
		t.Fatal(err)
	}
	if string(secret.Data["username"]) != "u" || secret.Immutable == nil || !*secret.Immutable {
		t.Errorf("copy is %v, immutable %v", secret.Data, secret.Immutable)
	}
}

func TestDeleteTakesTheConfigurationBack(t *testing.T) {
	t.Parallel()
	s := newSeed(t)
	s.reconcile(t, documented)
	writes := s.writesSince(t, func() {
		if err := s.operation(documented).delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	want := []string{
		"write Cluster " + shootNamespace,
		"write Extension registry-cache", // the confirmation of the deletion
		"delete Extension registry-cache",
		"write OperatingSystemConfig gardener-node-agent-testbed-original",
		"write Secret managedresource-shoot-gardener-node-agent",
		"write ManagedResource shoot-gardener-node-agent",
		"delete ManagedResource shoot-gardener-node-agent",
		"delete OperatingSystemConfig gardener-node-agent-testbed-original",
		"delete Namespace " + shootNamespace,
		"delete Cluster " + shootNamespace,
	}
	writes = slices.DeleteFunc(writes, func(write string) bool {
		return strings.HasPrefix(write, "delete Secret") // of the ManagedResource, whose name has a hash
	})
	if diff := cmp.Diff(want, writes); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if got := s.appliedOn(t, "worker"); strings.Contains(got, "/from/the/webhook") {
		t.Errorf("the node still has\n%s", got)
	}

	writes = s.writesSince(t, func() {
		if err := s.operation(documented).delete(t.Context()); err != nil {
			t.Errorf("deleting again: %v", err)
		}
	})
	if len(writes) > 0 {
		t.Errorf("deleting again writes %q", writes)
	}
	s.reconcile(t, documented)
}

func TestHasFailedCountsOnlyTheLatestOrder(t *testing.T) {
	t.Parallel()
	ordered := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	make := func(change func(*extensionsv1alpha1.Extension)) *extensionsv1alpha1.Extension {
		extension := &extensionsv1alpha1.Extension{}
		extension.Generation = 2
		extension.Annotations = map[string]string{"gardener.cloud/timestamp": ordered.Format(time.RFC3339Nano)}
		extension.Status.ObservedGeneration = 2
		extension.Status.LastError = &gardencorev1beta1.LastError{Description: "broken"}
		extension.Status.LastOperation = &gardencorev1beta1.LastOperation{State: gardencorev1beta1.LastOperationStateError, LastUpdateTime: metav1.NewTime(ordered.Truncate(time.Second))}
		change(extension)
		return extension
	}
	for _, tc := range []struct {
		name   string
		change func(*extensionsv1alpha1.Extension)
		want   bool
	}{
		{"failed", func(*extensionsv1alpha1.Extension) {}, true},
		{"no error", func(e *extensionsv1alpha1.Extension) { e.Status.LastError = nil }, false},
		{"of the last order", func(e *extensionsv1alpha1.Extension) {
			e.Status.LastOperation.LastUpdateTime = metav1.NewTime(ordered.Add(-time.Second))
		}, false},
		{"order not seen", func(e *extensionsv1alpha1.Extension) { e.Annotations["gardener.cloud/operation"] = "reconcile" }, false},
		{"of an older generation", func(e *extensionsv1alpha1.Extension) { e.Status.ObservedGeneration = 1 }, false},
		{"being worked on", func(e *extensionsv1alpha1.Extension) {
			e.Status.LastOperation.State = gardencorev1beta1.LastOperationStateProcessing
		}, false},
	} {
		if got := hasFailed(make(tc.change)); got != tc.want {
			t.Errorf("%s: hasFailed is %t, want %t", tc.name, got, tc.want)
		}
	}
}

func TestDecodeStatus(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"":   "has no status.providerStatus",
		"{":  "decoding status.providerStatus",
		"{}": "want registry.extensions.gardener.cloud/v1alpha3 RegistryStatus",
		`{"apiVersion":"registry.extensions.gardener.cloud/v1alpha2","kind":"RegistryStatus"}`: "is registry.extensions.gardener.cloud/v1alpha2 RegistryStatus",
	} {
		extension := &extensionsv1alpha1.Extension{}
		extension.Status.ProviderStatus = &runtime.RawExtension{Raw: []byte(raw)}
		if _, err := decodeStatus(extension); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error for %q is %v, want it to contain %s", raw, err, want)
		}
	}
}
