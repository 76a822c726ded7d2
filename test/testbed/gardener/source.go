package gardener

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/registry-cache/extension/hack/ociimage"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	modulePath      = "github.com/gardener/gardener"
	resourceManager = "gardener-resource-manager"
	nodeAgent       = "gardener-node-agent"
	imageRepository = "localhost/registry-cache-testbed/" + resourceManager
)

// buildDir is the folder of the go.mod file that pins Gardener and its programs, relative to the checkout.
var buildDir = filepath.Join("hack", "kind", "gardener")

// source is Gardener's module.
type source struct {
	// Version is the module's version, "v1.2.3".
	Version string
	// Dir is where its files are, read-only.
	Dir string
}

// locate finds the version of Gardener that buildDir pins, and downloads it if it is not in the module cache.
func locate(ctx context.Context, root string) (source, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", modulePath)
	cmd.Dir = filepath.Join(root, buildDir)
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runErr := cmd.Run()

	// A module that cannot be downloaded is told in the output, not on stderr.
	var answer struct{ Version, Dir, Error string }
	if err := json.Unmarshal(stdout.Bytes(), &answer); err != nil {
		if runErr != nil {
			err = runErr
		}
		return source{}, fmt.Errorf("locating module %s in %s: %w\n%s", modulePath, cmd.Dir, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if answer.Error != "" || answer.Dir == "" {
		return source{}, fmt.Errorf("downloading module %s in %s: %s", modulePath, cmd.Dir, answer.Error)
	}
	return source{Version: answer.Version, Dir: answer.Dir}, nil
}

// programs are what build makes.
type programs struct {
	// version is Gardener's version, which is also in the programs.
	version string
	// nodeAgent is the path of the static program.
	nodeAgent string
	// image is the reference of gardener-resource-manager, and imageArchive the docker archive that holds it.
	image, imageArchive string
}

// build compiles the programs into a folder of cache named by everything that goes into them, or finds them there.
func build(ctx context.Context, progress *workspace.Progress, root, cache string, src source) (programs, error) {
	key, err := buildKey(filepath.Join(root, buildDir), src.Version)
	if err != nil {
		return programs{}, err
	}
	dir := filepath.Join(cache, "gardener", key)
	result := programs{
		version:      src.Version,
		nodeAgent:    filepath.Join(dir, nodeAgent),
		image:        imageRepository + ":" + key,
		imageArchive: filepath.Join(dir, resourceManager+".tar"),
	}
	if _, err := os.Stat(dir); err == nil {
		return result, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return programs{}, err
	}
	return result, progress.Step("Building gardener-resource-manager and gardener-node-agent "+src.Version+" (minutes, once)", func() error {
		return buildInto(ctx, root, dir, result.image, src.Version)
	})
}

// buildInto makes dir, complete or not at all.
func buildInto(ctx context.Context, root, dir, image, version string) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	partial, err := os.MkdirTemp(filepath.Dir(dir), "partial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(partial)) }()

	if err := gobuild.Build(ctx, gobuild.Options{
		Dir:      filepath.Join(root, buildDir),
		Packages: []string{modulePath + "/cmd/" + nodeAgent, modulePath + "/cmd/" + resourceManager},
		Output:   partial + "/",
		LDFlags:  versionFlag(version),
	}); err != nil {
		return err
	}
	img, err := ociimage.Build(ociimage.Config{
		Files:      []ociimage.File{{Path: "/" + resourceManager, Mode: 0o755, Source: filepath.Join(partial, resourceManager)}},
		Entrypoint: []string{"/" + resourceManager},
		User:       "65532:65532",
	})
	if err != nil {
		return err
	}
	if err := ociimage.WriteArchive(filepath.Join(partial, resourceManager+".tar"), map[string]v1.Image{image: img}); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(partial, resourceManager)); err != nil {
		return err
	}
	err = os.Rename(partial, dir)
	if errors.Is(err, fs.ErrExist) {
		return nil // another run was faster
	}
	return err
}

// versionFlag makes the programs know their version. The agent looks for a configuration file that has it in its name.
func versionFlag(version string) string {
	return "-X k8s.io/component-base/version.gitVersion=" + version
}

// buildKey is a digest of what decides the bytes of the programs, short enough for an image tag.
func buildKey(dir, version string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, version, runtime.Version(), runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n%s", name, len(content), content)
	}
	return version + "-" + hex.EncodeToString(hash.Sum(nil))[:12], nil
}
