// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nodeagentconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/nodeagent/v1alpha1"
	grmconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/resourcemanager/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
)

var checkout = filepath.Join("..", "..", "..")

func TestLocateFindsTheVersionThatTheTestbedIsCompiledWith(t *testing.T) {
	t.Parallel()
	src, err := locate(t.Context(), checkout)
	if err != nil {
		t.Fatal(err)
	}
	goMod, err := os.ReadFile(filepath.Join(checkout, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	// The API types are from the one go.mod, the programs from the other.
	if !strings.Contains(string(goMod), "\t"+modulePath+" "+src.Version+"\n") {
		t.Errorf("%s has version %s, the go.mod of the checkout has another one", buildDir, src.Version)
	}
	for _, file := range crdFiles() {
		objects, err := readManifest(filepath.Join(src.Dir, "example", "seed-crds", file))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, object := range objects {
			if object.GetKind() != "CustomResourceDefinition" {
				t.Errorf("%s holds a %s", file, object.GetKind())
			}
		}
	}
}

func TestLocateTellsWhatIsMissing(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, buildDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.org/empty\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := locate(t.Context(), root); err == nil || !strings.Contains(err.Error(), modulePath) {
		t.Errorf("error is %v, want one that names the module", err)
	}
}

func TestBuildKeyCoversItsInputs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	key := func(version string) string {
		t.Helper()
		key, err := buildKey(dir, version)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	write("go.mod", "a")
	write("go.sum", "b")
	keys := []string{key("v1.0.0"), key("v1.0.1")}
	write("go.mod", "c")
	keys = append(keys, key("v1.0.0"))
	write("go.sum", "d")
	keys = append(keys, key("v1.0.0"))
	slices.Sort(keys)
	if len(slices.Compact(keys)) != 4 {
		t.Errorf("keys are %q, want four different ones", keys)
	}
	write("go.mod", "a")
	write("go.sum", "b")
	if again := key("v1.0.0"); !slices.Contains(keys, again) {
		t.Errorf("equal inputs give another key, %s", again)
	}
}

func TestReadManifestRefusesAFileWithoutObjects(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "empty.yaml")
	if err := os.WriteFile(path, []byte("---\n# nothing\n---\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readManifest(path); err == nil || !strings.Contains(err.Error(), "holds no object") {
		t.Errorf("error is %v", err)
	}
}

// The program ignores keys that it does not know, so a typing error would silently mean the default.
func TestResourceManagerConfigHasOnlyKnownKeys(t *testing.T) {
	t.Parallel()
	config := &grmconfigv1alpha1.ResourceManagerConfiguration{}
	if err := yaml.UnmarshalStrict([]byte(resourceManagerConfig), config); err != nil {
		t.Fatal(err)
	}
	if got := config.Controllers.ManagedResource.SyncPeriod.Duration; got != time.Hour {
		t.Errorf("ManagedResources are synced every %s; Gardener does so every hour, and a shorter period hides lost repairs", got)
	}
	if got := config.Controllers.Health.SyncPeriod.Duration; got != time.Minute {
		t.Errorf("health is checked every %s, want Gardener's minute", got)
	}
	if got := config.Server.Webhooks.Port; got != webhookPort {
		t.Errorf("webhooks are served on port %d, the Service sends to %d", got, webhookPort)
	}
	if got := config.Server.HealthProbes.Port; got != healthPort {
		t.Errorf("health is served on port %d, the probes ask %d", got, healthPort)
	}
}

func TestCertificateIsUsable(t *testing.T) {
	t.Parallel()
	now := time.Now()
	made, err := newCertificate(now, "a", "a.b")
	if err != nil {
		t.Fatal(err)
	}
	other, err := newCertificate(now, "a", "a.b")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		cert  certificate
		at    time.Time
		names []string
		want  bool
	}{
		{"fresh", made, now, []string{"a", "a.b"}, true},
		{"other names", made, now, []string{"a", "a.c"}, false},
		{"ends soon", made, now.Add(certificateValidity - certificateRenewal + time.Minute), []string{"a", "a.b"}, false},
		{"another CA", certificate{ca: other.ca, cert: made.cert, key: made.key}, now, []string{"a", "a.b"}, false},
		{"another key", certificate{ca: made.ca, cert: made.cert, key: other.key}, now, []string{"a", "a.b"}, false},
		{"empty", certificate{}, now, []string{"a", "a.b"}, false},
	} {
		if got := tc.cert.usable(tc.at, tc.names...); got != tc.want {
			t.Errorf("%s: usable is %t, want %t", tc.name, got, tc.want)
		}
	}
}

func TestEnsureCertificateKeepsAUsableOne(t *testing.T) {
	t.Parallel()
	c := fake.NewClientBuilder().WithScheme(kubernetes.SeedScheme).Build()
	first, err := ensureCertificate(t.Context(), c, resourceManager, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range resourceManagerObjects("image", first) {
		if err := apply(t.Context(), c, object); err != nil {
			t.Fatal(err)
		}
	}
	second, err := ensureCertificate(t.Context(), c, resourceManager, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if string(first.cert) != string(second.cert) {
		t.Error("the second run made a new certificate, which restarts the program")
	}
	third, err := ensureCertificate(t.Context(), c, resourceManager, time.Now().Add(certificateValidity))
	if err != nil {
		t.Fatal(err)
	}
	if string(first.cert) == string(third.cert) {
		t.Error("an expired certificate was kept")
	}
}

func TestApplyRepairsWhatItSetAndLeavesTheRest(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	foreign := &corev1.Namespace{}
	foreign.Name, foreign.Labels = "kube-system", map[string]string{"kept": "yes", "gardener.cloud/purpose": "wrong"}
	c := fake.NewClientBuilder().WithScheme(kubernetes.SeedScheme).WithObjects(foreign).Build()
	for range 2 {
		for _, object := range resourceManagerObjects("image", certificate{cert: []byte("c")}) {
			if err := apply(ctx, c, object); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Get(ctx, client.ObjectKeyFromObject(foreign), foreign); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"kept":                   "yes",
		"gardener.cloud/purpose": "kube-system",
		"high-availability-config.resources.gardener.cloud/consider": "true",
	}
	got := foreign.Labels
	delete(got, corev1.LabelMetadataName)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("labels of kube-system (-want +got):\n%s", diff)
	}
}

func TestDeploymentRollsWhenTheCertificateChanges(t *testing.T) {
	t.Parallel()
	template := func(served certificate) corev1.PodTemplateSpec {
		for _, object := range resourceManagerObjects("image", served) {
			if deployment, ok := object.(*appsv1.Deployment); ok {
				return deployment.Spec.Template
			}
		}
		t.Fatal("there is no Deployment")
		return corev1.PodTemplateSpec{}
	}
	if cmp.Equal(template(certificate{cert: []byte("a")}), template(certificate{cert: []byte("b")})) {
		t.Error("the pod template is the same, so the pod would go on with the old certificate")
	}
	if diff := cmp.Diff(template(certificate{cert: []byte("a")}), template(certificate{cert: []byte("a")})); diff != "" {
		t.Errorf("the pod template differs without a reason:\n%s", diff)
	}
}

func TestWebhooksAreThoseOfAnExtension(t *testing.T) {
	t.Parallel()
	var names []string
	for _, object := range webhookObjects([]byte("ca")) {
		switch object := object.(type) {
		case *admissionregistrationv1.ValidatingWebhookConfiguration:
			for _, webhook := range object.Webhooks {
				names = append(names, webhook.Name)
				if got := webhook.ClientConfig; string(got.CABundle) != "ca" || got.Service.Name != resourceManager || *got.Service.Path == "" {
					t.Errorf("webhook %s is called at %v", webhook.Name, got)
				}
			}
		case *admissionregistrationv1.MutatingWebhookConfiguration:
			for _, webhook := range object.Webhooks {
				names = append(names, webhook.Name)
				// kind's own components in kube-system must not change.
				if webhook.ObjectSelector.MatchLabels["resources.gardener.cloud/managed-by"] != "gardener" {
					t.Errorf("webhook %s selects %v", webhook.Name, webhook.ObjectSelector)
				}
				if webhook.NamespaceSelector.MatchLabels[corev1.LabelMetadataName] != "kube-system" {
					t.Errorf("webhook %s selects namespaces %v", webhook.Name, webhook.NamespaceSelector)
				}
			}
		}
	}
	want := []string{
		"validation.extensions.extensions.resources.gardener.cloud",
		"validation.extensions.operatingsystemconfigs.resources.gardener.cloud",
		"high-availability-config.resources.gardener.cloud",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("webhooks (-want +got):\n%s", diff)
	}
}

func TestNodeAgentFiles(t *testing.T) {
	t.Parallel()
	files, err := nodeAgentFiles("worker-1", "v1.2.3", "v1.34.4", []byte("program"), []byte("kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	byPath := map[string]nodeFile{}
	for _, file := range files {
		byPath[file.path] = file
	}
	config := &nodeagentconfigv1alpha1.NodeAgentConfiguration{}
	if err := yaml.UnmarshalStrict(byPath["/var/lib/gardener-node-agent/config-v1.2.3.yaml"].content, config); err != nil {
		t.Fatalf("the configuration of version v1.2.3: %v", err)
	}
	if got := config.Controllers.OperatingSystemConfig; got.SecretName != gardenlet.NodeAgentSecretName || got.KubernetesVersion.String() != "1.34.4" {
		t.Errorf("controller configuration is %+v", got)
	}
	if got := byPath["/var/lib/gardener-node-agent/credentials/kubeconfig"]; got.mode != 0o600 || string(got.content) != "kubeconfig" {
		t.Errorf("the kubeconfig has mode %s", got.mode)
	}
	if got := byPath["/opt/bin/gardener-node-agent"]; got.mode != 0o755 || string(got.content) != "program" {
		t.Errorf("the program has mode %s", got.mode)
	}
	if got := string(byPath["/var/lib/gardener-node-agent/machine-name"].content); got != "worker-1\n" {
		t.Errorf("machine name is %q", got)
	}
	unit := string(byPath["/etc/systemd/system/gardener-node-agent.service"].content)
	if !strings.Contains(unit, "Restart=always") || !strings.Contains(unit, "ExecStart=/opt/bin/gardener-node-agent --config-dir=/var/lib/gardener-node-agent") {
		t.Errorf("unit is\n%s", unit)
	}
	if got := string(byPath["/etc/systemd/system/gardener-node-agent.service.d/10-testbed.conf"].content); !strings.Contains(got, "Environment=KUBECONFIG=/var/lib/gardener-node-agent/credentials/kubeconfig\n") {
		t.Errorf("drop-in is\n%s", got)
	}
	if _, err := nodeAgentFiles("n", "v1", "new", nil, nil); err == nil {
		t.Error("a Kubernetes version that is none was taken")
	}
}

// fakeNode keeps files in memory and records everything else.
type fakeNode struct {
	files map[string]string
	calls []string
	fail  string
}

func (n *fakeNode) Run(_ context.Context, _ io.Reader, args ...string) ([]byte, error) {
	if args[0] == "sh" {
		var out strings.Builder
		for _, path := range args[4:] {
			if content, ok := n.files[path]; ok {
				fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256([]byte(content)), path)
			}
		}
		return []byte(out.String()), nil
	}
	call := strings.Join(args, " ")
	n.calls = append(n.calls, call)
	if call == n.fail {
		return nil, errors.New("exit status 1")
	}
	return nil, nil
}

func (n *fakeNode) WriteFile(_ context.Context, path string, _ fs.FileMode, content []byte) error {
	n.calls = append(n.calls, "write "+path)
	n.files[path] = string(content)
	return nil
}

func TestStartNodeAgentChangesOnlyWhatDiffers(t *testing.T) {
	t.Parallel()
	files := []nodeFile{{"/a", 0o644, []byte("1")}, {"/b c", 0o644, []byte("2")}}
	restart := []string{"systemctl daemon-reload", "systemctl enable --quiet gardener-node-agent.service", "systemctl restart gardener-node-agent.service"}
	start := []string{"systemctl enable --quiet gardener-node-agent.service", "systemctl start gardener-node-agent.service"}
	for _, tc := range []struct {
		name      string
		present   map[string]string
		want      []string
		restarted bool
	}{
		{"new node", map[string]string{}, append([]string{"write /a", "write /b c"}, restart...), true},
		{"one file changed", map[string]string{"/a": "1", "/b c": "old"}, append([]string{"write /b c"}, restart...), true},
		{"nothing changed", map[string]string{"/a": "1", "/b c": "2"}, start, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := &fakeNode{files: tc.present}
			restarted, err := startNodeAgent(t.Context(), n, files)
			if err != nil {
				t.Fatal(err)
			}
			if restarted != tc.restarted {
				t.Errorf("restarted is %t, want %t", restarted, tc.restarted)
			}
			if diff := cmp.Diff(tc.want, n.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStartNodeAgentReturnsAFailedStart(t *testing.T) {
	t.Parallel()
	n := &fakeNode{files: map[string]string{}, fail: "systemctl start gardener-node-agent.service"}
	if _, err := startNodeAgent(t.Context(), n, nil); err == nil {
		t.Error("the failure was swallowed")
	}
}

func TestPodProblemsAreTold(t *testing.T) {
	t.Parallel()
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace, pod.Labels = "p", namespace, map[string]string{"app": resourceManager}
	status := `{"conditions":[{"type":"PodScheduled","status":"False","message":"no node fits"}],
		"containerStatuses":[{"state":{"waiting":{"reason":"ErrImageNeverPull","message":"image is not present"}},"lastState":{"terminated":{"exitCode":3,"reason":"Error"}}}]}`
	if err := json.Unmarshal([]byte(status), &pod.Status); err != nil {
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(kubernetes.SeedScheme).WithObjects(pod).Build()
	var deployment *appsv1.Deployment
	for _, object := range resourceManagerObjects("image", certificate{}) {
		if d, ok := object.(*appsv1.Deployment); ok {
			deployment = d
		}
	}
	err := podProblems(t.Context(), c, deployment)
	want := "pod p: no node fits\npod p: ErrImageNeverPull image is not present\npod p: its container ended before with code 3: Error"
	if err == nil || err.Error() != want {
		t.Errorf("error is %v\nwant %s", err, want)
	}
}
