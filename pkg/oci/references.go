// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/opencontainers/go-digest"
)

// MaxReferences is the largest number of descriptors that References returns. A manifest of MaxManifestSize has no room
// for more, because the smallest descriptor with the three properties that the OCI image specification requires has
// about 140 bytes: {"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:<64 digits>","size":2}.
const MaxReferences = MaxManifestSize / 140

// ErrManifestInvalid is wrapped by the errors of References about a manifest of a known type.
var ErrManifestInvalid = errors.New("invalid manifest")

// Role is the purpose of a descriptor in a manifest.
type Role string

// Roles.
const (
	RoleConfig   Role = "config"
	RoleLayer    Role = "layer"
	RoleManifest Role = "manifest"
)

// Descriptor is a reference from a manifest or an index to other content.
type Descriptor struct {
	Role      Role
	MediaType string
	Digest    digest.Digest
	// Size is in bytes. It is the claim of the manifest.
	Size int64
	// Platform is "os/architecture" or "os/architecture/variant". It is empty if the manifest does not define one.
	Platform string
}

// References returns the descriptors of all content that belongs to a manifest of a known type, in the order of the
// document: the config and the layers of an image, or the manifests of an index. Other references, such as the subject,
// are excluded. A field that occurs twice contributes all of its descriptors. Content with a digest of another algorithm
// than sha256 is excluded, because it cannot be stored: clients pull it from the upstream.
//
// The first error is the last element. It wraps ErrManifestUnknownType or ErrManifestInvalid; reasons for the latter are
// more than MaxManifestSize bytes, more than MaxReferences descriptors, an image without a config, an invalid
// digest and a negative size. One descriptor is decoded at a time, so the memory for a call does not depend
// on their number.
func References(content []byte) iter.Seq2[Descriptor, error] {
	return func(yield func(Descriptor, error) bool) {
		p := &referenceParser{yield: yield}
		if err := p.parse(content); err != nil && !p.stopped {
			yield(Descriptor{}, err)
		}
	}
}

// referenceParser passes the descriptors of one manifest to yield.
type referenceParser struct {
	yield   func(Descriptor, error) bool
	stopped bool // yield has returned false
	err     error
	count   int // of all descriptors
	configs int
}

func (p *referenceParser) parse(content []byte) error {
	if len(content) > MaxManifestSize {
		return fmt.Errorf("%w: it must have no more than %d bytes, but has %d", ErrManifestInvalid, MaxManifestSize, len(content))
	}
	mediaType, err := ManifestMediaType(content)
	if err != nil {
		return err
	}
	if mediaType == MediaTypeIndex || mediaType == MediaTypeDockerList {
		err = json.Unmarshal(content, &struct {
			Manifests descriptorList `json:"manifests"`
		}{descriptorList{p, RoleManifest}})
	} else {
		err = json.Unmarshal(content, &struct {
			Config singleDescriptor `json:"config"`
			Layers descriptorList   `json:"layers"`
		}{singleDescriptor{p, RoleConfig}, descriptorList{p, RoleLayer}})
		if err == nil && p.configs == 0 {
			err = errors.New("it has no config")
		}
	}
	if p.err != nil {
		err = p.err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrManifestInvalid, err)
	}
	return nil
}

// ended reports whether the remaining descriptors must be skipped. The decoder itself continues after an error.
func (p *referenceParser) ended() bool { return p.stopped || p.err != nil }

// add passes one descriptor to yield. index is its position in the field.
func (p *referenceParser) add(role Role, index int, fields descriptorFields) {
	if p.count == MaxReferences {
		p.err = fmt.Errorf("it must have no more than %d descriptors", MaxReferences)
		return
	}
	p.count++
	if role == RoleConfig {
		p.configs++
	}
	d, err := fields.descriptor(role)
	switch {
	case isOtherAlgorithm(err):
		return
	case err != nil:
		p.err = fmt.Errorf("%s %d: %w", role, index, err)
		return
	}
	p.stopped = !p.yield(d, nil)
}

// singleDescriptor decodes a field with one descriptor.
type singleDescriptor struct {
	parser *referenceParser
	role   Role
}

// UnmarshalJSON implements json.Unmarshaler. Errors are in the parser.
func (s *singleDescriptor) UnmarshalJSON(data []byte) error {
	if s.parser.ended() || isNull(data) {
		return nil
	}
	var fields descriptorFields
	if err := json.Unmarshal(data, &fields); err != nil {
		s.parser.err = err
		return nil //nolint:nilerr // see the comment of the method
	}
	s.parser.add(s.role, 0, fields)
	return nil
}

// descriptorList decodes a field with a list of descriptors, one descriptor at a time.
type descriptorList struct {
	parser *referenceParser
	role   Role
}

// UnmarshalJSON implements json.Unmarshaler. Errors are in the parser.
func (l *descriptorList) UnmarshalJSON(data []byte) error {
	if l.parser.ended() || isNull(data) {
		return nil
	}
	elements, err := openList(bytes.NewReader(data))
	if err != nil {
		l.parser.err = fmt.Errorf("%ss: %w", l.role, err)
		return nil
	}
	for index := 0; elements.More() && !l.parser.ended(); index++ {
		var fields descriptorFields
		if err := elements.Decode(&fields); err != nil {
			l.parser.err = err
			return nil //nolint:nilerr // see the comment of the method
		}
		l.parser.add(l.role, index, fields)
	}
	return nil
}

// descriptorFields are the JSON fields of a descriptor. None of them is a list, so the memory of a descriptor is
// proportional to its size.
type descriptorFields struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Platform  struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

func (f descriptorFields) descriptor(role Role) (Descriptor, error) {
	d, err := ParseDigest(f.Digest)
	if err != nil {
		return Descriptor{}, err
	}
	if f.Size < 0 {
		return Descriptor{}, fmt.Errorf("size %d must not be negative", f.Size)
	}
	return Descriptor{Role: role, MediaType: f.MediaType, Digest: d, Size: f.Size, Platform: f.platform()}, nil
}

func (f descriptorFields) platform() string {
	p := f.Platform
	switch {
	case p.OS == "" && p.Architecture == "":
		return ""
	case p.Variant == "":
		return p.OS + "/" + p.Architecture
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}
