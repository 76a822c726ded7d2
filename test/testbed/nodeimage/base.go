// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Inputs in the checkout.
const (
	overlayDir = "hack/kind/overlay"
	baseScript = "hack/kind/setup/base.sh"
	loadScript = "hack/kind/setup/load-images.sh"
	nodeScript = "hack/kind/setup/node.sh"
)

// builder makes images of the checkout's inputs.
type builder struct {
	engine   *host.Engine
	progress *workspace.Progress
	// root is the checkout, cache is workspace.CacheDir.
	root, cache string
	// goCommand runs the go command in a folder.
	goCommand func(ctx context.Context, dir string, args ...string) (string, error)
	// findOnly makes a missing program an error.
	findOnly bool
}

func newBuilder(e *host.Engine, p *workspace.Progress) (*builder, error) {
	root, err := workspace.Root()
	if err != nil {
		return nil, err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return nil, err
	}
	return &builder{engine: e, progress: p, root: root, cache: cache, goCommand: runGo}, nil
}

// buildBase makes an image that is to the cluster what a kindest/node is.
func (b *builder) buildBase(ctx context.Context, ref string) (err error) {
	programs, err := b.buildPrograms(ctx)
	if err != nil {
		return err
	}
	rootFS, err := b.rootFS(ctx)
	if err != nil {
		return err
	}
	files, err := b.baseFiles(ctx, programs)
	if err != nil {
		return err
	}
	// The lock is held, so what is there is of an interrupted run.
	scratch := filepath.Join(b.cache, "node-image.scratch")
	if err := errors.Join(os.RemoveAll(scratch), os.Mkdir(scratch, 0o755)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	archive := filepath.Join(scratch, "images.tar")
	err = b.progress.Step("making the container images of the control plane", func() error {
		return b.imageArchive(ctx, programs, archive)
	})
	if err != nil {
		return err
	}
	return b.progress.Step("assembling the node image from source", func() error {
		return b.assembleBase(ctx, ref, rootFS, files, archive)
	})
}

func (b *builder) assembleBase(ctx context.Context, ref, rootFS string, files []file, archive string) (err error) {
	debian := repository + "node-debian:build"
	if err := b.removeImage(ctx, debian); err != nil {
		return fmt.Errorf("removing the image of an interrupted run: %w", err)
	}
	err = withFile(rootFS, func(f io.Reader) error {
		_, err := b.engine.Run(ctx, f, "import", "-", debian)
		return err
	})
	if err != nil {
		return fmt.Errorf("importing the root file system: %w", err)
	}
	// Its layer stays with the image that is made of it.
	defer func() { err = errors.Join(err, b.removeImage(context.WithoutCancel(ctx), debian)) }()
	return b.derive(ctx, debian, ref, nil, func(c container) error {
		if err := c.copy(ctx, files); err != nil {
			return fmt.Errorf("copying the programs and kind's files: %w", err)
		}
		if err := c.script(ctx, filepath.Join(b.root, baseScript), nil); err != nil {
			return err
		}
		return withFile(archive, func(f io.Reader) error { return c.script(ctx, filepath.Join(b.root, loadScript), f) })
	})
}

// removeImage removes an image, if the engine has it, and its layers, unless another image needs them.
func (b *builder) removeImage(ctx context.Context, ref string) error {
	if _, found := b.imageID(ctx, ref); !found {
		return nil
	}
	_, err := b.engine.Run(ctx, nil, "rmi", ref)
	return err
}

// baseFiles are the files of kind's base image, the programs of a node, and Kubernetes' version where kind looks for it.
func (b *builder) baseFiles(ctx context.Context, programs map[string]string) ([]file, error) {
	kind, err := b.goCommand(ctx, b.root, "list", "-m", "-f", "{{.Dir}}", kindModule)
	if err != nil {
		return nil, err
	}
	if kind == "" {
		return nil, fmt.Errorf("the module %s is not in the module cache: run go mod download", kindModule)
	}
	files, err := folder(filepath.Join(kind, "images", "base", "files"), "/", kindMode)
	if err != nil {
		return nil, fmt.Errorf("reading the files of kind's base image: %w", err)
	}
	for _, at := range []struct {
		dir   string
		names []string
	}{
		{"/usr/bin", []string{"kubeadm", "kubelet", "kubectl"}},
		{"/usr/local/bin", []string{"containerd", "containerd-shim-runc-v2", "ctr"}},
	} {
		for _, name := range at.names {
			files = append(files, file{path: at.dir + "/" + name, mode: 0o755, source: programs[name]})
		}
	}
	version, err := b.kubernetesVersion(ctx)
	if err != nil {
		return nil, err
	}
	return append(files, file{path: "/kind/version", mode: 0o644, content: []byte(version)}), nil
}

// kindMode gives the files of kind's base image the modes that its Dockerfile gives them. The module cache has none of
// them executable.
func kindMode(imagePath string, _ fs.FileInfo) fs.FileMode {
	if strings.HasPrefix(imagePath, "/usr/local/bin/") || strings.HasPrefix(imagePath, "/kind/bin/") {
		return 0o755
	}
	return 0o644
}

func (b *builder) kubernetesVersion(ctx context.Context) (string, error) {
	return b.goCommand(ctx, filepath.Join(b.root, "hack/kind/kubernetes"), "list", "-m", "-f", "{{.Version}}", kubernetesModule)
}

// addOverlay makes the image ref of base and the testbed's files.
func (b *builder) addOverlay(ctx context.Context, base, ref, overlay string) error {
	return b.progress.Step("adding the testbed's files to "+base, func() error {
		files, err := folder(filepath.Join(b.root, overlayDir), "/", executableBit)
		if err != nil {
			return err
		}
		return b.derive(ctx, base, ref, map[string]string{label: overlay}, func(c container) error {
			before, err := c.run(ctx, nil, "cat", containerdConfigPath)
			if err != nil {
				return err
			}
			config, err := containerdConfig(before)
			if err != nil {
				return err
			}
			files := append(files, file{path: containerdConfigPath, mode: 0o644, content: config})
			if err := c.copy(ctx, files); err != nil {
				return fmt.Errorf("copying the testbed's files: %w", err)
			}
			return c.script(ctx, filepath.Join(b.root, nodeScript), nil)
		})
	})
}

func withFile(name string, use func(io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return use(f)
}
