package shoot

import (
	"strings"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
)

// documented is the example of the user's document: nothing but what an owner of caches writes.
const documented = `apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
metadata:
  name: crazy-botany
  namespace: garden-dev
spec:
  extensions:
  - type: registry-cache
    providerConfig:
      apiVersion: registry.extensions.gardener.cloud/v1alpha1
      kind: RegistryConfig
      caches:
      - upstream: docker.io
        size: 100Gi
`

func TestParseNamesTheField(t *testing.T) {
	t.Parallel()
	with := func(old, replacement string) string {
		if !strings.Contains(documented, old) {
			t.Fatalf("the document has no %q", old)
		}
		return strings.Replace(documented, old, replacement, 1)
	}
	for _, tc := range []struct {
		name, manifest, want string
	}{
		{"unknown field", with("- type: registry-cache", "- typ: x\n    type: registry-cache"), `unknown field "spec.extensions[0].typ"`},
		{"unknown field at the top", with("spec:", "status:\n  ready: true\nspec:"), `unknown field "status.ready"`},
		{"field in another case", with("providerConfig:", "providerconfig:"), `unknown field "spec.extensions[0].providerconfig"`},
		{"field twice", with("metadata:", "kind: Shoot\nmetadata:"), `key "kind" already set in map`},
		{"wrong type", with("name: crazy-botany", "name: [a]"), "cannot unmarshal array into Go struct field ObjectMeta.metadata.name of type string"},
		{"no YAML", "\t", "found character that cannot start any token"},
		{"kind", with("kind: Shoot", "kind: Seed"), `kind: Unsupported value: "Seed": supported values: "Shoot"`},
		{"version", with("core.gardener.cloud/v1beta1", "core.gardener.cloud/v1"), `apiVersion: Unsupported value: "core.gardener.cloud/v1": supported values: "core.gardener.cloud/v1beta1"`},
		{"no name", with("  name: crazy-botany\n", ""), "metadata.name: Required value: the Shoot needs a name"},
		{"bad name", with("crazy-botany", "Crazy"), `metadata.name: Invalid value: "Crazy": a lowercase RFC 1123 label`},
		{"long name", with("crazy-botany", strings.Repeat("a", 60)), "metadata.name: Too long: may not be more than 51 bytes"},
		{"no project", with("garden-dev", "default"), `metadata.namespace: Invalid value: "default": must be the namespace of a project: garden-<project>`},
		{"empty project", with("garden-dev", "garden-"), `metadata.namespace: Invalid value: "garden-"`},
		{"no type", with("type: registry-cache", `type: ""`), "spec.extensions[0].type: Required value"},
		{"type twice", documented + "  - type: registry-cache\n", `spec.extensions[1].type: Duplicate value: "registry-cache"`},
		{"two pools", documented + "  provider: {type: local, workers: [{name: a}, {name: b}]}\n", "spec.provider.workers: Too many: 2: must have at most 1 item"},
		{"referenced ConfigMap", documented + "  resources: [{name: a, resourceRef: {apiVersion: v1, kind: ConfigMap, name: a}}]\n", `spec.resources[0].resourceRef.kind: Unsupported value: "ConfigMap": supported values: "Secret"`},
		{"too large", strings.Repeat("#", maxManifest+1), "it has 1048577 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse([]byte(tc.manifest))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v\nwant it to contain %s", err, tc.want)
			}
		})
	}
}

func TestProjectOf(t *testing.T) {
	t.Parallel()
	for namespace, want := range map[string]string{"garden-dev": "dev", "garden": "garden", "garden-a-b": "a-b"} {
		if got, ok := projectOf(namespace); !ok || got != want {
			t.Errorf("project of %s is %q, want %q", namespace, got, want)
		}
	}
	for _, namespace := range []string{"", "garden-", "gardendev", "garden-Dev", "kube-system"} {
		if got, ok := projectOf(namespace); ok {
			t.Errorf("namespace %q was taken for that of project %q", namespace, got)
		}
	}
}

func TestCompleteFillsTheDocumentedExample(t *testing.T) {
	t.Parallel()
	shoot, err := Parse([]byte(documented))
	if err != nil {
		t.Fatal(err)
	}
	if err := complete(shoot, facts{kubernetesVersion: "1.34.4", nodes: 3}); err != nil {
		t.Fatal(err)
	}
	spec := shoot.Spec
	if spec.Kubernetes.Version != "1.34.4" || spec.Provider.Type != "local" || spec.Region != "local" || *spec.SeedName != "local" || spec.CloudProfile.Name != "local" {
		t.Errorf("spec is %+v", spec)
	}
	pool := spec.Provider.Workers[0]
	if pool.Name != "worker" || pool.Minimum != 3 || pool.Maximum != 3 || pool.CRI.Name != gardencorev1beta1.CRINameContainerD || *pool.Machine.Architecture == "" {
		t.Errorf("the worker pool is %+v", pool)
	}
	want := `{"apiVersion":"registry.extensions.gardener.cloud/v1alpha1","caches":[{"size":"100Gi","upstream":"docker.io"}],"kind":"RegistryConfig"}`
	if diff := cmp.Diff(want, string(spec.Extensions[0].ProviderConfig.Raw)); diff != "" {
		t.Errorf("providerConfig (-want +got):\n%s", diff)
	}
}

func TestCompleteKeepsWhatTheOwnerWrote(t *testing.T) {
	t.Parallel()
	manifest := documented + `  cloudProfile: {kind: NamespacedCloudProfile, name: mine}
  region: here
  seedName: seed
  kubernetes: {version: 1.34.4}
  networking: {type: calico, pods: 10.1.0.0/16, services: 10.2.0.0/16, ipFamilies: [IPv6]}
  provider:
    type: bare
    workers:
    - name: pool
      minimum: 1
      maximum: 5
      cri: {name: containerd}
      machine: {type: large, architecture: arm64, image: {name: os, version: 2.0.0}}
      systemComponents: {allow: false}
`
	written, err := Parse([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	completed := written.DeepCopy()
	if err := complete(completed, facts{kubernetesVersion: "1.34.4", nodes: 3}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(written, completed); diff != "" {
		t.Errorf("complete changed (-written +completed):\n%s", diff)
	}
}

func TestCompleteRefusesAnotherKubernetesVersion(t *testing.T) {
	t.Parallel()
	shoot, err := Parse([]byte(documented + "  kubernetes: {version: 1.33.0}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := `spec.kubernetes.version: Invalid value: "1.33.0": the cluster runs 1.34.4: write that or leave the field out`
	if err := complete(shoot, facts{kubernetesVersion: "1.34.4"}); err == nil || err.Error() != want {
		t.Errorf("error is %v\nwant %s", err, want)
	}
}
