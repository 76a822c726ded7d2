// SPDX-License-Identifier: Apache-2.0

// Package imagevector knows the images that the extension deploys into Shoots.
package imagevector

import (
	_ "embed"
	"fmt"

	"github.com/gardener/gardener/pkg/utils/imagevector"
)

//go:embed images.yaml
var images []byte

// Engine returns the reference of the image of an engine, which has the engine's name. The operator's image vector, the
// file named by the environment variable IMAGEVECTOR_OVERWRITE, may name another repository, with or without a tag, or a
// whole reference; a tag that nobody gives is version, because the images and the extension are released together.
func Engine(name, version string) (string, error) {
	vector, err := imagevector.Read(images)
	if err != nil {
		return "", fmt.Errorf("reading the built-in image vector: %w", err)
	}
	vector, err = imagevector.WithEnvOverride(vector, imagevector.OverrideEnv)
	if err != nil {
		return "", fmt.Errorf("reading the image vector of %s: %w", imagevector.OverrideEnv, err)
	}
	image, err := vector.FindImage(name)
	if err != nil {
		return "", fmt.Errorf("looking up the image %s: %w", name, err)
	}
	image.WithOptionalTag(version)
	return image.String(), nil
}
