// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// ResourceManager returns the path of gardener-resource-manager as a program of this machine. It is built, which takes
// minutes, if it is not in workspace.CacheDir.
func ResourceManager(ctx context.Context, progress *workspace.Progress) (string, error) {
	output, src, root, err := localResourceManager(ctx)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(output); !errors.Is(err, fs.ErrNotExist) {
		return output, err
	}
	return output, progress.Step("building "+resourceManager+" "+src.Version, func() (err error) {
		if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil {
			return err
		}
		partial, err := os.MkdirTemp(filepath.Dir(output), "partial-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(partial)) }()
		if err := gobuild.Build(ctx, gobuild.Options{
			Dir:      filepath.Join(root, buildDir),
			Packages: []string{modulePath + "/cmd/" + resourceManager},
			Output:   filepath.Join(partial, resourceManager),
			LDFlags:  versionFlag(src.Version),
		}); err != nil {
			return err
		}
		return os.Rename(filepath.Join(partial, resourceManager), output)
	})
}

// FindResourceManager is ResourceManager, but builds nothing: fs.ErrNotExist is in the error if the program is missing.
func FindResourceManager(ctx context.Context) (string, error) {
	output, _, _, err := localResourceManager(ctx)
	if err != nil {
		return "", err
	}
	_, err = os.Stat(output)
	return output, err
}

func localResourceManager(ctx context.Context) (output string, src source, root string, err error) {
	if root, err = workspace.Root(); err != nil {
		return "", source{}, "", err
	}
	cache, err := workspace.CacheDir()
	if err != nil {
		return "", source{}, "", err
	}
	if src, err = locate(ctx, root); err != nil {
		return "", source{}, "", err
	}
	key, err := buildKey(filepath.Join(root, buildDir), src.Version)
	if err != nil {
		return "", source{}, "", err
	}
	return filepath.Join(cache, "programs", "gardener-"+key, resourceManager), src, root, nil
}

// Ports are the ports of a gardener-resource-manager.
type Ports struct{ Webhooks, Health, Metrics int }

// LocalResourceManagerConfig writes the configuration for a gardener-resource-manager on this machine into dir, which is
// that of the cluster but for its ports, and the certificate that its webhook server insists on. It returns the path of
// the configuration.
func LocalResourceManagerConfig(dir string, ports Ports) (string, error) {
	served, err := newCertificate(time.Now(), "localhost")
	if err != nil {
		return "", err
	}
	config := map[string]any{}
	if err := yaml.Unmarshal([]byte(resourceManagerConfig), &config); err != nil {
		return "", fmt.Errorf("decoding the configuration of %s: %w", resourceManager, err)
	}
	config["server"] = map[string]any{
		"webhooks":     map[string]any{"port": ports.Webhooks, "tls": map[string]any{"serverCertDir": dir}},
		"healthProbes": map[string]any{"port": ports.Health},
		"metrics":      map[string]any{"port": ports.Metrics},
	}
	content, err := yaml.Marshal(config)
	if err != nil {
		return "", fmt.Errorf("encoding the configuration of %s: %w", resourceManager, err)
	}
	path := filepath.Join(dir, configKey)
	for name, content := range map[string][]byte{path: content, filepath.Join(dir, "tls.crt"): served.cert, filepath.Join(dir, "tls.key"): served.key} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			return "", err
		}
	}
	return path, nil
}

// ApplyCRDs applies the CRDs of Gardener that a Seed with extensions has, and waits until their kinds are served.
func ApplyCRDs(ctx context.Context, c client.Client) error {
	root, err := workspace.Root()
	if err != nil {
		return err
	}
	src, err := locate(ctx, root)
	if err != nil {
		return err
	}
	return applyCRDs(ctx, c, src.Dir)
}
