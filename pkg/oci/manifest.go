// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"encoding/json"
	"errors"
	"fmt"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifestSize is the size limit of manifests, in bytes. The distribution specification requires registries to
// accept manifests of at least this size, and clients reject larger ones.
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

// ManifestMediaTypes returns the known media types of manifests in the order of preference of a client.
func ManifestMediaTypes() []string {
	return []string{MediaTypeIndex, MediaTypeManifest, MediaTypeDockerList, MediaTypeDockerManifest}
}

// ManifestMediaType returns the media type of a manifest: the value of its field mediaType. The OCI image specification
// allows manifests without this field; their type depends on the fields config and manifests, of which exactly one must
// exist. Errors wrap ErrManifestUnknownType; manifests of schema version 1 cause one. The memory for a call does not
// depend on the number of elements of the manifest.
func ManifestMediaType(content []byte) (string, error) {
	var fields struct {
		SchemaVersion int       `json:"schemaVersion"`
		MediaType     string    `json:"mediaType"`
		Config        existence `json:"config"`
		Manifests     existence `json:"manifests"`
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
		return "", fmt.Errorf("%w: media type %s", ErrManifestUnknownType, quote(fields.MediaType))
	case bool(fields.Manifests && !fields.Config):
		return MediaTypeIndex, nil
	case bool(fields.Config && !fields.Manifests):
		return MediaTypeManifest, nil
	}
	return "", fmt.Errorf("%w: exactly one of the fields config and manifests must exist", ErrManifestUnknownType)
}

// existence is true after the decoder has found the field. The value of the field is skipped without a copy.
type existence bool

// UnmarshalJSON implements json.Unmarshaler.
func (e *existence) UnmarshalJSON([]byte) error {
	*e = true
	return nil
}

// maxQuoted limits the input that an error repeats, in bytes. It exceeds the length of valid digests and media types.
const maxQuoted = 200

// quote returns s in quotation marks for an error. It shortens long values, because input can have several MiB.
func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q... (%d bytes)", s[:maxQuoted], len(s))
	}
	return fmt.Sprintf("%q", s)
}
