// SPDX-License-Identifier: Apache-2.0

// Package host finds the container engine of this machine, installs what is missing and adapts to restrictions: a
// testbed that starts with nothing but root on a Debian machine.
package host

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	// wantOpenFiles is the limit of open files that nodes get where the host's hard limit allows it: what podman gives
	// where it may raise limits.
	wantOpenFiles = 1 << 20
	// minOpenFiles is the hard limit of open files below which a node's etcd and API server fail. Three nodes were
	// run with 20000.
	minOpenFiles = 4096
)

// wantedSysctls returns the kernel settings below which kind's nodes fail with "too many open files": every systemd,
// kubelet, containerd and kube-proxy watches files, and the kernel's default of 128 watchers for all of root's processes
// is used up by the second cluster (measured). The values are those of kind's list of known issues.
func wantedSysctls() map[string]uint64 {
	return map[string]uint64{
		"fs/inotify/max_user_instances": 512,
		"fs/inotify/max_user_watches":   524288,
	}
}

// Facts is what Adapt decides on.
type Facts struct {
	// UID is the effective user.
	UID int
	// Wanted is the engine that KIND_EXPERIMENTAL_PROVIDER names; empty means either.
	Wanted string
	// DockerAnswers tells that a docker daemon answers.
	DockerAnswers bool
	// PodmanInstalled tells that there is a podman program, and AptGet that Debian packages can be installed.
	PodmanInstalled, AptGet bool
	// MissingPackages are those of RequiredPackages(engine) that are not installed, for either engine.
	MissingPackages map[string][]string
	// MissingPrograms are the required programs that are not found, for either engine. It matters where there is no
	// apt-get, that is where packages are not Debian's.
	MissingPrograms map[string][]string
	// CapSysResource tells that CAP_SYS_RESOURCE is in the bounding set: limits may be raised.
	CapSysResource bool
	// CgroupV1 tells that the host has the legacy cgroup hierarchies.
	CgroupV1 bool
	// OpenFiles and Processes are the hard limits RLIMIT_NOFILE and RLIMIT_NPROC.
	OpenFiles, Processes uint64
	// MaxPID is kernel.pid_max. podman lowers its own limit of processes to it, so containers cannot get more.
	MaxPID uint64
	// KernelModules tells that /lib/modules exists; LoopDevices that /dev/loop-control does.
	KernelModules, LoopDevices bool
	// Sysctls are the values of wantedSysctls on this host.
	Sysctls map[string]uint64
	// OwnConfig is the value of CONTAINERS_CONF when the user has set it.
	OwnConfig string
}

// Adaptations is what Prepare does to make a host work.
type Adaptations struct {
	// Engine is Docker or Podman.
	Engine string
	// Packages are the Debian packages to install.
	Packages []string
	// ContainersConf is the content of podman's containers.conf; empty means that podman's own defaults do.
	ContainersConf string
	// MakeModulesDir tells to make an empty /lib/modules, which kind mounts into every node.
	MakeModulesDir bool
	// Sysctls are kernel settings to raise until the next boot: paths below /proc/sys.
	Sysctls map[string]uint64
	// Notes are sentences for the user about what is adapted.
	Notes []string
}

// RequiredPackages returns the Debian packages that the testbed needs with the engine. netavark calls the program
// iptables, newer ones nft, without depending on it, and only recommends its name server; podman takes crun on cgroup v2,
// and is told to take runc on v1.
func RequiredPackages(engine string) []string {
	packages := []string{"ca-certificates", "mmdebstrap"}
	if engine == Podman {
		packages = append(packages, "aardvark-dns", "conmon", "crun", "iptables", "netavark", "nftables", "podman", "runc")
	}
	slices.Sort(packages)
	return packages
}

// requiredPrograms returns the programs that must be there where RequiredPackages cannot be installed.
func requiredPrograms(engine string, cgroupV1 bool) []string {
	switch {
	case engine == Docker:
		return []string{"docker"}
	case cgroupV1:
		return []string{"podman", "runc"}
	}
	return []string{"podman"}
}

// Adapt decides how to work on a host. Its error is one sentence for the user: the host cannot be used, and why.
func Adapt(f Facts) (Adaptations, error) {
	switch {
	case f.UID != 0:
		return Adaptations{}, fmt.Errorf("the testbed needs root, because its nodes are privileged containers with loop devices: run the command again as root (user id here: %d)", f.UID)
	case !f.LoopDevices:
		return Adaptations{}, fmt.Errorf("the testbed needs loop devices for its volumes, and there is no /dev/loop-control: load the kernel module loop, or run on a machine that has it")
	case f.OpenFiles < minOpenFiles:
		return Adaptations{}, fmt.Errorf("the testbed needs %d open files, and the hard limit here is %d: raise it with ulimit -Hn", minOpenFiles, f.OpenFiles)
	}
	engine, err := chooseEngine(f)
	if err != nil {
		return Adaptations{}, err
	}
	a := Adaptations{Engine: engine}
	if f.AptGet {
		a.Packages = f.MissingPackages[engine]
	} else if missing := f.MissingPrograms[engine]; len(missing) > 0 {
		return Adaptations{}, fmt.Errorf("the testbed needs %s, and there is no apt-get to install it with: install it with the package manager of this host", strings.Join(missing, ", "))
	}
	if engine == Podman {
		a.adaptPodman(f)
	}
	for _, name := range slices.Sorted(maps.Keys(wantedSysctls())) {
		if has, want := f.Sysctls[name], wantedSysctls()[name]; has < want {
			if a.Sysctls == nil {
				a.Sysctls = map[string]uint64{}
			}
			a.Sysctls[name] = want
			a.Notes = append(a.Notes, fmt.Sprintf("%s is %d on this host: raised to %d until the next boot", strings.ReplaceAll(name, "/", "."), has, want))
		}
	}
	if !f.KernelModules {
		a.MakeModulesDir = true
		a.Notes = append(a.Notes, "no /lib/modules on this host: an empty directory is made, because kind mounts it into nodes")
	}
	return a, nil
}

func chooseEngine(f Facts) (string, error) {
	switch f.Wanted {
	case "", Docker, Podman:
	default:
		return "", fmt.Errorf("KIND_EXPERIMENTAL_PROVIDER is %q: the testbed works with docker and podman, so set one of them or nothing", f.Wanted)
	}
	// docker gives a privileged container every capability it knows, and runc fails where the host lacks one; that
	// cannot be configured per container.
	dockerWorks := f.DockerAnswers && f.CapSysResource
	podmanWorks := f.PodmanInstalled || f.AptGet
	switch {
	case dockerWorks && f.Wanted != Podman:
		return Docker, nil
	case f.Wanted == Docker && !f.DockerAnswers:
		return "", fmt.Errorf("KIND_EXPERIMENTAL_PROVIDER asks for docker, and no docker daemon answers: start it, or unset the variable to use podman")
	case f.Wanted == Docker:
		return "", fmt.Errorf("KIND_EXPERIMENTAL_PROVIDER asks for docker, and this host lacks CAP_SYS_RESOURCE, without which docker starts no privileged container: unset the variable to use podman")
	case podmanWorks:
		return Podman, nil
	case f.DockerAnswers:
		return "", fmt.Errorf("this host lacks CAP_SYS_RESOURCE, without which docker starts no privileged container, and it has neither podman nor apt-get to install it: install podman")
	}
	return "", fmt.Errorf("the testbed needs a container engine: no docker daemon answers, there is no podman, and no apt-get to install it: start docker or install podman")
}

func (a *Adaptations) adaptPodman(f Facts) {
	if f.OwnConfig != "" {
		a.Notes = append(a.Notes, fmt.Sprintf("CONTAINERS_CONF is set: podman is configured by %s alone", f.OwnConfig))
		return
	}
	var conf strings.Builder
	if !f.CapSysResource {
		files, processes := min(f.OpenFiles, wantOpenFiles), min(f.Processes, f.MaxPID)
		fmt.Fprintf(&conf, "[containers]\ndefault_ulimits = [\"nofile=%d:%d\", \"nproc=%d:%d\"]\n", files, files, processes, processes)
		a.Notes = append(a.Notes, fmt.Sprintf("no CAP_SYS_RESOURCE on this host: containers keep the host's limits (%d open files)", files))
	}
	if f.CgroupV1 {
		fmt.Fprintf(&conf, "[engine]\nruntime = \"runc\"\n")
		a.Notes = append(a.Notes, "cgroup v1 on this host: podman uses runc")
	}
	a.ContainersConf = conf.String()
}
