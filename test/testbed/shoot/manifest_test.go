// SPDX-License-Identifier: Apache-2.0

package shoot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		{"no namespace", with("  namespace: garden-dev\n", ""), "metadata.namespace: Required value: the Shoot needs the namespace of a project: garden-dev"},
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

func TestCompleteFillsTheDocumentedExample(t *testing.T) {
	t.Parallel()
	shoot, err := Parse([]byte(documented))
	if err != nil {
		t.Fatal(err)
	}
	complete(shoot, 3)
	spec := shoot.Spec
	if spec.Provider.Type != "local" || spec.Region != "local" || *spec.CredentialsBindingName != "local" || spec.CloudProfile.Name != "local" || *spec.Networking.Type != "local" {
		t.Errorf("spec is %+v", spec)
	}
	pool := spec.Provider.Workers[0]
	if pool.Name != "worker" || pool.Minimum != 3 || pool.Maximum != 3 || pool.Machine.Type != "local" || *pool.Machine.Architecture == "" {
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
  credentialsBindingName: mine
  region: here
  networking: {type: calico, pods: 10.1.0.0/16, services: 10.2.0.0/16}
  provider:
    type: bare
    workers:
    - name: pool
      minimum: 1
      maximum: 5
      machine: {type: large, architecture: arm64}
`
	written, err := Parse([]byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	completed := written.DeepCopy()
	complete(completed, 3)
	if diff := cmp.Diff(written, completed); diff != "" {
		t.Errorf("complete changed (-written +completed):\n%s", diff)
	}
}

// What the example has beyond the document is what complete would fill in, so that kubectl can apply it.
func TestExamplesAreComplete(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("..", "..", "..", "example", "shoot*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("examples are %q, %v", files, err)
	}
	for _, file := range files {
		manifest, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		written, err := Parse(manifest)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		completed := written.DeepCopy()
		complete(completed, 3)
		completed.Spec.Provider.Workers[0].Machine.Architecture = nil // the API server has a default for it
		if diff := cmp.Diff(written, completed); diff != "" {
			t.Errorf("%s lacks (-written +completed):\n%s", file, diff)
		}
	}
}
