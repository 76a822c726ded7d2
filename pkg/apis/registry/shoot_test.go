// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func TestValidateShoot(t *testing.T) {
	t.Parallel()
	const (
		v1alpha1      = "apiVersion: registry.extensions.gardener.cloud/v1alpha1, kind: RegistryConfig"
		v1alpha3      = "apiVersion: registry.extensions.gardener.cloud/v1alpha3, kind: RegistryConfig"
		path          = "spec.extensions[1].providerConfig"
		size          = `.caches[0].size: Invalid value: "5Gi": must not be less than before, write at least 10Gi: a volume cannot shrink; to start with an empty volume, remove the cache and add it again when it is gone`
		noSecret      = `.caches[0].secretReferenceName: Invalid value: "credentials": Secret "old", to which the entry of spec.resources refers, must exist in the namespace of the Shoot`
		noNewSecret   = `.caches[0].secretReferenceName: Invalid value: "credentials": Secret "new", to which the entry of spec.resources refers, must exist in the namespace of the Shoot`
		noConfig      = `: Required value: must be a RegistryConfig of registry.extensions.gardener.cloud/v1alpha3`
		mirroredToo   = path + `.caches[0].upstream: Invalid value: "docker.io": an upstream cannot be cached and mirrored at once, and spec.extensions[2].providerConfig.mirrors[1].upstream is the same; remove one of the two`
		notContainerd = `spec.provider.workers[2].cri.name: Unsupported value: "docker": supported values: "containerd"`
	)
	// shoot is a manifest with the registry-cache as the second extension.
	shoot := func(extension, rest string) string {
		return "spec: {extensions: [{type: shoot-dns-service}, {type: registry-cache, " + extension + "}], " + rest + "}"
	}
	config := func(version, cache string) string {
		return "providerConfig: {" + version + ", caches: [" + cache + "]}"
	}
	small := config(v1alpha1, "{upstream: docker.io, size: 5Gi}")
	normal := config(v1alpha1, "{upstream: docker.io, size: 10Gi}")
	secret := config(v1alpha3, "{upstream: docker.io, secretReferenceName: credentials}")
	resources := func(name string) string {
		return "resources: [{name: credentials, resourceRef: {apiVersion: v1, kind: Secret, name: " + name + "}}]"
	}
	// mirrored also has the extension registry-mirror.
	mirrored := func(extension, mirrors string) string {
		return "spec: {extensions: [{type: shoot-dns-service}, {type: registry-cache, " + normal + "}, {type: registry-mirror, " + extension +
			", providerConfig: {apiVersion: mirror.extensions.gardener.cloud/v1alpha1, kind: MirrorConfig, " + mirrors + "}}]}"
	}
	for _, tc := range []struct {
		name, shoot, old string
		want             []string
	}{
		{"good", shoot(normal, ""), "", nil},
		{"without the extension", "spec: {extensions: [{type: other, providerConfig: {a: b}}]}", "", nil},
		{"without any extension", "spec: {provider: {workers: [{cri: {name: docker}}]}}", "", nil},
		{"no provider config", shoot("disabled: false", ""), "", []string{path + noConfig}},
		{"unknown field", shoot(config(v1alpha1, "{upstream: docker.io, sizes: 1Gi}"), ""), "", []string{
			path + ".caches[0].sizes: Forbidden: unknown field; the fields are kind, apiVersion, caches[].upstream, caches[].size, caches[].garbageCollection.enabled",
		}},
		{"bad size", shoot(config(v1alpha1, "{upstream: docker.io, size: 0}"), ""), "", []string{path + `.caches[0].size: Invalid value: "0": must be greater than 0, for example 10Gi`}},
		{"smaller volume", shoot(small, ""), shoot(normal, ""), []string{path + size}},
		{"extension moved in the list", shoot(small, ""), "spec: {extensions: [{type: registry-cache, " + normal + "}]}", []string{path + size}},
		{"larger volume", shoot(normal, ""), shoot(small, ""), nil},
		{"extension added", shoot(small, ""), "spec: {}", nil},

		{"disabled with nothing", shoot("disabled: true", ""), "", nil},
		{"disabled with a config that is none", shoot("disabled: true, providerConfig: {a: b}", "provider: {workers: [{cri: {name: docker}}]}"), "", nil},
		{"disabled, and the volume made smaller", shoot("disabled: true, "+small, ""), shoot(normal, ""), nil},
		{"enabled again with a smaller volume", shoot(small, ""), shoot("disabled: true, "+normal, ""), nil},
		{"enabled with a config that was not checked", shoot("providerConfig: {a: b}", ""), shoot("disabled: true, providerConfig: {a: b}", ""), []string{
			path + ".apiVersion: Required value: must be one of registry.extensions.gardener.cloud/v1alpha3, registry.extensions.gardener.cloud/v1alpha2, registry.extensions.gardener.cloud/v1alpha1",
		}},
		{"being deleted", "metadata: {deletionTimestamp: '2026-01-01T00:00:00Z'}\n" + shoot("disabled: false", ""), "", nil},

		{"Secret is there", shoot(secret, resources("there")), "", nil},
		{"Secret is missing", shoot(secret, resources("old")), "", []string{path + noSecret}},
		{"only the referenced Secret changes", shoot(secret, resources("new")), shoot(secret, resources("old")), []string{path + noNewSecret}},

		{"workers", shoot(normal, "provider: {workers: [{name: a}, {name: b, cri: {name: containerd}}]}"), "", nil},
		{"worker without containerd", shoot(normal, "provider: {workers: [{name: a}, {name: b, cri: {name: containerd}}, {name: c, cri: {name: docker}}]}"), "", []string{notContainerd}},
		{"mirror of another upstream", mirrored("disabled: false", "mirrors: [{upstream: quay.io}]"), "", nil},
		{"mirror of the same upstream", mirrored("disabled: false", "mirrors: [{upstream: quay.io}, {upstream: docker.io, unknown: field}]"), "", []string{mirroredToo}},
		{"mirror of the same upstream, added", mirrored("disabled: false", "mirrors: [{upstream: quay.io}, {upstream: docker.io}]"), shoot(normal, ""), []string{mirroredToo}},
		{"mirrors disabled", mirrored("disabled: true", "mirrors: [{upstream: quay.io}, {upstream: docker.io}]"), "", nil},
		{"mirrors that cannot be read", mirrored("disabled: false", "mirrors: {upstream: docker.io}"), "", nil},
		{"mirrors without a config", "spec: {extensions: [{type: registry-mirror}, {type: registry-cache, " + normal + "}]}", "", nil},

		{"everything at once", shoot("disabled: false", "provider: {workers: [{}, {}, {cri: {name: docker}}]}"), "", []string{path + noConfig, notContainerd}},
	} {
		read := func(manifest string) *gardencorev1beta1.Shoot {
			if manifest == "" {
				return nil
			}
			shoot := &gardencorev1beta1.Shoot{}
			if err := yaml.UnmarshalStrict([]byte(manifest), shoot); err != nil {
				t.Fatalf("%s: %v", tc.name, err)
			}
			return shoot
		}
		get := func(name string) (*corev1.Secret, error) {
			if name == "there" {
				return &corev1.Secret{
					ObjectMeta: metav1.ObjectMeta{Name: name}, Immutable: new(true),
					Data: map[string][]byte{"username": []byte("robot"), "password": []byte("hunter2")},
				}, nil
			}
			return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
		}
		if diff := cmp.Diff(tc.want, messages(ValidateShoot(read(tc.shoot), read(tc.old), get))); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tc.name, diff)
		}
	}
}
