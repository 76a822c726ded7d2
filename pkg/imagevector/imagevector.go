// Package imagevector knows the images that the extension deploys into Shoots.
package imagevector

import (
	_ "embed"
	"fmt"

	"github.com/gardener/gardener/pkg/utils/imagevector"
)

//go:embed images.yaml
var images []byte

// CacheServer returns the reference of the cache server's image. The operator's image vector, the file named by the
// environment variable IMAGEVECTOR_OVERWRITE, may name another repository, with or without a tag, or a whole reference; a
// tag that nobody gives is version, because server and extension are released together.
func CacheServer(version string) (string, error) {
	vector, err := imagevector.Read(images)
	if err != nil {
		return "", fmt.Errorf("reading the built-in image vector: %w", err)
	}
	vector, err = imagevector.WithEnvOverride(vector, imagevector.OverrideEnv)
	if err != nil {
		return "", fmt.Errorf("reading the image vector of %s: %w", imagevector.OverrideEnv, err)
	}
	image, err := vector.FindImage("registry-cache")
	if err != nil {
		return "", fmt.Errorf("looking up the image registry-cache: %w", err)
	}
	image.WithOptionalTag(version)
	return image.String(), nil
}
