// SPDX-License-Identifier: Apache-2.0

package host

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// plainHost is a Debian machine as it is installed: root, no engine, no restriction.
func plainHost() Facts {
	return Facts{
		AptGet:          true,
		MissingPackages: map[string][]string{Docker: {"mmdebstrap"}, Podman: {"mmdebstrap", "podman"}},
		MissingPrograms: map[string][]string{Docker: {"docker"}, Podman: {"podman"}},
		CapSysResource:  true,
		OpenFiles:       1 << 20,
		Processes:       96000,
		MaxPID:          32768,
		Sysctls:         wantedSysctls(),
		KernelModules:   true,
		LoopDevices:     true,
	}
}

func TestAdapt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Facts)
		want   Adaptations
	}{
		"nothing installed": {
			change: func(*Facts) {},
			want:   Adaptations{Engine: Podman, Packages: []string{"mmdebstrap", "podman"}},
		},
		"docker answers": {
			change: func(f *Facts) { f.DockerAnswers = true },
			want:   Adaptations{Engine: Docker, Packages: []string{"mmdebstrap"}},
		},
		"docker answers, podman wanted": {
			change: func(f *Facts) { f.DockerAnswers, f.Wanted = true, Podman },
			want:   Adaptations{Engine: Podman, Packages: []string{"mmdebstrap", "podman"}},
		},
		"docker cannot start privileged containers": {
			change: func(f *Facts) { f.DockerAnswers, f.CapSysResource, f.OpenFiles = true, false, 20000 },
			want: Adaptations{
				Engine: Podman, Packages: []string{"mmdebstrap", "podman"},
				ContainersConf: "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n",
				Notes:          []string{"no CAP_SYS_RESOURCE on this host: containers keep the host's limits (20000 open files)"},
			},
		},
		"unlimited, and limits may not be raised": {
			change: func(f *Facts) { f.CapSysResource, f.OpenFiles, f.Processes = false, 1<<64-1, 1<<64-1 },
			want: Adaptations{
				Engine: Podman, Packages: []string{"mmdebstrap", "podman"},
				ContainersConf: "[containers]\ndefault_ulimits = [\"nofile=1048576:1048576\", \"nproc=32768:32768\"]\n",
				Notes:          []string{"no CAP_SYS_RESOURCE on this host: containers keep the host's limits (1048576 open files)"},
			},
		},
		"few processes": {
			change: func(f *Facts) { f.CapSysResource, f.OpenFiles, f.Processes = false, 20000, 4000 },
			want: Adaptations{
				Engine: Podman, Packages: []string{"mmdebstrap", "podman"},
				ContainersConf: "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=4000:4000\"]\n",
				Notes:          []string{"no CAP_SYS_RESOURCE on this host: containers keep the host's limits (20000 open files)"},
			},
		},
		"few watchers": {
			change: func(f *Facts) { f.Sysctls["fs/inotify/max_user_instances"] = 128 },
			want: Adaptations{
				Engine: Podman, Packages: []string{"mmdebstrap", "podman"},
				Sysctls: map[string]uint64{"fs/inotify/max_user_instances": 512},
				Notes:   []string{"fs.inotify.max_user_instances is 128 on this host: raised to 512 until the next boot"},
			},
		},
		"cgroup v1 and no modules": {
			change: func(f *Facts) { f.CgroupV1, f.KernelModules = true, false },
			want: Adaptations{
				Engine: Podman, Packages: []string{"mmdebstrap", "podman"}, MakeModulesDir: true,
				ContainersConf: "[engine]\nruntime = \"runc\"\n",
				Notes: []string{
					"cgroup v1 on this host: podman uses runc",
					"no /lib/modules on this host: an empty directory is made, because kind mounts it into nodes",
				},
			},
		},
		"the user's own containers.conf": {
			change: func(f *Facts) { f.CgroupV1, f.OwnConfig = true, "/etc/own.conf" },
			want: Adaptations{
				Engine: Podman, Packages: []string{"mmdebstrap", "podman"},
				Notes: []string{"CONTAINERS_CONF is set: podman is configured by /etc/own.conf alone"},
			},
		},
		"podman on another distribution": {
			change: func(f *Facts) { f.AptGet, f.PodmanInstalled, f.MissingPrograms[Podman] = false, true, nil },
			want:   Adaptations{Engine: Podman},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			facts := plainHost()
			tc.change(&facts)
			got, err := Adapt(facts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("adaptations (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAdaptRefusesInOneSentence(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Facts)
		want   string
	}{
		"not root":          {func(f *Facts) { f.UID = 1000 }, "needs root"},
		"no engine":         {func(f *Facts) { f.AptGet = false }, "needs a container engine"},
		"no loop devices":   {func(f *Facts) { f.LoopDevices = false }, "/dev/loop-control"},
		"few open files":    {func(f *Facts) { f.OpenFiles = 1024 }, "ulimit -Hn"},
		"unknown engine":    {func(f *Facts) { f.Wanted = "nerdctl" }, `KIND_EXPERIMENTAL_PROVIDER is "nerdctl"`},
		"docker is down":    {func(f *Facts) { f.Wanted = Docker }, "no docker daemon answers"},
		"docker restricted": {func(f *Facts) { f.Wanted, f.DockerAnswers, f.CapSysResource = Docker, true, false }, "CAP_SYS_RESOURCE"},
		"docker restricted, nothing else": {func(f *Facts) {
			f.DockerAnswers, f.CapSysResource, f.AptGet = true, false, false
		}, "install podman"},
		"podman without runc": {func(f *Facts) {
			f.AptGet, f.PodmanInstalled, f.MissingPrograms[Podman] = false, true, []string{"runc"}
		}, "needs runc"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			facts := plainHost()
			tc.change(&facts)
			a, err := Adapt(facts)
			if err == nil {
				t.Fatalf("adapted to %+v, want an error", a)
			}
			if message := err.Error(); !strings.Contains(message, tc.want) || strings.ContainsAny(message, "\n") {
				t.Errorf("error %q, want one line with %q", message, tc.want)
			}
		})
	}
}
