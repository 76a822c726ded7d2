// SPDX-License-Identifier: Apache-2.0

package validation

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/contract"
)

// serviceAccountKey is the username that Google's registries require for the JSON key of a service account as password.
const serviceAccountKey = "_json_key"

// serviceAccountFields are the fields of the JSON key of a Google service account. Others, such as credential_source of an
// external account, may name files and commands of the machine that reads the key.
var serviceAccountFields = []string{
	"type", "project_id", "private_key_id", "private_key", "client_email", "client_id", "auth_uri", "token_uri",
	"auth_provider_x509_cert_url", "client_x509_cert_url", "universe_domain",
}

// GetSecret returns the Secret of that name in the namespace of the Shoot. It is an error for which apierrors.IsNotFound
// is true if there is none.
type GetSecret func(name string) (*corev1.Secret, error)

// ValidateSecrets checks what config refers to: that resources, the Shoot's spec.resources, has the entries, that their
// Secrets exist, are immutable, and hold what the caches need and nothing else. The errors are about the fields of config
// that have the references, and repeat no value of a Secret.
//
// Credentials are changed by letting the entry of spec.resources refer to another Secret, so call it for a config that
// has not changed, too.
func ValidateSecrets(config *v1alpha3.RegistryConfig, resources []gardencorev1beta1.NamedResourceReference, get GetSecret, fldPath *field.Path) field.ErrorList {
	var errs field.ErrorList
	check := func(reference *string, path *field.Path, contents func(data map[string][]byte) string) {
		if reference == nil {
			return
		}
		secret, err := resolve(*reference, resources, get, path)
		if err != nil {
			errs = append(errs, err)
			return
		}
		complain := func(complaint string) {
			errs = append(errs, field.Invalid(path, *reference, fmt.Sprintf("Secret %q %s", secret.Name, complaint)))
		}
		if secret.Immutable == nil || !*secret.Immutable {
			complain("must have \"immutable: true\"; for new contents, make a new Secret and let the entry of spec.resources refer to that")
		}
		if complaint := contents(secret.Data); complaint != "" {
			complain(complaint)
		}
	}
	for i := range config.Caches {
		cache, path := &config.Caches[i], fldPath.Child("caches").Index(i)
		check(cache.SecretReferenceName, path.Child("secretReferenceName"), credentialsComplaint)
		check(cache.CABundleSecretReferenceName, path.Child("caBundleSecretReferenceName"), caBundleComplaint)
		if cache.Proxy != nil {
			check(cache.Proxy.SecretReferenceName, path.Child("proxy", "secretReferenceName"), proxyComplaint)
		}
	}
	return errs
}

func resolve(reference string, resources []gardencorev1beta1.NamedResourceReference, get GetSecret, path *field.Path) (*corev1.Secret, *field.Error) {
	index := slices.IndexFunc(resources, func(r gardencorev1beta1.NamedResourceReference) bool { return r.Name == reference })
	if index < 0 {
		return nil, field.Invalid(path, reference, "must be the name of an entry of spec.resources; there is none with this name")
	}
	ref := resources[index].ResourceRef
	if ref.Kind != "Secret" || ref.APIVersion != "v1" {
		return nil, field.Invalid(path, reference, fmt.Sprintf(
			"must be the name of an entry of spec.resources with a Secret of v1; it refers to the %s %q of %q", ref.Kind, ref.Name, ref.APIVersion))
	}
	secret, err := get(ref.Name)
	switch {
	case apierrors.IsNotFound(err):
		return nil, field.Invalid(path, reference, fmt.Sprintf("Secret %q, to which the entry of spec.resources refers, must exist in the namespace of the Shoot", ref.Name))
	case err != nil:
		return nil, field.InternalError(path, fmt.Errorf("reading Secret %q: %w", ref.Name, err))
	}
	return secret, nil
}

// credentialsComplaint says what is wrong with the data of a Secret with credentials, "" for nothing.
func credentialsComplaint(data map[string][]byte) string {
	if complaint := keysComplaint(data, contract.PasswordKey, contract.UsernameKey); complaint != "" {
		return complaint
	}
	// A line end after the username is an error, although the cache would ignore it: other extensions do not.
	username, password := string(data[contract.UsernameKey]), contract.Credential(data[contract.PasswordKey])
	if err := contract.CheckUsername(username); err != nil {
		return fmt.Sprintf("has an invalid %q, it %v", contract.UsernameKey, err)
	}
	if err := contract.CheckPassword(password); err != nil {
		return fmt.Sprintf("has an invalid %q, it %v", contract.PasswordKey, err)
	}
	if username == serviceAccountKey && !isServiceAccountKey(password) {
		return fmt.Sprintf("must have the JSON key of a service account as \"password\", because \"username\" is %s: an object of strings with no other fields than %s",
			serviceAccountKey, strings.Join(serviceAccountFields, ", "))
	}
	return ""
}

// proxyComplaint says what is wrong with the data of a Secret with the credentials for a proxy, "" for nothing.
func proxyComplaint(data map[string][]byte) string {
	if complaint := keysComplaint(data, contract.PasswordKey, contract.UsernameKey); complaint != "" {
		return complaint
	}
	if err := contract.CheckProxyCredentials(string(data[contract.UsernameKey]), contract.Credential(data[contract.PasswordKey])); err != nil {
		return fmt.Sprintf("has invalid credentials, %v", err)
	}
	return ""
}

func isServiceAccountKey(password string) bool {
	var key map[string]string
	if err := json.Unmarshal([]byte(password), &key); err != nil || len(key) == 0 {
		return false
	}
	for name := range key {
		if !slices.Contains(serviceAccountFields, name) {
			return false
		}
	}
	return true
}

// caBundleComplaint says what is wrong with the data of a Secret with certificate authorities, "" for nothing.
func caBundleComplaint(data map[string][]byte) string {
	if complaint := keysComplaint(data, contract.CABundleKey); complaint != "" {
		return complaint
	}
	if err := contract.CheckCABundle(string(data[contract.CABundleKey])); err != nil {
		return fmt.Sprintf("must have certificates in PEM as %q: %v", contract.CABundleKey, err)
	}
	return ""
}

// keysComplaint wants exactly the keys, which are sorted.
func keysComplaint(data map[string][]byte, keys ...string) string {
	quoted := func(names []string) string {
		if len(names) == 0 {
			return "none"
		}
		return `"` + strings.Join(names, `", "`) + `"`
	}
	has := slices.Sorted(maps.Keys(data))
	if slices.Equal(has, keys) {
		return ""
	}
	return fmt.Sprintf("must have the keys %s and no others; it has %s", quoted(keys), quoted(has))
}
