package shoot

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/BurntSushi/toml"
	nodeagentconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/nodeagent/v1alpha1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
)

// runner runs a program on a node.
type runner interface {
	Run(ctx context.Context, stdin io.Reader, args ...string) (stdout []byte, err error)
}

// containerdSettings are those settings of a node's containerd that an OperatingSystemConfig sets too. To repeat them
// is to leave the node as it is.
type containerdSettings struct {
	sandboxImage string
	cgroupDriver extensionsv1alpha1.CgroupDriverName
}

func readContainerdSettings(ctx context.Context, node runner) (containerdSettings, error) {
	dump, err := node.Run(ctx, nil, "containerd", "config", "dump")
	if err != nil {
		return containerdSettings{}, err
	}
	return parseContainerdSettings(string(dump))
}

// parseContainerdSettings reads a complete configuration as "containerd config dump" prints it: version 2 or 3 from
// containerd 1 and 2.
func parseContainerdSettings(dump string) (containerdSettings, error) {
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
		return containerdSettings{}, fmt.Errorf("decoding its configuration: %w", err)
	}
	plugins := config.Plugins
	settings := containerdSettings{sandboxImage: plugins.Images.PinnedImages.Sandbox, cgroupDriver: extensionsv1alpha1.CgroupDriverCgroupfs}
	if settings.sandboxImage == "" {
		settings.sandboxImage = plugins.V1.SandboxImage
	}
	if settings.sandboxImage == "" {
		return containerdSettings{}, errors.New("its configuration has no sandbox image")
	}
	if plugins.Runtime.Containerd.Runtimes.Runc.Options.SystemdCgroup || plugins.V1.Containerd.Runtimes.Runc.Options.SystemdCgroup {
		settings.cgroupDriver = extensionsv1alpha1.CgroupDriverSystemd
	}
	return settings, nil
}

// readJournal returns the last lines that the node agent has logged, or why there are none.
func readJournal(ctx context.Context, node runner) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer cancel()
	lines, err := node.Run(ctx, nil, "journalctl", "--no-pager", "--output=cat", "--lines=15", "--unit="+nodeagentconfigv1alpha1.UnitName)
	if err != nil {
		return err.Error()
	}
	return string(lines)
}
