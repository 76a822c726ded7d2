// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/pkg/apis/registry"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

func mixedCaches() []v1alpha3.RegistryCacheStatus {
	return []v1alpha3.RegistryCacheStatus{
		{Upstream: "docker.io", Endpoint: "https://10.96.0.10:5000", RemoteURL: "https://registry-1.docker.io"},
		{Upstream: "ghcr.io", Endpoint: "https://[fd00:10::a]:5000", RemoteURL: "https://ghcr.io"},
		{Upstream: "quay.io", Endpoint: "http://10.96.0.12:5000", RemoteURL: "https://quay.io"},
	}
}

func TestNewWithTLS(t *testing.T) {
	t.Parallel()
	config, skipped := New(mixedCaches(), testCA(t))
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	config.Files[0].Content.Inline.Data = "the script\n"
	got, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "mixed.yaml", got)
	for _, path := range config.Units[0].FilePaths {
		if path == CABundlePath {
			t.Error("the rotation of the CA would restart the unit, which withdraws the caches")
		}
	}

	plain, skipped := New(documentCaches(), testCA(t))
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	for _, f := range plain.Files {
		if f.Path == CABundlePath {
			t.Error("roots although no cache needs them")
		}
	}
}

func TestNewWithoutBundle(t *testing.T) {
	t.Parallel()
	for name, bundle := range map[string]string{
		"none": "", "not PEM": "certificates", "a key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		// The unit reads the first 64 KiB of a file.
		"too large": strings.Repeat("#", 64<<10) + testCA(t),
	} {
		config, skipped := New(mixedCaches(), bundle)
		if len(skipped) != 2 || skipped[0].Upstream != "docker.io" || skipped[1].Upstream != "ghcr.io" || !strings.HasPrefix(skipped[0].Reason.Error(), "CA bundle: ") {
			t.Errorf("%s: skipped %v", name, skipped)
		}
		if configured(config, "quay.io") == "" {
			t.Errorf("%s: the cache with http is affected", name)
		}
	}
}

func TestMutateShipsTheBundle(t *testing.T) {
	t.Parallel()
	osc := newOSC()
	mutate(t, &mutator{client: newTLSClient(t, map[string][]byte{"bundle.crt": []byte(testCA(t))})}, osc, nil)
	want, skipped := New(mixedCaches(), testCA(t))
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	if diff := cmp.Diff(want.Files, filter(osc.Spec.Files, owns)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// The next bundle of a rotation replaces the one before, and nothing else moves.
	before := osc.DeepCopy()
	mutate(t, &mutator{client: newTLSClient(t, map[string][]byte{"bundle.crt": []byte(testCA(t) + testCA(t))})}, osc, before)
	var changed []string
	for i, f := range osc.Spec.Files {
		if !cmp.Equal(f, before.Spec.Files[i]) {
			changed = append(changed, f.Path)
		}
	}
	if diff := cmp.Diff([]string{CABundlePath}, changed); diff != "" {
		t.Errorf("changed files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before.Spec.Units, osc.Spec.Units); diff != "" {
		t.Errorf("units (-before +after):\n%s", diff)
	}

	mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, documentCaches()))}, osc, osc.DeepCopy())
	if hasFile(osc, CABundlePath) {
		t.Error("the bundle stays although TLS is off")
	}
}

// The scheme of an endpoint is case-insensitive, also for the decision whether the roots are read.
func TestMutateReadsTheBundleForUpperCase(t *testing.T) {
	t.Parallel()
	for _, endpoint := range []string{"HTTPS://10.96.0.10:5000", "https://10.96.0.10:5000/"} {
		status := registry.NewStatus([]v1alpha3.RegistryCacheStatus{{Upstream: "docker.io", Endpoint: endpoint, RemoteURL: "https://registry-1.docker.io"}})
		status.CASecretName = new("roots")
		raw, err := json.Marshal(status)
		if err != nil {
			t.Fatal(err)
		}
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "roots"}, Data: map[string][]byte{"bundle.crt": []byte(testCA(t))}}
		osc := newOSC()
		mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtensionWithStatus(raw), secret)}, osc, nil)
		got := configured(Config{Files: osc.Spec.Files}, "docker.io")
		if !strings.Contains(got, `[host."https://10.96.0.10:5000"]`) || !hasFile(osc, CABundlePath) {
			t.Errorf("%s: got %q, roots %t", endpoint, got, hasFile(osc, CABundlePath))
		}
	}
}

// Caches with https keep their configuration, new ones get none, and caches with http are not affected.
func TestMutateWithoutBundle(t *testing.T) {
	t.Parallel()
	good := newTLSClient(t, map[string][]byte{"bundle.crt": []byte(testCA(t))})
	noName := newExtension(t, mixedCaches())
	for name, reader := range map[string]client.Reader{
		"no Secret":         newTLSClient(t, nil),
		"other key":         newTLSClient(t, map[string][]byte{"ca.crt": []byte(testCA(t))}),
		"not a certificate": newTLSClient(t, map[string][]byte{"bundle.crt": []byte(unreadable)}),
		"no caSecretName":   newClient(t, newCluster(t, nil), noName),
		"Secret unreadable": interceptor.NewClient(good, interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
				if _, ok := obj.(*corev1.Secret); ok {
					return errors.New("etcd has no leader")
				}
				return c.Get(ctx, key, obj, opts...)
			},
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old := newOSC()
			mutate(t, &mutator{client: good}, old, nil)
			osc := newOSC()
			mutate(t, &mutator{client: reader}, osc, old)
			if diff := cmp.Diff(old, osc); diff != "" {
				t.Errorf("old configuration (-want +got):\n%s", diff)
			}
			osc = newOSC()
			mutate(t, &mutator{client: reader}, osc, nil)
			plain, _ := New(mixedCaches()[2:], "")
			if diff := cmp.Diff(plain, Config{Files: filter(osc.Spec.Files, owns), Units: filter(osc.Spec.Units, ownsUnit)}); diff != "" {
				t.Errorf("no old configuration (-want +got):\n%s", diff)
			}
		})
	}
}

// The files that are kept without the roots are those of New with the roots, in the same order: another order would
// change the checksum of the OperatingSystemConfig.
func TestWithPreviousKeepsTheOrder(t *testing.T) {
	t.Parallel()
	var all, plain []v1alpha3.RegistryCacheStatus
	var withoutRoots []string
	for i, upstream := range []string{"docker.io:443", "docker.io", "a.io", "docker-a.io", "docker.io.example.com", "z.io:5000"} {
		cache := v1alpha3.RegistryCacheStatus{Upstream: upstream, Endpoint: "https://10.96.0.10:5000", RemoteURL: "https://registry.example.com", Engine: "registry-cache"}
		if i%2 == 1 {
			cache.Endpoint = "http://10.96.0.11:5000"
			plain = append(plain, cache)
		} else {
			withoutRoots = append(withoutRoots, upstream)
		}
		all = append(all, cache)
	}
	previous, _ := New(all, testCA(t))
	config, skipped := New(plain, "")
	if len(skipped) > 0 {
		t.Fatal(skipped)
	}
	if diff := cmp.Diff(previous, config.withPrevious(previous, withoutRoots)); diff != "" {
		t.Errorf("(-with roots +kept):\n%s", diff)
	}
	// An upstream that was removed from the status meanwhile is not kept.
	kept := config.withPrevious(previous, withoutRoots[1:])
	if configured(kept, withoutRoots[0]) != "" || configured(kept, withoutRoots[1]) == "" {
		t.Errorf("kept %v, want only %v", kept.Files, withoutRoots[1:])
	}
}

// An upstream that belongs to somebody else needs no roots of ours.
func TestMutateReadsNoBundleThatIsNotNeeded(t *testing.T) {
	t.Parallel()
	caches := []v1alpha3.RegistryCacheStatus{mixedCaches()[0], mixedCaches()[2]}
	osc := newOSC()
	osc.Spec.CRIConfig = &extensionsv1alpha1.CRIConfig{
		Name:       extensionsv1alpha1.CRINameContainerD,
		Containerd: &extensionsv1alpha1.ContainerdConfig{Registries: []extensionsv1alpha1.RegistryConfig{{Upstream: "docker.io"}}},
	}
	mutate(t, &mutator{client: newClient(t, newCluster(t, nil), newExtension(t, caches))}, osc, nil)
	if !hasFile(osc, HostsDirectory+"/quay.io/hosts.toml") || hasFile(osc, CABundlePath) {
		t.Errorf("got the files %v", osc.Spec.Files)
	}
}

// newTLSClient reads a Shoot with the caches of mixedCaches, and a CA Secret with data, none if that is nil.
func newTLSClient(t *testing.T, data map[string][]byte) client.WithWatch {
	t.Helper()
	status := registry.NewStatus(mixedCaches())
	status.CASecretName = new("ca-extension-registry-cache-bundle-1")
	raw, err := json.Marshal(status)
	if err != nil {
		t.Fatal(err)
	}
	objects := []client.Object{newCluster(t, nil), newExtensionWithStatus(raw)}
	if data != nil {
		objects = append(objects, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: *status.CASecretName}, Data: data})
	}
	return newClient(t, objects...)
}

// testCA is a CA certificate that stays the same, for golden files.
func testCA(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
