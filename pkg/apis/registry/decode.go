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
	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/pkg/apis/registry/validation"
)

const (
	configKind = "RegistryConfig"
	statusKind = "RegistryStatus"
)

// Decode reads raw, the JSON of a RegistryConfig in a version that Shoot owners may use, and returns it as v1alpha3 with
// every default filled in, and validated. fldPath is the path of raw in the object that holds it, for example
// field.NewPath("providerConfig").
//
// Decoding is strict. The errors name the field by the path under which the owner wrote it, and say what to write
// instead; if there is one, the config is nil. Values are shown shortened, and not at all where they may hold a
// password.
func Decode(raw []byte, fldPath *field.Path) (*v1alpha3.RegistryConfig, field.ErrorList) {
	if len(raw) == 0 {
		return nil, field.ErrorList{field.Required(fldPath, "must be a "+configKind+" of "+v1alpha1.APIVersion)}
	}
	if err := checkTypeMeta(raw, fldPath); err != nil {
		return nil, field.ErrorList{err}
	}

	var v1 v1alpha1.RegistryConfig
	if errs := decodeStrict(raw, &v1, fldPath); len(errs) > 0 {
		return nil, errs
	}
	config := fromV1alpha1(&v1)
	v1alpha3.SetDefaults(config)

	errs := validation.ValidateRegistryConfig(config, fldPath)
	for _, err := range errs {
		// The one field that v1alpha1 has and v1alpha3 has elsewhere.
		err.Field = strings.Replace(err.Field, ".volume.size", ".size", 1)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return config, nil
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

func checkTypeMeta(raw []byte, fldPath *field.Path) *field.Error {
	var meta metav1.TypeMeta
	if err := json.UnmarshalCaseSensitivePreserveInts(raw, &meta); err != nil {
		if found := typeError(raw, reflect.TypeFor[metav1.TypeMeta](), fldPath); found != nil {
			return found
		}
		return field.Invalid(fldPath, field.OmitValueType{}, "must be an object: "+err.Error())
	}
	switch {
	case meta.APIVersion == "":
		return field.Required(fldPath.Child("apiVersion"), "must be "+v1alpha1.APIVersion)
	case meta.APIVersion != v1alpha1.APIVersion:
		return field.NotSupported(fldPath.Child("apiVersion"), shorten(meta.APIVersion), []string{v1alpha1.APIVersion})
	case meta.Kind == "":
		return field.Required(fldPath.Child("kind"), "must be "+configKind)
	case meta.Kind != configKind:
		return field.NotSupported(fldPath.Child("kind"), shorten(meta.Kind), []string{configKind})
	}
	return nil
}

// decodeStrict decodes raw into out, which is a pointer to a struct.
func decodeStrict(raw []byte, out any, fldPath *field.Path) field.ErrorList {
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
