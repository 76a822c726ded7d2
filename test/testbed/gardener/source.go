// SPDX-License-Identifier: Apache-2.0

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
	apiServer       = "gardener-apiserver"
	nodeAgent       = "gardener-node-agent"
	imagePrefix     = "localhost/registry-cache-testbed/"
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
	// resourceManager and apiServer run as pods.
	resourceManager, apiServer image
}

// image is the reference of an image, and the docker archive that holds it.
type image struct{ reference, archive string }

// build compiles the programs into a folder of cache named by everything that goes into them, or finds them there.
func build(ctx context.Context, progress *workspace.Progress, root, cache string, src source) (programs, error) {
	key, err := buildKey(filepath.Join(root, buildDir), src.Version)
	if err != nil {
		return programs{}, err
	}
	dir := filepath.Join(cache, "gardener", key)
	at := func(program string) image {
		return image{reference: imagePrefix + program + ":" + key, archive: filepath.Join(dir, program+".tar")}
	}
	result := programs{
		version:         src.Version,
		nodeAgent:       filepath.Join(dir, nodeAgent),
		resourceManager: at(resourceManager),
		apiServer:       at(apiServer),
	}
	if _, err := os.Stat(dir); err == nil {
		return result, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return programs{}, err
	}
	return result, progress.Step("Building gardener-apiserver, gardener-resource-manager and gardener-node-agent "+src.Version+" (minutes, once)", func() error {
		return buildInto(ctx, root, dir, key, src.Version)
	})
}

// buildInto makes dir, complete or not at all.
func buildInto(ctx context.Context, root, dir, tag, version string) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	partial, err := os.MkdirTemp(filepath.Dir(dir), "partial-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(partial)) }()

	var packages []string
	for _, program := range []string{nodeAgent, resourceManager, apiServer} {
		packages = append(packages, modulePath+"/cmd/"+program)
	}
	if err := gobuild.Build(ctx, gobuild.Options{
		Dir:      filepath.Join(root, buildDir),
		Packages: packages,
		Output:   partial + "/",
		LDFlags:  versionFlag(version),
	}); err != nil {
		return err
	}
	for _, program := range []string{resourceManager, apiServer} {
		if err := writeImage(filepath.Join(partial, program), imagePrefix+program+":"+tag, filepath.Join(partial, program+".tar")); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(partial, program)); err != nil {
			return err
		}
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

// writeImage writes an archive with an image of one static program.
func writeImage(program, reference, archive string) error {
	path := "/" + filepath.Base(program)
	img, err := ociimage.Build(ociimage.Config{
		Files:      []ociimage.File{{Path: path, Mode: 0o755, Source: program}},
		Entrypoint: []string{path},
		User:       "65532:65532",
	})
	if err != nil {
		return err
	}
	return ociimage.WriteArchive(archive, map[string]v1.Image{reference: img})
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
