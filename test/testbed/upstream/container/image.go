// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/hack/ociimage"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	repository  = "localhost/registry-cache-testbed/upstream"
	programPath = "/upstream"
	samplePath  = "/sample"
)

// ensureImage builds the registry's image, loads it into the engine unless it is there, and returns its reference. The
// tag is made from the content.
func ensureImage(ctx context.Context, e *host.Engine) (reference string, err error) {
	root, err := workspace.Root()
	if err != nil {
		return "", err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "upstream")
	if err := gobuild.Build(ctx, gobuild.Options{
		Dir:      root,
		Packages: []string{"./test/testbed/cmd/upstream", "./test/testbed/images/sample"},
		Output:   dir + "/",
	}); err != nil {
		return "", err
	}
	image, err := ociimage.Build(ociimage.Config{
		Files: []ociimage.File{
			{Path: programPath, Mode: 0o755, Source: filepath.Join(dir, "upstream")},
			{Path: samplePath, Mode: 0o755, Source: filepath.Join(dir, "sample")},
		},
		Entrypoint: []string{programPath},
		Labels:     map[string]string{ownLabel: "image"},
	})
	if err != nil {
		return "", fmt.Errorf("building the upstream's image: %w", err)
	}
	id, err := image.ConfigName()
	if err != nil {
		return "", fmt.Errorf("building the upstream's image: %w", err)
	}
	reference = repository + ":" + id.Hex[:16]
	if _, err := e.Run(ctx, nil, "image", "inspect", reference); err == nil {
		return reference, nil
	} else if _, ran := errors.AsType[*exec.ExitError](err); !ran {
		return "", err
	}
	if err := load(ctx, e, filepath.Join(dir, "image.tar"), reference, image); err != nil {
		return "", err
	}
	return reference, nil
}

func load(ctx context.Context, e *host.Engine, archive, reference string, image v1.Image) (err error) {
	if err := ociimage.WriteArchive(archive, map[string]v1.Image{reference: image}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(archive)) }()
	if _, err := e.Run(ctx, nil, "load", "--input", archive); err != nil {
		return fmt.Errorf("loading image %s: %w", reference, err)
	}
	return nil
}

// removeImages removes the registry's images from the engine, but not keep.
func removeImages(ctx context.Context, e *host.Engine, keep string) error {
	out, err := e.Run(ctx, nil, "images", "--filter", "reference="+repository, "--format", "{{.Repository}}:{{.Tag}}")
	if err != nil {
		return fmt.Errorf("listing the upstream's images: %w", err)
	}
	for _, reference := range strings.Fields(string(out)) {
		if reference == keep {
			continue
		}
		if _, err := e.Run(ctx, nil, "rmi", reference); err != nil {
			return fmt.Errorf("removing image %s: %w", reference, err)
		}
	}
	return nil
}
