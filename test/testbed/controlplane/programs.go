// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/registry-cache/extension/test/testbed/gardener"
	"github.com/registry-cache/extension/test/testbed/nodeimage"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// ErrNotBuilt is the error of Find where a program is missing.
var ErrNotBuilt = errors.New(`the programs of the control planes are not built, "make envtest" builds them`)

const (
	etcd              = "etcd"
	apiServer         = "kube-apiserver"
	controllerManager = "kube-controller-manager"
)

// Programs are the paths of the programs that a control plane is made of.
type Programs struct {
	Etcd, APIServer, ControllerManager, ResourceManager string
}

// Build returns the programs that go with this checkout. Those that are not in workspace.CacheDir are built: ten minutes
// for all on two cores.
func Build(ctx context.Context, progress *workspace.Progress) (Programs, error) {
	kubernetes, err := nodeimage.Programs(ctx, progress, etcd, apiServer, controllerManager)
	if err != nil {
		return Programs{}, err
	}
	resourceManager, err := gardener.ResourceManager(ctx, progress)
	return programs(kubernetes, resourceManager), err
}

// Find is Build, but builds nothing: it returns ErrNotBuilt instead.
func Find(ctx context.Context) (Programs, error) {
	kubernetes, err := nodeimage.FindPrograms(ctx, etcd, apiServer, controllerManager)
	if err == nil {
		var resourceManager string
		if resourceManager, err = gardener.FindResourceManager(ctx); err == nil {
			return programs(kubernetes, resourceManager), nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNotBuilt, err)
	}
	return Programs{}, err
}

func programs(kubernetes map[string]string, resourceManager string) Programs {
	return Programs{
		Etcd: kubernetes[etcd], APIServer: kubernetes[apiServer], ControllerManager: kubernetes[controllerManager],
		ResourceManager: resourceManager,
	}
}
