// SPDX-License-Identifier: Apache-2.0

package contract

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	configv1alpha1 "github.com/registry-cache/extension/pkg/apis/config/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/apis/registry/validation"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/contract"
	"github.com/registry-cache/extension/pkg/contract/contracttest"
	"github.com/registry-cache/extension/pkg/extension/desired"
)

// TestTable passes the cases of all programs through all of them. The cases also fail in the program that applies a rule
// of its own; this test finds the effects of an accepted value in another program.
func TestTable(t *testing.T) {
	t.Parallel()
	admit := newAdmission(t)
	for _, tc := range contracttest.Hosts() {
		check(t, admit, fields{Upstream: &tc.Input})
	}
	for _, tc := range contracttest.URLs() {
		check(t, admit, fields{Upstream: new("docker.io"), RemoteURL: &tc.Input})
		check(t, admit, fields{Upstream: new("docker.io"), Proxy: &proxy{HTTPProxy: &tc.Input, HTTPSProxy: &tc.Input}})
	}
	for _, tc := range contracttest.RemotePaths() {
		check(t, admit, fields{Upstream: new("docker.io"), RemoteURL: &tc.Input})
	}
	for _, tc := range contracttest.NoProxies() {
		check(t, admit, fields{Upstream: new("docker.io"), Proxy: &proxy{NoProxy: &tc.Input}})
	}
	for _, tc := range contracttest.Retentions() {
		gc := &collection{TTL: &tc.TTL}
		if tc.High != nil {
			gc.HighWatermark = new(int32(*tc.High))
		}
		if tc.Low != nil {
			gc.LowWatermark = new(int32(*tc.Low))
		}
		check(t, admit, fields{Upstream: new("docker.io"), GarbageCollection: gc})
	}
}

// TestSecrets checks that the server starts with every admitted Secret, and that both engines use the same credentials.
func TestSecrets(t *testing.T) {
	t.Parallel()
	certificate := newCertificate(t)
	header := strings.Replace(certificate, "\n", "\nComment: ours\n\n", 1)
	for _, tc := range []struct {
		name  string
		data  map[string]string
		valid bool
	}{
		{"certificate", map[string]string{"bundle.crt": certificate}, true},
		{"certificates with text", map[string]string{"bundle.crt": "ours\r\n" + certificate + "theirs\n" + strings.TrimSpace(certificate)}, true},
		{"certificate with a header", map[string]string{"bundle.crt": header}, false},
		{"second certificate with a header", map[string]string{"bundle.crt": certificate + header}, false},
		{"byte order mark", map[string]string{"bundle.crt": "\ufeff" + certificate}, false},
		{"no certificate", map[string]string{"bundle.crt": "ours"}, false},
		{"largest bundle", map[string]string{"bundle.crt": strings.Repeat("#", contract.MaxCABundle-len(certificate)-1) + "\n" + certificate}, true},
		{"too large bundle", map[string]string{"bundle.crt": strings.Repeat("#", contract.MaxCABundle-len(certificate)) + "\n" + certificate}, false},

		{"credentials", map[string]string{"username": "robot$ours", "password": "p#: \"x\""}, true},
		{"line end after the password", map[string]string{"username": "robot", "password": "p\r\n"}, true},
		{"white space in the password", map[string]string{"username": "robot", "password": " p\t\nq "}, true},
		{"not ASCII", map[string]string{"username": "rööbot", "password": "pässword\u2028"}, true},
		{"Latin 1", map[string]string{"username": "robot", "password": "p\xe4ssword"}, false},
		{"NUL", map[string]string{"username": "robot", "password": "a\x00b\x1f"}, true},
		{"DEL", map[string]string{"username": "robot", "password": "a\x7fb"}, false},
		{"C1 control character", map[string]string{"username": "robot", "password": "a\u0085b\u009f"}, false},
		{"byte order mark in the password", map[string]string{"username": "robot", "password": "a\ufeffb"}, true},
		{"noncharacter", map[string]string{"username": "robot", "password": "a\uffffb"}, false},
		{"JSON", map[string]string{"username": "_json_key", "password": "{\r\n\t\"type\": \"service_account\"\n}\n"}, true},
		{"colon in the username", map[string]string{"username": "a:b", "password": "p"}, false},
		{"colon in the password", map[string]string{"username": "a", "password": "b:p"}, true},
		{"names of YAML", map[string]string{"username": "null", "password": "0x10"}, true},
		{"blank password", map[string]string{"username": "a", "password": "\n"}, false},
		{"too long", map[string]string{"username": "a", "password": strings.Repeat("p", contract.MaxCredential+1)}, false},
		{"largest", map[string]string{"username": strings.Repeat("u", contract.MaxCredential), "password": strings.Repeat("p", contract.MaxCredential)}, true},
	} {
		secret := &corev1.Secret{Immutable: new(true), Data: map[string][]byte{}}
		for key, value := range tc.data {
			secret.Data[key] = []byte(value)
		}
		cache := v1alpha3.RegistryCache{Upstream: "docker.io", SecretReferenceName: new("ref")}
		if _, isBundle := tc.data["bundle.crt"]; isBundle {
			cache.SecretReferenceName, cache.CABundleSecretReferenceName = nil, new("ref")
		}
		references := []gardencorev1beta1.NamedResourceReference{{
			Name: "ref", ResourceRef: autoscalingv1.CrossVersionObjectReference{APIVersion: "v1", Kind: "Secret", Name: "s"},
		}}
		registryConfig := &v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{cache}}
		v1alpha3.SetDefaults(registryConfig)
		errs := validation.ValidateSecrets(registryConfig, references, func(string) (*corev1.Secret, error) { return secret, nil }, nil)
		if (len(errs) == 0) != tc.valid {
			t.Errorf("%s: admission: %.300v, want valid = %t", tc.name, errs, tc.valid)
		}
		if len(errs) == 0 {
			useSecret(t, tc.name, registryConfig.Caches[0], secret.Data)
		}
	}
}

// useSecret deploys a cache with an admitted Secret, and starts the clients of both engines with its files.
func useSecret(t *testing.T, name string, cache v1alpha3.RegistryCache, data map[string][]byte) {
	t.Helper()
	secrets := desired.Secrets{Certificate: &desired.Certificate{}, CABundle: string(data[contract.CABundleKey])}
	options := desired.Options{Image: "image"}
	if secrets.CABundle != "" {
		// The largest one that an operator can configure.
		options.CABundle = strings.Repeat("#", contract.MaxCABundle-len(newCertificate(t))-16) + "\n" + newCertificate(t)
	} else {
		secrets.Credentials = &desired.Credentials{Username: contract.Credential(data[contract.UsernameKey]), Password: contract.Credential(data[contract.PasswordKey])}
	}
	files := func(engine configv1alpha1.Engine) map[string][]byte {
		options.Engine = engine
		objects, err := desired.Workload(cache, cache.Volume.Size.Value(), secrets, options)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return objects[0].(*corev1.Secret).Data
	}

	dir, size := t.TempDir(), 0
	ours := files(configv1alpha1.RegistryCache)
	for key, content := range ours {
		size += len(content)
		if err := os.WriteFile(filepath.Join(dir, key), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if size > corev1.MaxSecretSize {
		t.Errorf("%s: the Secret of the cache has %d bytes, Kubernetes accepts %d", name, size, corev1.MaxSecretSize)
	}
	client := upstream.Options{CredentialsDir: dir}
	if secrets.CABundle != "" {
		client = upstream.Options{CAFile: filepath.Join(dir, "ca.crt")}
	}
	if c, err := upstream.New("https://docker.io", client); err != nil {
		t.Errorf("%s: admitted, but the server does not start: %.300v", name, err)
	} else {
		c.Close()
	}
	var stock struct {
		Proxy struct{ Username, Password string }
	}
	if err := yaml.Unmarshal(files(configv1alpha1.Distribution)["config.yml"], &stock); err != nil {
		t.Fatal(err)
	}
	for key, got := range map[string]string{contract.UsernameKey: stock.Proxy.Username, contract.PasswordKey: stock.Proxy.Password} {
		if want := contract.Credential(ours[key]); got != want {
			t.Errorf("%s: the engines use different values of %s: %q and %q", name, key, want, got)
		}
	}
}

func newCertificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	content, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: content}))
}
