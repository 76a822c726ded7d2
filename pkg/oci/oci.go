// SPDX-License-Identifier: Apache-2.0

// Package oci holds the grammar of the OCI distribution specification 1.1 that clients and registries share:
// repository names, references, digests, media types of manifests and error bodies.
package oci

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxRepositoryLength is the limit of distribution's reference grammar. The specification leaves the limit to the
// registry and asks for "fewer than 255" characters of host name, port and repository together.
const maxRepositoryLength = 255

// The expressions are those of the distribution specification, section "Pulling manifests".
var (
	repositoryGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// Errors of input that breaks the grammar. They are wrapped by errors that name the input.
var (
	ErrRepositoryInvalid = errors.New("invalid repository name")
	ErrTagInvalid        = errors.New("invalid tag")
	ErrDigestInvalid     = errors.New("invalid digest")
)

// ValidateRepository returns an error that wraps ErrRepositoryInvalid unless name is a repository name such as
// "library/alpine". A valid name is a relative path without "." and ".." and without a component that starts with an
// underscore, so it can be used as a folder.
func ValidateRepository(name string) error {
	if len(name) > maxRepositoryLength {
		return fmt.Errorf("%w: %d characters, %d are allowed", ErrRepositoryInvalid, len(name), maxRepositoryLength)
	}
	if !repositoryGrammar.MatchString(name) {
		return fmt.Errorf("%w %q: use lower-case letters, digits and separators, such as library/alpine", ErrRepositoryInvalid, name)
	}
	return nil
}

// ParseDigest returns s as a digest. Only sha256 is accepted ("sha256:" and 64 lower-case hexadecimal digits), which
// is what the layout of the store can hold. Errors wrap ErrDigestInvalid.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("%w %q: %w", ErrDigestInvalid, s, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("%w %q: only sha256 is supported", ErrDigestInvalid, s)
	}
	return d, nil
}

// Reference names a manifest in a repository: by Digest, or by Tag where Digest is empty.
type Reference struct {
	Tag    string
	Digest digest.Digest
}

// ParseReference reads the last path element of a manifest's URL. What contains a colon is a digest, because a tag
// cannot contain one. Errors wrap ErrDigestInvalid or ErrTagInvalid.
func ParseReference(s string) (Reference, error) {
	if strings.Contains(s, ":") {
		d, err := ParseDigest(s)
		return Reference{Digest: d}, err
	}
	if !tagGrammar.MatchString(s) {
		return Reference{}, fmt.Errorf("%w %q: use up to 128 letters, digits, '_', '.' and '-'", ErrTagInvalid, s)
	}
	return Reference{Tag: s}, nil
}

// String returns the reference as it stands in a URL.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// In returns the reference behind its repository: "repository:tag" or "repository@sha256:<hex>".
func (r Reference) In(repository string) string {
	if r.Digest != "" {
		return repository + "@" + r.Digest.String()
	}
	return repository + ":" + r.Tag
}
