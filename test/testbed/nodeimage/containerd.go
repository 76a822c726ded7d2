// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
)

const containerdConfigPath = "/etc/containerd/config.toml"

var (
	restrictLine = regexp.MustCompile(`(?m)^(\s*restrict_oom_score_adj\s*=\s*)(true|false)\s*$`)
	sandboxLine  = regexp.MustCompile(`(?m)^\s*sandbox_image\s*=\s*"([^"]+)"\s*$`)
	versionLine  = regexp.MustCompile(`(?m)^version\s*=\s*2\s*$`)
)

// nodeTables are the tables of containerd's configuration, version 2, that a node of the testbed has in addition. They
// are keyed by their header.
var nodeTables = []struct{ header, content string }{
	{`[plugins."io.containerd.grpc.v1.cri".registry]`, `  config_path = "/etc/containerd/certs.d"`},
	// The kubelet passes the node's pod network; containerd renders the CNI configuration with it.
	{`[plugins."io.containerd.grpc.v1.cri".cni]`, `  conf_template = "/etc/containerd/cni.conflist.tmpl"`},
	// From 2.2 on, containerd requests the CPU usage of each container every second by default, which three nodes on one
	// machine with two processors spend a quarter of the processor time on. Earlier versions ignore the table.
	{`[plugins."io.containerd.cri.v1.runtime"]`, `  stats_collect_period = "1m"`},
}

// containerdConfig returns kind's configuration of containerd with what the testbed changes in it:
//
//   - A host without CAP_SYS_RESOURCE refuses to lower the score of a process for the out-of-memory killer, and the
//     container does not start; restrict_oom_score_adj makes containerd keep to what it may set.
//   - hosts.toml files are read from the folder that Gardener's node agent uses.
//   - The CNI configuration is rendered by containerd.
//   - The CPU usage of containers is collected once per minute.
//
// A configuration that it does not know how to change is an error, rather than a node that fails later.
func containerdConfig(base []byte) ([]byte, error) {
	if !versionLine.Match(base) {
		return nil, fmt.Errorf("changing %s: it is not of version 2, which is the one this testbed knows", containerdConfigPath)
	}
	if found := restrictLine.FindAll(base, -1); len(found) != 1 {
		return nil, fmt.Errorf("changing %s: restrict_oom_score_adj is set %d times, want once", containerdConfigPath, len(found))
	}
	config := restrictLine.ReplaceAll(base, []byte("${1}true"))
	config = append(bytes.TrimRight(config, "\n"), '\n')
	for _, table := range nodeTables {
		if bytes.Contains(config, []byte(table.header)) {
			return nil, fmt.Errorf("changing %s: it has a table %s already", containerdConfigPath, table.header)
		}
		config = fmt.Appendf(config, "\n%s\n%s\n", table.header, table.content)
	}
	return config, nil
}

// sandboxImage reads which image containerd uses for the sandbox of a pod. It may differ from the one that kubeadm lists.
func sandboxImage(config string) (string, error) {
	content, err := os.ReadFile(config)
	if err != nil {
		return "", err
	}
	found := sandboxLine.FindSubmatch(content)
	if found == nil {
		return "", fmt.Errorf("%s sets no sandbox_image", config)
	}
	return string(found[1]), nil
}
