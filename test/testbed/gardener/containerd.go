// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/BurntSushi/toml"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
)

// runner runs a program on a node.
type runner interface {
	Run(ctx context.Context, stdin io.Reader, args ...string) (stdout []byte, err error)
}

// ReadContainerd returns those settings of the containerd that runs on the node that an OperatingSystemConfig sets too.
func ReadContainerd(ctx context.Context, node runner) (gardenlet.Containerd, error) {
	dump, err := node.Run(ctx, nil, "containerd", "config", "dump")
	if err != nil {
		return gardenlet.Containerd{}, err
	}
	return parseContainerd(string(dump))
}

// parseContainerd reads a complete configuration as "containerd config dump" prints it: version 2 or 3 from
// containerd 1 and 2.
func parseContainerd(dump string) (gardenlet.Containerd, error) {
	type runtimes struct {
		Runc struct {
			Options struct{ SystemdCgroup bool }
		}
	}
	var config struct {
		Plugins struct {
			V1 struct { // containerd 1
				SandboxImage string `toml:"sandbox_image"`
				Containerd   struct{ Runtimes runtimes }
			} `toml:"io.containerd.grpc.v1.cri"`
			Images struct { // containerd 2
				PinnedImages struct{ Sandbox string } `toml:"pinned_images"`
			} `toml:"io.containerd.cri.v1.images"`
			Runtime struct { // containerd 2
				Containerd struct{ Runtimes runtimes }
			} `toml:"io.containerd.cri.v1.runtime"`
		}
	}
	if _, err := toml.Decode(dump, &config); err != nil {
		return gardenlet.Containerd{}, fmt.Errorf("decoding its configuration: %w", err)
	}
	plugins := config.Plugins
	settings := gardenlet.Containerd{SandboxImage: plugins.Images.PinnedImages.Sandbox, CgroupDriver: extensionsv1alpha1.CgroupDriverCgroupfs}
	if settings.SandboxImage == "" {
		settings.SandboxImage = plugins.V1.SandboxImage
	}
	if settings.SandboxImage == "" {
		return gardenlet.Containerd{}, errors.New("its configuration has no sandbox image")
	}
	if plugins.Runtime.Containerd.Runtimes.Runc.Options.SystemdCgroup || plugins.V1.Containerd.Runtimes.Runc.Options.SystemdCgroup {
		settings.CgroupDriver = extensionsv1alpha1.CgroupDriverSystemd
	}
	return settings, nil
}
