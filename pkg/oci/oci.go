// SPDX-License-Identifier: Apache-2.0

// Package oci contains the parts of the OCI distribution specification 1.1 that clients and registries share: the grammar
// of repository names, references and digests, parsers of manifests and lists of tags, and error bodies.
package oci

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxRepositoryLength is the limit of distribution's reference grammar, in characters. The specification defines no limit.
// It recommends fewer than 255 characters for host name, port and repository together.
const maxRepositoryLength = 255

// The expressions are those of the distribution specification, section "Pulling manifests".
var (
	repositoryGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// Errors of input that violates the grammar. Functions return errors that wrap them and contain the input.
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

// ParseDigest returns s as a digest. It accepts only "sha256:" with 64 lower-case hexadecimal digits, because the layout
// of the store supports no other algorithm. Errors wrap ErrDigestInvalid.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("%w %s: %w", ErrDigestInvalid, quote(s), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("%w %s: %w", ErrDigestInvalid, quote(s), errNotSHA256)
	}
	return d, nil
}

var errNotSHA256 = errors.New("only sha256 is supported")

// isOtherAlgorithm reports that an error of ParseDigest is about a digest of another algorithm.
func isOtherAlgorithm(err error) bool {
	return errors.Is(err, errNotSHA256) || errors.Is(err, digest.ErrDigestUnsupported)
}

// Reference identifies a manifest in a repository: by Digest, or by Tag if Digest is empty.
type Reference struct {
	Tag    string
	Digest digest.Digest
}

// ParseReference parses the last path element of a manifest's URL. An element with a colon is a digest, because tags
// cannot contain colons. Errors wrap ErrDigestInvalid or ErrTagInvalid.
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

// String returns the last path element of the manifest's URL.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// In returns the repository with the reference: "repository:tag" or "repository@sha256:<hex>".
func (r Reference) In(repository string) string {
	if r.Digest != "" {
		return repository + "@" + r.Digest.String()
	}
	return repository + ":" + r.Tag
}
