// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifestSize is the largest manifest that is read, in bytes: the limit that the distribution specification
// tells registries to support at least, and that clients enforce.
const MaxManifestSize = 4 << 20

// Media types of manifests.
const (
	MediaTypeManifest       = specs.MediaTypeImageManifest
	MediaTypeIndex          = specs.MediaTypeImageIndex
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// ErrManifestUnknownType is wrapped by the errors of ManifestMediaType.
var ErrManifestUnknownType = errors.New("not a manifest of a known type")

// ManifestMediaTypes returns the media types of manifests that are known, the ones to ask for first.
func ManifestMediaTypes() []string {
	return []string{MediaTypeIndex, MediaTypeManifest, MediaTypeDockerList, MediaTypeDockerManifest}
}

// ManifestMediaType returns the media type that a manifest has by its content: its field mediaType, or what its other
// fields tell where that one is missing, as the OCI image specification allows. It returns an error that wraps
// ErrManifestUnknownType for anything else, manifests of schema version 1 among it.
func ManifestMediaType(content []byte) (string, error) {
	var fields struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(content, &fields); err != nil {
		return "", fmt.Errorf("%w: %w", ErrManifestUnknownType, err)
	}
	switch {
	case fields.SchemaVersion != 2:
		return "", fmt.Errorf("%w: schema version %d", ErrManifestUnknownType, fields.SchemaVersion)
	case fields.MediaType != "":
		for _, known := range ManifestMediaTypes() {
			if fields.MediaType == known {
				return known, nil
			}
		}
		return "", fmt.Errorf("%w: media type %q", ErrManifestUnknownType, fields.MediaType)
	case fields.Manifests != nil && fields.Config == nil:
		return MediaTypeIndex, nil
	case fields.Config != nil && fields.Manifests == nil:
		return MediaTypeManifest, nil
	}
	return "", fmt.Errorf("%w: exactly one of config and manifests must be there", ErrManifestUnknownType)
}

// ErrManifestInvalid is wrapped by the errors of References about a manifest of a known type.
var ErrManifestInvalid = errors.New("invalid manifest")

// Role is what a manifest needs a descriptor for.
type Role string

// Roles.
const (
	RoleConfig   Role = "config"
	RoleLayer    Role = "layer"
	RoleManifest Role = "manifest"
)

// Descriptor is a reference to content, as it stands in a manifest or an index.
type Descriptor struct {
	Role      Role
	MediaType string
	Digest    digest.Digest
	// Size is in bytes, as the manifest claims.
	Size int64
	// Platform is "os/architecture" or "os/architecture/variant", "" where the manifest does not tell.
	Platform string
}

// References returns what a manifest of a known type needs to be complete, in the order of the document: the config and
// the layers of an image, or the manifests of an index. What it refers to otherwise, such as its subject, is not among
// it. Errors wrap ErrManifestUnknownType or ErrManifestInvalid; the latter says that there are more than MaxManifestSize
// bytes, or a descriptor without a digest that ParseDigest accepts or with a negative size.
func References(content []byte) (mediaType string, references []Descriptor, err error) {
	if len(content) > MaxManifestSize {
		return "", nil, fmt.Errorf("%w: %d bytes, %d are allowed", ErrManifestInvalid, len(content), MaxManifestSize)
	}
	if mediaType, err = ManifestMediaType(content); err != nil {
		return "", nil, err
	}
	type descriptor struct {
		MediaType string          `json:"mediaType"`
		Digest    string          `json:"digest"`
		Size      int64           `json:"size"`
		Platform  *specs.Platform `json:"platform"`
	}
	var fields struct {
		Config    *descriptor  `json:"config"`
		Layers    []descriptor `json:"layers"`
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(content, &fields); err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrManifestInvalid, err)
	}
	add := func(role Role, descriptors ...descriptor) {
		for i, d := range descriptors {
			parsed, parseErr := ParseDigest(d.Digest)
			switch {
			case err != nil:
				return
			case parseErr != nil:
				err = fmt.Errorf("%w: %s %d: %w", ErrManifestInvalid, role, i, parseErr)
			case d.Size < 0:
				err = fmt.Errorf("%w: %s %d: size %d", ErrManifestInvalid, role, i, d.Size)
			}
			references = append(references, Descriptor{Role: role, MediaType: d.MediaType, Digest: parsed, Size: d.Size, Platform: platform(d.Platform)})
		}
	}
	if mediaType == MediaTypeIndex || mediaType == MediaTypeDockerList {
		add(RoleManifest, fields.Manifests...)
	} else {
		if fields.Config == nil {
			return "", nil, fmt.Errorf("%w: it has no config", ErrManifestInvalid)
		}
		add(RoleConfig, *fields.Config)
		add(RoleLayer, fields.Layers...)
	}
	if err != nil {
		return "", nil, err
	}
	return mediaType, references, nil
}

func platform(p *specs.Platform) string {
	if p == nil || p.OS == "" && p.Architecture == "" {
		return ""
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
