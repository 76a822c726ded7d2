// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/registry-cache/extension/hack/ociimage"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/nodeimage"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	repository     = "localhost/registry-cache-testbed/volumes"
	driverPackage  = "./test/testbed/cmd/volumes"
	resizerPackage = "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"
	// xfsPackage has mkfs.xfs and xfs_growfs. They come with the image, because a published node image lacks them.
	xfsPackage = "xfsprogs"

	// imageRecipe changes the tag of the image. Raise it with every change of how config is made of its parts.
	imageRecipe = "1"
)

// parts are the files on this machine that the image is made of.
type parts struct{ driver, resizer, xfs string }

// buildImage builds the image of the driver and the external-resizer, and returns its reference and the docker archive
// it is in. The reference depends on the content, so an image that the nodes have never changes under its name.
func buildImage(ctx context.Context) (reference, archive string, err error) {
	root, err := workspace.Root()
	if err != nil {
		return "", "", err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return "", "", err
	}
	dir := filepath.Join(cache, "volumes")
	p := parts{driver: filepath.Join(dir, "volumes"), resizer: filepath.Join(dir, "csi-resizer"), xfs: filepath.Join(dir, "xfsprogs.tar")}
	if err := p.build(ctx, root); err != nil {
		return "", "", err
	}
	tag, err := p.hash()
	if err != nil {
		return "", "", err
	}
	reference, archive = repository+":"+tag, filepath.Join(dir, "image-"+tag+".tar")
	if _, err := os.Stat(archive); !errors.Is(err, os.ErrNotExist) {
		return reference, archive, err
	}
	if err := removeArchives(dir); err != nil {
		return "", "", err
	}
	image, err := ociimage.Build(p.config())
	if err != nil {
		return "", "", err
	}
	return reference, archive, ociimage.WriteArchive(archive, map[string]v1.Image{reference: image})
}

// build makes the parts, or finds them up to date.
func (p parts) build(ctx context.Context, root string) error {
	if err := os.MkdirAll(filepath.Dir(p.xfs), 0o755); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	// Mostly a download, so it does not take the cores from the compiler.
	group.Go(func() error { return nodeimage.ExtractPackages(ctx, p.xfs, xfsPackage) })
	group.Go(func() error {
		if err := gobuild.Build(ctx, gobuild.Options{Dir: root, Packages: []string{driverPackage}, Output: p.driver}); err != nil {
			return err
		}
		return gobuild.Build(ctx, gobuild.Options{
			Dir: filepath.Join(root, "hack", "kind", "resizer"), Packages: []string{resizerPackage}, Output: p.resizer,
		})
	})
	return group.Wait()
}

func (p parts) config() ociimage.Config {
	return ociimage.Config{
		LayerTars: []string{p.xfs},
		Files: []ociimage.File{
			{Path: "/usr/local/bin/volumes", Mode: 0o755, Source: p.driver},
			{Path: "/usr/local/bin/csi-resizer", Mode: 0o755, Source: p.resizer},
		},
		Entrypoint: []string{"volumes"},
	}
}

// hash returns a tag for the image, 16 hexadecimal digits of the sha256 of its parts.
func (p parts) hash() (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, imageRecipe)
	for _, path := range []string{p.driver, p.resizer, p.xfs} {
		if err := hashFile(h, path); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func hashFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintln(w, info.Size())
	_, err = io.Copy(w, f)
	return err
}

// removeArchives removes the archives of earlier images, which the nodes have and nobody needs here any more.
func removeArchives(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "image-*"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}
