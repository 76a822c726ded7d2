// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

const namespace = "shoot--local--local"

func TestNewWebhook(t *testing.T) {
	t.Parallel()
	webhook, err := NewWebhook(fakeManager{
		client:    newClient(t, newCluster(t, nil), newExtensionWithStatus(nil)),
		apiReader: newClient(t, newCluster(t, nil), newExtension(t, documentCaches())),
	})
	if err != nil {
		t.Fatal(err)
	}
	if webhook.FailurePolicy == nil || *webhook.FailurePolicy != admissionregistrationv1.Ignore {
		t.Errorf("failure policy is %v, want Ignore", webhook.FailurePolicy)
	}
	selector, err := metav1.LabelSelectorAsSelector(webhook.NamespaceSelector)
	if err != nil {
		t.Fatal(err)
	}
	if want := "extensions.gardener.cloud/registry-cache in (true)"; selector.String() != want {
		t.Errorf("namespace selector is %q, want %q", selector, want)
	}
	if webhook.Target != "seed" || webhook.Action != "mutating" || webhook.Path != "/webhooks/node-configuration" {
		t.Errorf("got a %s webhook for the %s at %s", webhook.Action, webhook.Target, webhook.Path)
	}

	osc := newOSC()
	osc.TypeMeta = metav1.TypeMeta{APIVersion: "extensions.gardener.cloud/v1alpha1", Kind: "OperatingSystemConfig"}
	raw, err := json.Marshal(osc)
	if err != nil {
		t.Fatal(err)
	}
	response := webhook.Webhook.Handler.Handle(t.Context(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Kind:   metav1.GroupVersionKind(extensionsv1alpha1.SchemeGroupVersion.WithKind("OperatingSystemConfig")),
		Object: runtime.RawExtension{Raw: raw},
	}})
	if !response.Allowed || len(response.Patches) == 0 {
		t.Errorf("the webhook answered allowed = %t with %d patches (%v); does it read from a cache?", response.Allowed, len(response.Patches), response.Result)
	}
}

func TestMutateAddsTheConfiguration(t *testing.T) {
	t.Parallel()
	m := &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}
	osc := newOSC()
	foreignFile, foreignUnit := osc.Spec.Files[0], osc.Spec.Units[0]

	mutate(t, m, osc, nil)
	want, skipped := New(documentCaches(), "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	if diff := cmp.Diff(append([]extensionsv1alpha1.File{foreignFile}, want.Files...), osc.Spec.Files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(append([]extensionsv1alpha1.Unit{foreignUnit}, want.Units...), osc.Spec.Units); diff != "" {
		t.Errorf("units (-want +got):\n%s", diff)
	}
	for _, unit := range osc.Spec.Units {
		for _, path := range unit.FilePaths {
			if !hasFile(osc, path) {
				t.Errorf("unit %s refers to %s, which is not in the files: the API refuses that", unit.Name, path)
			}
		}
	}
}

// The checksum of the OperatingSystemConfig must not change because somebody else has written it.
func TestMutateTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	m := &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}
	osc := newOSC()
	mutate(t, m, osc, nil)
	osc.Spec.Files = append(osc.Spec.Files, extensionsv1alpha1.File{Path: "/etc/added/later"})
	osc.Spec.Units = append(osc.Spec.Units, extensionsv1alpha1.Unit{Name: "added-later.service"})
	want := osc.DeepCopy()
	mutate(t, m, osc, want)
	if diff := cmp.Diff(want, osc); diff != "" {
		t.Errorf("the second time changed (-want +got):\n%s", diff)
	}
}

func TestMutateReplacesWhatHasChanged(t *testing.T) {
	t.Parallel()
	osc := newOSC()
	mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}, osc, nil)
	caches := documentCaches()[:1]
	caches[0].Endpoint = "http://10.96.0.99:5000"
	mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, caches))}, osc, osc.DeepCopy())

	want := newOSC()
	config, skipped := New(caches, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	want.Spec.Files = append(want.Spec.Files, config.Files...)
	want.Spec.Units = append(want.Spec.Units, config.Units...)
	if diff := cmp.Diff(want, osc); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMutateLeavesAlone(t *testing.T) {
	t.Parallel()
	deleted := metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	caches := newExtension(t, documentCaches())
	for name, tc := range map[string]struct {
		objects []client.Object
		change  func(*extensionsv1alpha1.OperatingSystemConfig)
	}{
		"no Extension":       {objects: []client.Object{newCluster(t, nil)}},
		"no providerStatus":  {objects: []client.Object{newCluster(t, nil), newExtensionWithStatus(nil)}},
		"empty status":       {objects: []client.Object{newCluster(t, nil), newExtensionWithStatus([]byte(`{}`))}},
		"status of others":   {objects: []client.Object{newCluster(t, nil), newExtensionWithStatus([]byte(`{"apiVersion":"other/v1","kind":"RegistryStatus"}`))}},
		"undecodable status": {objects: []client.Object{newCluster(t, nil), newExtensionWithStatus([]byte(`{"caches":"docker.io"}`))}},
		"malformed endpoint": {objects: []client.Object{newCluster(t, nil), newExtension(t, []v1alpha3.RegistryCacheStatus{{Upstream: "docker.io"}})}},
		"no caches":          {objects: []client.Object{newCluster(t, nil), newExtension(t, nil)}},
		"Shoot deleting":     {objects: []client.Object{newCluster(t, func(s *v1beta1.Shoot) { s.DeletionTimestamp = &deleted }), caches}},
		"Shoot hibernated": {objects: []client.Object{newCluster(t, func(s *v1beta1.Shoot) {
			s.Spec.Hibernation = &v1beta1.Hibernation{Enabled: new(true)}
		}), caches}},
		"purpose provision": {objects: []client.Object{newCluster(t, nil), caches}, change: func(osc *extensionsv1alpha1.OperatingSystemConfig) {
			osc.Spec.Purpose = extensionsv1alpha1.OperatingSystemConfigPurposeProvision
		}},
		"other container runtime": {objects: []client.Object{newCluster(t, nil), caches}, change: func(osc *extensionsv1alpha1.OperatingSystemConfig) {
			osc.Spec.CRIConfig = &extensionsv1alpha1.CRIConfig{Name: "cri-o"}
		}},
		"being deleted": {objects: []client.Object{newCluster(t, nil), caches}, change: func(osc *extensionsv1alpha1.OperatingSystemConfig) {
			osc.DeletionTimestamp = &deleted
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			osc := newOSC()
			if tc.change != nil {
				tc.change(osc)
			}
			want := osc.DeepCopy()
			mutate(t, &mutator{client: newClient(t, tc.objects...)}, osc, nil)
			if diff := cmp.Diff(want, osc); diff != "" {
				t.Errorf("changed (-want +got):\n%s", diff)
			}
		})
	}
}

// gardenlet writes the whole spec in each reconciliation. What nodes have must not vanish for an hour because the
// status could not be read in that second.
func TestMutateKeepsWhatItCannotRead(t *testing.T) {
	t.Parallel()
	for name, reader := range map[string]client.Reader{
		"no status":  newClient(t, newCluster(t, nil), newExtensionWithStatus(nil)),
		"bad status": newClient(t, newCluster(t, nil), newExtensionWithStatus([]byte(`{"caches":1}`))),
		"API down": interceptor.NewClient(newClient(t), interceptor.Funcs{
			Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
				return errors.New("etcd has no leader")
			},
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old := newOSC()
			mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}, old, nil)
			osc := newOSC()
			mutate(t, &mutator{client: reader}, osc, old)
			if diff := cmp.Diff(old, osc); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMutateForgetsADeletedExtension(t *testing.T) {
	t.Parallel()
	deleting := newExtension(t, documentCaches())
	deleting.DeletionTimestamp = new(metav1.Now())
	deleting.Finalizers = []string{"extensions.gardener.cloud/registry-cache"}
	for name, m := range map[string]*mutator{
		"deleting": {client: newClient(t, newCluster(t, nil), deleting)},
		"gone":     {client: newClient(t, newCluster(t, nil))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			osc := newOSC()
			mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}, osc, nil)
			mutate(t, m, osc, osc.DeepCopy())
			if diff := cmp.Diff(newOSC(), osc); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An unreadable Cluster is no reason to take the caches away from the nodes.
func TestMutateWithoutCluster(t *testing.T) {
	t.Parallel()
	noShoot := &extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	for name, objects := range map[string][]client.Object{
		"no Cluster": {newExtension(t, documentCaches())},
		"no Shoot":   {newExtension(t, documentCaches()), noShoot},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			osc := newOSC()
			mutate(t, &mutator{client: newClient(t, objects...)}, osc, nil)
			if !hasFile(osc, ScriptPath) {
				t.Error("the configuration was not added")
			}
		})
	}
}

func TestMutateYieldsToOtherRegistries(t *testing.T) {
	t.Parallel()
	m := &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}
	osc := newOSC()
	osc.Spec.CRIConfig = &extensionsv1alpha1.CRIConfig{
		Name:       extensionsv1alpha1.CRINameContainerD,
		Containerd: &extensionsv1alpha1.ContainerdConfig{Registries: []extensionsv1alpha1.RegistryConfig{{Upstream: "docker.io"}}},
	}
	want := osc.Spec.CRIConfig.DeepCopy()
	mutate(t, m, osc, nil)
	if hasFile(osc, HostsDirectory+"/docker.io/hosts.toml") {
		t.Error("docker.io is configured twice")
	}
	if !hasFile(osc, HostsDirectory+"/quay.io/hosts.toml") {
		t.Error("quay.io is not configured")
	}
	if diff := cmp.Diff(want, osc.Spec.CRIConfig); diff != "" {
		t.Errorf("criConfig (-want +got):\n%s", diff)
	}
}

func TestMutateRefusesOtherObjects(t *testing.T) {
	t.Parallel()
	m := &mutator{client: newClient(t)}
	if err := m.Mutate(t.Context(), &extensionsv1alpha1.Extension{}, nil); err == nil {
		t.Error("an Extension was taken for an OperatingSystemConfig")
	}
}

// fakeManager has what a webhook takes from a manager. Every other method panics.
type fakeManager struct {
	manager.Manager
	client    client.Client
	apiReader client.Reader
}

func (m fakeManager) GetClient() client.Client    { return m.client }
func (m fakeManager) GetAPIReader() client.Reader { return m.apiReader }
func (m fakeManager) GetScheme() *runtime.Scheme  { return m.client.Scheme() }

func mutate(t *testing.T, m *mutator, osc, old *extensionsv1alpha1.OperatingSystemConfig) {
	t.Helper()
	var oldObj client.Object
	if old != nil {
		oldObj = old
	}
	if err := m.Mutate(t.Context(), osc, oldObj); err != nil {
		t.Fatalf("mutating: %v", err)
	}
}

func hasFile(osc *extensionsv1alpha1.OperatingSystemConfig, path string) bool {
	return len(filter(osc.Spec.Files, func(f extensionsv1alpha1.File) bool { return f.Path == path })) == 1
}

func newOSC() *extensionsv1alpha1.OperatingSystemConfig {
	return &extensionsv1alpha1.OperatingSystemConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "pool"},
		Spec: extensionsv1alpha1.OperatingSystemConfigSpec{
			Purpose: extensionsv1alpha1.OperatingSystemConfigPurposeReconcile,
			Files:   []extensionsv1alpha1.File{{Path: "/opt/bin/of-others"}},
			Units:   []extensionsv1alpha1.Unit{{Name: "kubelet.service"}},
		},
	}
}

func newCluster(t *testing.T, change func(*v1beta1.Shoot)) *extensionsv1alpha1.Cluster {
	t.Helper()
	shoot := &v1beta1.Shoot{TypeMeta: metav1.TypeMeta{APIVersion: "core.gardener.cloud/v1beta1", Kind: "Shoot"}}
	if change != nil {
		change(shoot)
	}
	raw, err := json.Marshal(shoot)
	if err != nil {
		t.Fatal(err)
	}
	return &extensionsv1alpha1.Cluster{
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
		Spec:       extensionsv1alpha1.ClusterSpec{Shoot: runtime.RawExtension{Raw: raw}},
	}
}

func newExtension(t *testing.T, caches []v1alpha3.RegistryCacheStatus) *extensionsv1alpha1.Extension {
	t.Helper()
	raw, err := json.Marshal(registry.NewStatus(caches))
	if err != nil {
		t.Fatal(err)
	}
	return newExtensionWithStatus(raw)
}

func newExtensionWithStatus(raw []byte) *extensionsv1alpha1.Extension {
	extension := &extensionsv1alpha1.Extension{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "registry-cache"}}
	if raw != nil {
		extension.Status.ProviderStatus = &runtime.RawExtension{Raw: raw}
	}
	return extension
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{extensionsv1alpha1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

func newClient(t *testing.T, objects ...client.Object) client.WithWatch {
	t.Helper()
	return fake.NewClientBuilder().WithScheme(newScheme(t)).WithObjects(objects...).Build()
}

// One invalid cache in the status is left out and logged with its upstream; the others get their new configuration.
func TestMutateSkipsAnInvalidCache(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	ctx := logf.IntoContext(t.Context(), zap.New(zap.WriteTo(&log)))
	caches := documentCaches()
	caches[0].RemoteURL = "https://quay.io?token=hunter2"
	m := &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, caches))}
	osc := newOSC()
	if err := m.Mutate(ctx, osc, nil); err != nil {
		t.Fatal(err)
	}
	want, _ := New(documentCaches()[1:], "")
	if diff := cmp.Diff(want.Files, filter(osc.Spec.Files, owns)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := log.String(); !strings.Contains(got, `"upstream":"quay.io"`) || !strings.Contains(got, "without query or fragment") || strings.Contains(got, "hunter2") {
		t.Errorf("logged %s", got)
	}
}
