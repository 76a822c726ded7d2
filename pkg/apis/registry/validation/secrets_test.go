// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	"github.com/google/go-cmp/cmp"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
)

// leak is part of every password, and of no error.
const leak = "hunter2"

func TestCredentials(t *testing.T) {
	t.Parallel()
	const jsonKeyError = `must have the JSON key of a service account as "password", because "username" is _json_key: an object of strings with no other fields than type, project_id, private_key_id, private_key, client_email, client_id, auth_uri, token_uri, auth_provider_x509_cert_url, client_x509_cert_url, universe_domain`
	const keys = `must have the keys "password", "username" and no others; it has `
	for _, tc := range []struct {
		name string
		data map[string]string
		want string
	}{
		{"good", map[string]string{"username": "robot$ours", "password": leak + " \n"}, ""},
		{"names that YAML would read otherwise", map[string]string{"username": "@*&!%#", "password": leak}, ""},
		{"service account", map[string]string{"username": "_json_key", "password": `{"type":"service_account","private_key":"` + leak + `","token_uri":"https://oauth2.googleapis.com/token"}` + "\n"}, ""},
		{"nothing", nil, keys + "none"},
		{"no password", map[string]string{"username": "robot"}, keys + `"username"`},
		{"no username", map[string]string{"password": leak}, keys + `"password"`},
		{"more keys", map[string]string{"username": "robot", "password": leak, "email": leak}, keys + `"email", "password", "username"`},
		{"docker config", map[string]string{".dockerconfigjson": leak}, keys + `".dockerconfigjson"`},
		{"blank username", map[string]string{"username": " \n", "password": leak}, `has an invalid "username", it must not be blank`},
		{"blank password", map[string]string{"username": "robot", "password": "\t"}, `has an invalid "password", it must not be blank`},
		{"line feed after the username", map[string]string{"username": leak + "\n", "password": leak}, `has an invalid "username", it must not have white space; a line feed at its end counts`},
		{"space in the username", map[string]string{"username": leak + " robot", "password": leak}, `has an invalid "username", it must not have white space; a line feed at its end counts`},
		{"colon in the username", map[string]string{"username": "a:" + leak, "password": leak}, `has an invalid "username", it must not have a colon, which would begin the password in HTTP basic authentication`},
		{"password in Latin 1", map[string]string{"username": "robot", "password": leak + "\xe9"}, `has an invalid "password", it must be UTF-8`},
		{"service account without JSON", map[string]string{"username": "_json_key", "password": leak}, jsonKeyError},
		{"service account as a list", map[string]string{"username": "_json_key", "password": `["` + leak + `"]`}, jsonKeyError},
		{"empty service account", map[string]string{"username": "_json_key", "password": `{}`}, jsonKeyError},
		{"null as service account", map[string]string{"username": "_json_key", "password": `null`}, jsonKeyError},
		{"service account with a number", map[string]string{"username": "_json_key", "password": `{"type":1}`}, jsonKeyError},
		{"service account with an object", map[string]string{"username": "_json_key", "password": `{"type":{"a":"` + leak + `"}}`}, jsonKeyError},
		{"external account", map[string]string{"username": "_json_key", "password": `{"type":"external_account","credential_source":"` + leak + `"}`}, jsonKeyError},
		{"two keys", map[string]string{"username": "_json_key", "password": `{"type":"` + leak + `"}{"type":"x"}`}, jsonKeyError},
	} {
		checkSecret(t, tc.name, "secretReferenceName", v1alpha3.RegistryCache{SecretReferenceName: new("ref")}, tc.data, tc.want)
	}
}

func TestProxyCredentials(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		data map[string]string
		want string
	}{
		{"good", map[string]string{"username": "robot", "password": leak + "@:/ \n"}, ""},
		{"nothing", nil, `must have the keys "password", "username" and no others; it has none`},
		{"colon in the username", map[string]string{"username": "a:" + leak, "password": leak}, `has invalid credentials, username: must not have a colon, which would begin the password in HTTP basic authentication`},
		{"blank password", map[string]string{"username": "robot", "password": ""}, `has invalid credentials, password: must not be blank`},
		{"long password", map[string]string{"username": "robot", "password": strings.Repeat(leak, 200)}, `has invalid credentials, username and password must have at most 1024 bytes each`},
	} {
		proxy := &v1alpha3.Proxy{HTTPProxy: new("http://proxy"), SecretReferenceName: new("ref")}
		checkSecret(t, tc.name, "proxy.secretReferenceName", v1alpha3.RegistryCache{Proxy: proxy}, tc.data, tc.want)
	}
}

func TestCABundleSecret(t *testing.T) {
	t.Parallel()
	good := certificate(t)
	keys := `must have the keys "bundle.crt" and no others; it has `
	pemError := `must have certificates in PEM as "bundle.crt": `
	for _, tc := range []struct {
		name string
		data map[string]string
		want string
	}{
		{"one certificate", map[string]string{"bundle.crt": good}, ""},
		{"two with text between them", map[string]string{"bundle.crt": "ours:\n" + good + "theirs:\n" + certificate(t)}, ""},
		{"another key", map[string]string{"ca.crt": good}, keys + `"ca.crt"`},
		{"two keys", map[string]string{"bundle.crt": good, "ca.crt": good}, keys + `"bundle.crt", "ca.crt"`},
		{"empty", map[string]string{"bundle.crt": ""}, pemError + "one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----"},
		{"text", map[string]string{"bundle.crt": leak}, pemError + "one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----"},
		// The public extension looks at the first one only.
		{"second is cut off", map[string]string{"bundle.crt": good + good[:len(good)/2]}, pemError + "one of its PEM blocks cannot be read, want -----BEGIN CERTIFICATE-----, base64, -----END CERTIFICATE-----"},
		{"second is a key", map[string]string{"bundle.crt": good + string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte(leak)}))}, pemError + "PEM block 2 is a EC PRIVATE KEY, want only certificates"},
		{"with a header", map[string]string{"bundle.crt": strings.Replace(good, "\n", "\nComment: "+leak+"\n\n", 1)}, pemError + "PEM block 1 has headers, with which its certificate is ignored; remove the lines before the base64"},
		{"too large", map[string]string{"bundle.crt": good + strings.Repeat("#", 400<<10)}, pemError + "must have at most 409600 bytes"},
		{"second is no certificate", map[string]string{"bundle.crt": good + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(leak)}))}, pemError + "certificate 2: x509: malformed certificate"},
	} {
		checkSecret(t, tc.name, "caBundleSecretReferenceName", v1alpha3.RegistryCache{CABundleSecretReferenceName: new("ref")}, tc.data, tc.want)
	}
}

// checkSecret validates the only cache of a config against an immutable Secret with data, and one that is not immutable.
func checkSecret(t *testing.T, name, fieldName string, cache v1alpha3.RegistryCache, data map[string]string, want string) {
	t.Helper()
	const prefix, immutable = `: Invalid value: "ref": Secret "s" `, `must have "immutable: true"; for new contents, make a new Secret and let the entry of spec.resources refer to that`
	path := "spec.extensions[2].providerConfig.caches[0]." + fieldName
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Immutable: new(true), Data: map[string][]byte{}}
	for key, value := range data {
		secret.Data[key] = []byte(value)
	}
	config := &v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{cache}}
	validate := func() []string {
		return messages(ValidateSecrets(config, []gardencorev1beta1.NamedResourceReference{reference("ref", "v1", "Secret", "s")},
			func(string) (*corev1.Secret, error) { return secret, nil }, field.NewPath("spec", "extensions").Index(2).Child("providerConfig")))
	}
	var wanted []string
	if want != "" {
		wanted = []string{path + prefix + want}
	}
	if diff := cmp.Diff(wanted, validate()); diff != "" {
		t.Errorf("%s: -want +got:\n%s", name, diff)
	}
	wanted = append([]string{path + prefix + immutable}, wanted...)
	for _, value := range []*bool{nil, new(false)} {
		secret.Immutable = value
		if diff := cmp.Diff(wanted, validate()); diff != "" {
			t.Errorf("%s, not immutable: -want +got:\n%s", name, diff)
		}
	}
	if got := strings.Join(validate(), "\n"); strings.Contains(got, leak) {
		t.Errorf("%s: the password is repeated: %s", name, got)
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	resources := []gardencorev1beta1.NamedResourceReference{
		reference("good", "v1", "Secret", "s"),
		reference("gone", "v1", "Secret", "nowhere"),
		reference("broken", "v1", "Secret", "unreachable"),
		reference("map", "v1", "ConfigMap", "m"),
		reference("other-group", "example.com/v1", "Secret", "s"),
	}
	get := func(name string) (*corev1.Secret, error) {
		switch name {
		case "s":
			return &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: "s"}, Immutable: new(true),
				Data: map[string][]byte{"username": []byte("u"), "password": []byte("p")},
			}, nil
		case "nowhere":
			return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
		}
		return nil, errors.New("connection refused")
	}
	config := &v1alpha3.RegistryConfig{Caches: []v1alpha3.RegistryCache{
		{Upstream: "a"},
		{Upstream: "b", SecretReferenceName: new("good")},
		{Upstream: "c", SecretReferenceName: new("gone")},
		{Upstream: "d", SecretReferenceName: new("broken")},
		{Upstream: "e", SecretReferenceName: new("map")},
		{Upstream: "f", SecretReferenceName: new("other-group")},
		{Upstream: "g", SecretReferenceName: new("s"), CABundleSecretReferenceName: new("good")},
	}}
	want := []string{
		`caches[2].secretReferenceName: Invalid value: "gone": Secret "nowhere", to which the entry of spec.resources refers, must exist in the namespace of the Shoot`,
		`caches[3].secretReferenceName: Internal error: reading Secret "unreachable": connection refused`,
		`caches[4].secretReferenceName: Invalid value: "map": must be the name of an entry of spec.resources with a Secret of v1; it refers to the ConfigMap "m" of "v1"`,
		`caches[5].secretReferenceName: Invalid value: "other-group": must be the name of an entry of spec.resources with a Secret of v1; it refers to the Secret "s" of "example.com/v1"`,
		`caches[6].secretReferenceName: Invalid value: "s": must be the name of an entry of spec.resources; there is none with this name`,
		`caches[6].caBundleSecretReferenceName: Invalid value: "good": Secret "s" must have the keys "bundle.crt" and no others; it has "password", "username"`,
	}
	if diff := cmp.Diff(want, messages(ValidateSecrets(config, resources, get, nil))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func reference(name, apiVersion, kind, object string) gardencorev1beta1.NamedResourceReference {
	return gardencorev1beta1.NamedResourceReference{
		Name: name, ResourceRef: autoscalingv1.CrossVersionObjectReference{APIVersion: apiVersion, Kind: kind, Name: object},
	}
}

func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
