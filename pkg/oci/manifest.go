package oci

import (
	"encoding/json"
	"errors"
	"fmt"

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
