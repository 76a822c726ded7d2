// SPDX-License-Identifier: Apache-2.0

// Package scenario describes pulls from registries that deviate from the usual behaviour. A scenario is a list of
// quirks. Its text form is one line, for example
//
//	layers:2 bearer token-uses:3 cut@blob:500
//
// which the tests print for a failure and which can be copied into a table of regressions.
package scenario

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Target is the kind of request to which a quirk applies.
type Target string

// The targets.
const (
	// Head is a HEAD request for a manifest.
	Head Target = "head"
	// Manifest is a GET request for a manifest.
	Manifest Target = "manifest"
	// BlobHead is a HEAD request for a blob.
	BlobHead Target = "blob-head"
	// Blob is a GET request for a blob.
	Blob Target = "blob"
	// Token is a request for a token.
	Token Target = "token"
)

// Quirk is one deviation. Its text form is "name[@target][:number]".
type Quirk struct {
	// Name is the name of a Kind.
	Name string
	// Target is empty if the kind has no targets.
	Target Target
	// Number is 0 if the kind has no numbers. The kind defines its unit.
	Number int
}

// Any is the number of a quirk in a pattern for Contains. Its text form is "*".
const Any = -1

// String returns the text form.
func (q Quirk) String() string {
	s := q.Name
	if q.Target != "" {
		s += "@" + string(q.Target)
	}
	switch {
	case len(kinds[q.Name].Numbers) == 0:
	case q.Number == Any:
		s += ":*"
	default:
		s += ":" + strconv.Itoa(q.Number)
	}
	return s
}

// ParseQuirk parses the text form. The number may be any non-negative number, not only one of Kind.Numbers.
func ParseQuirk(s string) (Quirk, error) {
	name, number, hasNumber := strings.Cut(s, ":")
	name, target, _ := strings.Cut(name, "@")
	q := Quirk{Name: name, Target: Target(target)}
	kind, ok := kinds[name]
	switch {
	case !ok:
		return Quirk{}, fmt.Errorf("quirk %q: unknown name", s)
	case (target != "") != (len(kind.Targets) > 0) || target != "" && !slices.Contains(kind.Targets, q.Target):
		return Quirk{}, fmt.Errorf("quirk %q: target must be one of %q", s, kind.Targets)
	case hasNumber != (len(kind.Numbers) > 0):
		return Quirk{}, fmt.Errorf("quirk %q: must have a number exactly if its kind has numbers", s)
	}
	if number == "*" {
		q.Number = Any
	} else if hasNumber {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 {
			return Quirk{}, fmt.Errorf("quirk %q: number must be a non-negative integer", s)
		}
		q.Number = n
	}
	return q, nil
}

// Scenario is a set of quirks, in the order of kinds in this package. The zero value is a registry without quirks that
// contains one image with one small layer. Scenarios are immutable.
type Scenario []Quirk

// Parse parses quirks that are separated by spaces. The result is valid.
func Parse(s string) (Scenario, error) {
	var quirks []Quirk
	for field := range strings.FieldsSeq(s) {
		q, err := ParseQuirk(field)
		if err != nil {
			return nil, err
		}
		quirks = append(quirks, q)
	}
	result, err := New(quirks...)
	if err != nil {
		return nil, fmt.Errorf("scenario %q: %w", s, err)
	}
	return result, nil
}

// New returns the scenario of these quirks, or an error if they contradict each other or lack a required quirk.
func New(quirks ...Quirk) (Scenario, error) {
	s := slices.Clone(quirks)
	slices.SortStableFunc(s, func(a, b Quirk) int {
		if a.Name != b.Name {
			return kinds[a.Name].order - kinds[b.Name].order
		}
		return strings.Compare(string(a.Target), string(b.Target))
	})
	for i, q := range s {
		kind := kinds[q.Name]
		for _, other := range s[:i] {
			if q.Target == other.Target && (q.Name == other.Name || kind.Group != "" && kind.Group == kinds[other.Name].Group) {
				return nil, fmt.Errorf("%s excludes %s", other, q)
			}
		}
		if !Scenario(s).satisfies(kind) {
			return nil, fmt.Errorf("%s requires one of %q", q, kind.Requires)
		}
	}
	return s, nil
}

// satisfies reports whether s contains a quirk that the kind requires.
func (s Scenario) satisfies(k Kind) bool {
	return len(k.Requires) == 0 || slices.ContainsFunc(s, func(q Quirk) bool { return slices.Contains(k.Requires, q.Name) })
}

// String returns the text form; "none" if there are no quirks.
func (s Scenario) String() string {
	if len(s) == 0 {
		return "none"
	}
	fields := make([]string, len(s))
	for i, q := range s {
		fields[i] = q.String()
	}
	return strings.Join(fields, " ")
}

// Has reports whether s contains a quirk of that name, for any target.
func (s Scenario) Has(name string) bool {
	_, ok := s.find(name, func(Quirk) bool { return true })
	return ok
}

// HasAt reports whether s contains a quirk of that name for the target.
func (s Scenario) HasAt(name string, t Target) bool {
	_, ok := s.find(name, func(q Quirk) bool { return q.Target == t })
	return ok
}

// Number returns the number of the quirk of that name. ok is false if s has none.
func (s Scenario) Number(name string) (number int, ok bool) {
	q, ok := s.find(name, func(Quirk) bool { return true })
	return q.Number, ok
}

// NumberAt returns the number of the quirk of that name for the target. ok is false if s has none.
func (s Scenario) NumberAt(name string, t Target) (number int, ok bool) {
	q, ok := s.find(name, func(q Quirk) bool { return q.Target == t })
	return q.Number, ok
}

// find panics for an unknown name, which is a mistake in the caller's code.
func (s Scenario) find(name string, match func(Quirk) bool) (Quirk, bool) {
	if _, ok := kinds[name]; !ok {
		panic("unknown quirk " + name)
	}
	i := slices.IndexFunc(s, func(q Quirk) bool { return q.Name == name && match(q) })
	if i < 0 {
		return Quirk{}, false
	}
	return s[i], true
}

// Contains reports whether s contains all quirks of other. A number that is not Any must be equal if the kind is Exact,
// otherwise the number in s must be at least as severe: the same or a later element of Kind.Numbers.
func (s Scenario) Contains(other Scenario) bool {
	for _, want := range other {
		kind := kinds[want.Name]
		got, ok := s.find(want.Name, func(q Quirk) bool { return q.Target == want.Target })
		if ok && want.Number == Any {
			continue
		}
		if !ok || kind.Exact && got.Number != want.Number || kind.severity(got.Number) < kind.severity(want.Number) {
			return false
		}
	}
	return true
}

// Without returns s without the quirk and without the quirks that require it.
func (s Scenario) Without(removed Quirk) Scenario {
	result := slices.DeleteFunc(slices.Clone(s), func(q Quirk) bool { return q == removed })
	for {
		i := slices.IndexFunc(result, func(q Quirk) bool { return !result.satisfies(kinds[q.Name]) })
		if i < 0 {
			return result
		}
		result = slices.Delete(result, i, i+1)
	}
}
