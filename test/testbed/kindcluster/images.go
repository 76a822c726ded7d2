// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// LoadArchive imports the images of a docker archive into containerd (namespace k8s.io) of every node, at once. A node
// that has all of them, by the digest of their configuration, is skipped.
func (c *Cluster) LoadArchive(ctx context.Context, path string) error {
	wanted, err := archiveImages(path)
	if err != nil {
		return fmt.Errorf("reading image archive %s: %w", path, err)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	err = onEach(ctx, nodes, func(ctx context.Context, node Node) error {
		has, err := node.hasImages(ctx, wanted)
		if err != nil || has {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := node.Run(ctx, f, "ctr", "--namespace", "k8s.io", "images", "import", "--digests", "-"); err != nil {
			return err
		}
		if has, err = node.hasImages(ctx, wanted); err != nil || has {
			return err
		}
		return errors.New("the images are not there after the import")
	})
	if err != nil {
		return fmt.Errorf("loading image archive %s: %w", path, err)
	}
	return nil
}

// archiveImages returns the digest of the configuration of each image in a docker archive, by reference.
func archiveImages(path string) (map[string]v1.Hash, error) {
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(path) })
	if err != nil {
		return nil, err
	}
	images := map[string]v1.Hash{}
	for _, descriptor := range manifest {
		for _, repoTag := range descriptor.RepoTags {
			tag, err := name.NewTag(repoTag)
			if err != nil {
				return nil, err
			}
			img, err := tarball.ImageFromPath(path, &tag)
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", repoTag, err)
			}
			config, err := img.ConfigName()
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", repoTag, err)
			}
			images[familiar(tag)] = config
		}
	}
	if len(images) == 0 {
		return nil, errors.New("it names no image")
	}
	return images, nil
}

// familiar returns the reference as containerd spells it: with docker.io, not with go-containerregistry's
// index.docker.io.
func familiar(tag name.Tag) string {
	return strings.Replace(tag.Name(), "index.docker.io/", "docker.io/", 1)
}

// configScript prints the manifest of each image that containerd has, one after the other, behind its reference.
const configScript = `
for image; do
	digest=$(ctr --namespace k8s.io images list "name==$image" | awk 'NR == 2 {print $3}')
	[ -n "$digest" ] || continue
	printf '{"image":"%s","manifest":' "$image"
	ctr --namespace k8s.io content get "$digest"
	printf '}\n'
done
`

// hasImages tells whether containerd of the node has the images with these configurations.
func (n Node) hasImages(ctx context.Context, wanted map[string]v1.Hash) (bool, error) {
	references := make([]string, 0, len(wanted))
	for reference := range wanted {
		references = append(references, reference)
	}
	out, err := n.Script(ctx, nil, configScript, references...)
	if err != nil {
		return false, fmt.Errorf("asking which images it has: %w", err)
	}
	return haveImages(out, wanted)
}

func haveImages(printed []byte, wanted map[string]v1.Hash) (bool, error) {
	missing := maps.Clone(wanted)
	for decoder := json.NewDecoder(bytes.NewReader(printed)); ; {
		var has struct {
			Image string
			// Manifest is an index in an image that was pulled: it has no configuration, and the image is imported.
			Manifest struct {
				Config struct{ Digest string }
			}
		}
		if err := decoder.Decode(&has); errors.Is(err, io.EOF) {
			return len(missing) == 0, nil
		} else if err != nil {
			return false, fmt.Errorf("reading image manifests: %w", err)
		}
		if has.Manifest.Config.Digest == wanted[has.Image].String() {
			delete(missing, has.Image)
		}
	}
}
