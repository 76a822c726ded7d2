// SPDX-License-Identifier: Apache-2.0

// Package registry decodes what a Shoot owner wrote about registry caches, and what the controller reported about them.
//
// Only this package knows that the API has more than one version: everything behind it works with v1alpha3.
package registry

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/json"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha1"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha2"
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/apis/registry/validation"
	"github.com/registry-cache/extension/pkg/contract"
)

const (
	configKind = "RegistryConfig"
	statusKind = "RegistryStatus"
)

// version is a version in which Shoot owners may write a RegistryConfig.
type version struct {
	apiVersion string
	// read decodes raw strictly and converts it to v1alpha3. No defaults are filled in.
	read func(raw []byte, fldPath *field.Path) (*v1alpha3.RegistryConfig, field.ErrorList)
	// written turns the path of a field of v1alpha3 into the path under which the version has it.
	written func(path string) string
}

// versions are all of them, the best one to use first.
var versions = []version{
	{v1alpha3.APIVersion, reader(asV1alpha3), asWritten},
	{v1alpha2.APIVersion, reader(fromV1alpha2), asWritten},
	{v1alpha1.APIVersion, reader(fromV1alpha1), func(path string) string { return strings.Replace(path, ".volume.size", ".size", 1) }},
}

func asWritten(path string) string { return path }

func asV1alpha3(in *v1alpha3.RegistryConfig) *v1alpha3.RegistryConfig { return in }

func reader[T any](convert func(in *T) *v1alpha3.RegistryConfig) func([]byte, *field.Path) (*v1alpha3.RegistryConfig, field.ErrorList) {
	return func(raw []byte, fldPath *field.Path) (*v1alpha3.RegistryConfig, field.ErrorList) {
		in := new(T)
		if errs := DecodeStrict(raw, in, fldPath); len(errs) > 0 {
			return nil, errs
		}
		return convert(in), nil
	}
}

// apiVersions are the values of apiVersion that are accepted.
func apiVersions() []string {
	var all []string
	for _, v := range versions {
		all = append(all, v.apiVersion)
	}
	return all
}

// Decode reads raw, the JSON of a RegistryConfig in a version that Shoot owners may use (v1alpha1, v1alpha2, v1alpha3),
// and returns it as v1alpha3 with every default filled in, and validated. fldPath is the path of raw in the object that
// holds it, for example field.NewPath("providerConfig").
//
// Decoding is strict. The errors name the field by the path under which the owner wrote it, and say what to write
// instead; if there is one, the config is nil. Values are shown shortened, and not at all where they may hold a
// password.
func Decode(raw []byte, fldPath *field.Path) (*v1alpha3.RegistryConfig, field.ErrorList) {
	config, errs := decode(raw, nil, fldPath)
	if len(errs) > 0 {
		return nil, errs
	}
	return config, nil
}

// decode is Decode, and also refuses what cannot be changed any more in caches that exist: oldRaw is what raw replaces,
// in whichever version. An oldRaw that cannot be read does not count: nothing was ever deployed from it. The config is
// not nil if it could be read, even if it is not valid.
func decode(raw, oldRaw []byte, fldPath *field.Path) (*v1alpha3.RegistryConfig, field.ErrorList) {
	config, v, errs := read(raw, fldPath)
	if len(errs) > 0 {
		return nil, errs
	}
	errs = validation.ValidateRegistryConfig(config, fldPath)
	if old, _, oldErrs := read(oldRaw, fldPath); len(oldErrs) == 0 {
		errs = append(errs, validation.ValidateRegistryConfigUpdate(old, config, fldPath)...)
	}
	return config, v.asWritten(errs)
}

// read decodes raw, converts it, brings addresses into their canonical form and fills in the defaults. It does not
// validate.
func read(raw []byte, fldPath *field.Path) (*v1alpha3.RegistryConfig, version, field.ErrorList) {
	if len(raw) == 0 {
		return nil, version{}, field.ErrorList{field.Required(fldPath, "must be a "+configKind+" of "+v1alpha3.APIVersion)}
	}
	v, err := checkTypeMeta(raw, fldPath)
	if err != nil {
		return nil, version{}, field.ErrorList{err}
	}
	config, errs := v.read(raw, fldPath)
	if len(errs) > 0 {
		return nil, version{}, errs
	}
	canonicalize(config)
	v1alpha3.SetDefaults(config)
	return config, v, nil
}

// canonicalize brings URLs and proxy exceptions into the form in which nodes and server use them: Shoots may contain
// "HTTPS://ghcr.io/". Invalid values stay as they are, so that the errors of the validation show them.
func canonicalize(config *v1alpha3.RegistryConfig) {
	for i := range config.Caches {
		cache := &config.Caches[i]
		canonicalizeURL(cache.RemoteURL, contract.ParseRemoteURL)
		if proxy := cache.Proxy; proxy != nil {
			canonicalizeURL(proxy.HTTPProxy, contract.ParseProxyURL)
			canonicalizeURL(proxy.HTTPSProxy, contract.ParseProxyURL)
			if proxy.NoProxy != nil {
				if canonical, err := contract.ParseNoProxy(*proxy.NoProxy); err == nil {
					*proxy.NoProxy = canonical
				}
			}
		}
	}
}

func canonicalizeURL(value *string, parse func(string) (contract.URL, error)) {
	if value == nil {
		return
	}
	if parsed, err := parse(*value); err == nil {
		*value = parsed.String()
	}
}

// asWritten makes errors of the validation, which is about v1alpha3, fit for the owner of a config of version v.
func (v version) asWritten(errs field.ErrorList) field.ErrorList {
	for _, err := range errs {
		err.Field = v.written(err.Field)
		if value, ok := err.BadValue.(string); ok {
			err.BadValue = shorten(value)
		}
	}
	return errs
}

// DecodeStatus reads raw, the JSON of a RegistryStatus of v1alpha3. Fields that it does not know are ignored: a newer
// controller may have written them.
func DecodeStatus(raw []byte) (*v1alpha3.RegistryStatus, error) {
	var status v1alpha3.RegistryStatus
	if err := json.UnmarshalCaseSensitivePreserveInts(raw, &status); err != nil {
		return nil, fmt.Errorf("decoding provider status: %w", err)
	}
	if status.APIVersion != v1alpha3.APIVersion || status.Kind != statusKind {
		return nil, fmt.Errorf("decoding provider status: it is %q %q, want %s %s", status.APIVersion, status.Kind, v1alpha3.APIVersion, statusKind)
	}
	return &status, nil
}

// NewStatus returns a RegistryStatus that holds caches and carries its apiVersion and kind.
func NewStatus(caches []v1alpha3.RegistryCacheStatus) *v1alpha3.RegistryStatus {
	return &v1alpha3.RegistryStatus{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha3.APIVersion, Kind: statusKind},
		Caches:   caches,
	}
}

// checkTypeMeta returns the version that raw says it has.
func checkTypeMeta(raw []byte, fldPath *field.Path) (version, *field.Error) {
	var meta metav1.TypeMeta
	if err := json.UnmarshalCaseSensitivePreserveInts(raw, &meta); err != nil {
		if found := typeError(raw, reflect.TypeFor[metav1.TypeMeta](), fldPath); found != nil {
			return version{}, found
		}
		return version{}, field.Invalid(fldPath, field.OmitValueType{}, "must be an object: "+err.Error())
	}
	if meta.APIVersion == "" {
		return version{}, field.Required(fldPath.Child("apiVersion"), "must be one of "+strings.Join(apiVersions(), ", "))
	}
	for _, v := range versions {
		if v.apiVersion != meta.APIVersion {
			continue
		}
		switch meta.Kind {
		case configKind:
			return v, nil
		case "":
			return version{}, field.Required(fldPath.Child("kind"), "must be "+configKind)
		}
		return version{}, field.NotSupported(fldPath.Child("kind"), shorten(meta.Kind), []string{configKind})
	}
	return version{}, field.NotSupported(fldPath.Child("apiVersion"), shorten(meta.APIVersion), apiVersions())
}

// DecodeStrict decodes raw, JSON, into out, which is a pointer to a struct. Upper and lower case differ. Unknown and
// repeated fields are errors, and all errors name their field below fldPath, which may be nil.
func DecodeStrict(raw []byte, out any, fldPath *field.Path) field.ErrorList {
	strictErrs, err := json.UnmarshalStrict(raw, out)
	if err != nil {
		if found := typeError(raw, reflect.TypeOf(out).Elem(), fldPath); found != nil {
			return field.ErrorList{found}
		}
		return field.ErrorList{field.Invalid(fldPath, field.OmitValueType{}, err.Error())}
	}
	var errs field.ErrorList
	for _, strictErr := range strictErrs {
		path := fldPath
		if at, ok := errors.AsType[json.FieldError](strictErr); ok {
			path = fldPath.Child(shorten(at.FieldPath()))
		}
		if strings.HasPrefix(strictErr.Error(), "duplicate field") {
			errs = append(errs, field.Forbidden(path, "the field is given twice; remove one of the two"))
			continue
		}
		errs = append(errs, field.Forbidden(path, "unknown field; the fields are "+strings.Join(fields(reflect.TypeOf(out).Elem()), ", ")))
	}
	return errs
}
