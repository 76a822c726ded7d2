// SPDX-License-Identifier: Apache-2.0

package registry

import (
	stdjson "encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/json"
)

// maxShown bounds what is repeated of a bad value, in bytes: an error ends up in the Shoot's status.
const maxShown = 100

// typeError finds the first value in raw that does not fit the Go type t. The JSON decoder itself names a field by its
// Go types and without the index of the list, or, behind an UnmarshalJSON method, not at all. It returns nil if raw as
// a whole can be decoded, or is no JSON.
func typeError(raw []byte, t reflect.Type, path *field.Path) *field.Error {
	switch {
	case string(raw) == "null":
		return nil
	case t.Kind() == reflect.Pointer:
		return typeError(raw, t.Elem(), path)
	case t.Kind() == reflect.Struct && !isScalar(t):
		var values map[string]stdjson.RawMessage
		if json.UnmarshalCaseSensitivePreserveInts(raw, &values) != nil {
			return invalid(raw, t, path)
		}
		for i := range t.NumField() {
			name := jsonName(t.Field(i))
			if name == "" { // inlined: its fields are among the values
				if err := typeError(raw, t.Field(i).Type, path); err != nil {
					return err
				}
				continue
			}
			if value, given := values[name]; given {
				if err := typeError(value, t.Field(i).Type, path.Child(name)); err != nil {
					return err
				}
			}
		}
		return nil
	case t.Kind() == reflect.Slice:
		var values []stdjson.RawMessage
		if json.UnmarshalCaseSensitivePreserveInts(raw, &values) != nil {
			return invalid(raw, t, path)
		}
		for i, value := range values {
			if err := typeError(value, t.Elem(), path.Index(i)); err != nil {
				return err
			}
		}
		return nil
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		var values map[string]stdjson.RawMessage
		if json.UnmarshalCaseSensitivePreserveInts(raw, &values) != nil {
			return invalid(raw, t, path)
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if err := typeError(values[key], t.Elem(), path.Key(key)); err != nil {
				return err
			}
		}
		return nil
	}
	if json.UnmarshalCaseSensitivePreserveInts(raw, reflect.New(t).Interface()) != nil {
		return invalid(raw, t, path)
	}
	return nil
}

func invalid(raw []byte, t reflect.Type, path *field.Path) *field.Error {
	want := "must be an object"
	switch {
	case t == reflect.TypeFor[resource.Quantity]():
		want = "must be a quantity, for example 10Gi"
	case t == reflect.TypeFor[metav1.Duration]():
		want = "must be a duration in hours, minutes and seconds, for example 168h"
	case t.Kind() == reflect.Slice:
		want = "must be a list"
	case t.Kind() == reflect.String:
		want = "must be a string"
	case t.Kind() == reflect.Bool:
		want = "must be true or false"
	case t.Kind() == reflect.Int32:
		want = "must be a whole number, for example 80"
	}
	var scalar string
	if json.UnmarshalCaseSensitivePreserveInts(raw, &scalar) != nil {
		scalar = string(raw)
	}
	if mayHoldPassword(scalar) {
		return field.Invalid(path, field.OmitValueType{}, want)
	}
	return field.Invalid(path, shorten(scalar), want)
}

// mayHoldPassword is true for URLs with user information, where it stands before the @, and for objects such as one that
// is written in place of the name of a Secret.
func mayHoldPassword(value string) bool {
	return strings.Contains(value, "@") || strings.Contains(strings.ToLower(value), "password")
}

// isScalar tells whether t is a struct in Go and one value in JSON.
func isScalar(t reflect.Type) bool {
	return t == reflect.TypeFor[resource.Quantity]() || t == reflect.TypeFor[metav1.Duration]()
}

// fields lists the paths of the fields of t as they are written, a list as "caches[]".
func fields(t reflect.Type) []string {
	var paths []string
	for i := range t.NumField() {
		name, elem := jsonName(t.Field(i)), t.Field(i).Type
		if elem.Kind() == reflect.Slice {
			name, elem = name+"[]", elem.Elem()
		}
		if elem.Kind() == reflect.Pointer {
			elem = elem.Elem()
		}
		if elem.Kind() != reflect.Struct || isScalar(elem) {
			paths = append(paths, name)
			continue
		}
		for _, below := range fields(elem) {
			paths = append(paths, strings.TrimPrefix(name+"."+below, "."))
		}
	}
	return paths
}

// jsonName is the name of a field in JSON, "" for an inlined struct.
func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func shorten(s string) string {
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}
