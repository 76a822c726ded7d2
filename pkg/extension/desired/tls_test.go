// SPDX-License-Identifier: Apache-2.0

package desired

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/cacheserver/config"
)

func withTLS() v1alpha3.RegistryCache {
	return defaulted(v1alpha3.RegistryCache{Upstream: "docker.io", HTTP: &v1alpha3.HTTP{TLS: new(true)}})
}

func TestGoldenTLS(t *testing.T) {
	t.Parallel()
	secrets := Secrets{Certificate: &Certificate{Certificate: []byte("a certificate\n"), Key: []byte("its key\n")}}
	for file, options := range map[string]Options{
		"https.yaml":              {Image: "registry.example.com/registry-cache:v1.2.3"},
		"distribution-https.yaml": {Image: "registry.example.com/distribution:v1.2.3", Engine: configv1alpha1.Distribution},
	} {
		compareWithGolden(t, file, toYAML(t, workload(t, withTLS(), secrets, options)))
	}
}

// Our server reads a new certificate while it runs, the stock registry does not.
func TestWhomANewCertificateRestarts(t *testing.T) {
	t.Parallel()
	for engine, restarts := range map[configv1alpha1.Engine]bool{configv1alpha1.RegistryCache: false, configv1alpha1.Distribution: true} {
		checksum := func(key string) string {
			secrets := Secrets{Certificate: &Certificate{Certificate: []byte("c"), Key: []byte(key)}}
			return podTemplate(t, withTLS(), secrets, Options{Image: "i", Engine: engine}).Annotations[checksumAnnotation]
		}
		if got := checksum("a") != checksum("b"); got != restarts {
			t.Errorf("%s: pod restarts: %t, want %t", engine, got, restarts)
		}
	}
}

// The server must find what is mounted.
func TestServerReadsItsCertificate(t *testing.T) {
	t.Parallel()
	secrets := Secrets{Certificate: &Certificate{Certificate: []byte("c"), Key: []byte("k")}}
	files := map[string]string{}
	var server config.Config
	secretsByName := map[string]*corev1.Secret{}
	for _, obj := range workload(t, withTLS(), secrets, Options{Image: "i"}) {
		if secret, ok := obj.(*corev1.Secret); ok {
			secretsByName[secret.Name] = secret
		}
	}
	pod := podTemplate(t, withTLS(), secrets, Options{Image: "i"}).Spec
	for _, volume := range pod.Volumes {
		for _, mount := range pod.Containers[0].VolumeMounts {
			if mount.Name != volume.Name {
				continue
			}
			if mount.SubPath != "" {
				t.Errorf("%s would never be updated", mount.MountPath)
			}
			for key, content := range secretsByName[volume.Secret.SecretName].Data {
				files[mount.MountPath+"/"+key] = string(content)
			}
		}
	}
	for path, content := range files {
		if strings.HasSuffix(path, "/config.yaml") {
			var err error
			if server, err = config.Parse([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if certificate, key := files[server.Listen.TLS.CertFile], files[server.Listen.TLS.KeyFile]; certificate != "c" || key != "k" {
		t.Errorf("the server reads the certificate %q with the key %q from %+v", certificate, key, server.Listen.TLS)
	}
}

func TestCertificateDoesNotRestartThePod(t *testing.T) {
	t.Parallel()
	options := Options{Image: "i"}
	before := podTemplate(t, withTLS(), Secrets{Certificate: &Certificate{Certificate: []byte("a"), Key: []byte("a")}}, options)
	after := podTemplate(t, withTLS(), Secrets{Certificate: &Certificate{Certificate: []byte("b"), Key: []byte("b")}}, options)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("another certificate: -before +after:\n%s", diff)
	}
	off := podTemplate(t, v1alpha3.RegistryCache{Upstream: "docker.io"}, Secrets{}, options)
	if before.Annotations[checksumAnnotation] == off.Annotations[checksumAnnotation] {
		t.Error("the server goes on with https after it was switched off")
	}
}

func TestWorkloadNeedsACertificate(t *testing.T) {
	t.Parallel()
	_, err := Workload(withTLS(), 1, Secrets{}, Options{Image: "i"})
	if err == nil || err.Error() != "the cache of docker.io is to be served by https and has no certificate" {
		t.Errorf("got error %v", err)
	}
}

func TestServerNames(t *testing.T) {
	t.Parallel()
	cache := v1alpha3.RegistryCache{Upstream: "docker.io", ServiceNameSuffix: new("ours")}
	for _, address := range []string{"10.96.0.20", "fd00::14"} {
		names, addresses, err := ServerNames(cache, address)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"registry-ours", "registry-ours.kube-system", "registry-ours.kube-system.svc", "registry-ours.kube-system.svc.cluster.local"}
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if len(addresses) != 1 || addresses[0].String() != address {
			t.Errorf("got the addresses %v, want %s", addresses, address)
		}
	}
	if _, _, err := ServerNames(cache, "None"); err == nil {
		t.Error("no error for a Service without an address")
	}
}
