// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	nodeagentconfigv1alpha1 "github.com/gardener/gardener/pkg/apis/config/nodeagent/v1alpha1"
	"github.com/gardener/gardener/pkg/component/extensions/operatingsystemconfig/original/components/nodeagent"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
)

const (
	// adminKubeconfig is kubeadm's, on control plane nodes only. Its client certificate is embedded, which is the only
	// kind of certificate that the agent accepts.
	adminKubeconfig = "/etc/kubernetes/admin.conf"

	unitPath   = "/etc/systemd/system/" + nodeagentconfigv1alpha1.UnitName
	dropInPath = unitPath + ".d/10-testbed.conf"

	// agentTimeout bounds the wait for an agent to report. It does so within 10 s of its start, see agentLease.
	agentTimeout = 2 * time.Minute
	// agentLease is the age at which the agent's Lease counts as outdated: 4 renewals were missed (gardener's
	// pkg/nodeagent/controller/lease renews every quarter of the 40 s that a Lease lasts).
	agentLease = 40 * time.Second
	// journalTimeout bounds what is done for an error message.
	journalTimeout = 10 * time.Second
)

// node is what is done with a node, in order to test it without one.
type node interface {
	Run(ctx context.Context, stdin io.Reader, args ...string) (stdout []byte, err error)
	WriteFile(ctx context.Context, path string, mode fs.FileMode, content []byte) error
}

// nodeFile is a file to be on a node.
type nodeFile struct {
	path    string
	mode    fs.FileMode
	content []byte
}

// startNodeAgents installs the agent on every node and waits until each has reported to the cluster.
func startNodeAgents(ctx context.Context, c client.Client, cluster *kindcluster.Cluster, built programs, kubernetesVersion string) error {
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	var kubeconfig []byte
	for _, node := range nodes {
		if node.Role == kindcluster.ControlPlane {
			if kubeconfig, err = node.Run(ctx, nil, "cat", adminKubeconfig); err != nil {
				return fmt.Errorf("reading the kubeconfig on node %s: %w", node.Name, err)
			}
			break
		}
	}
	if kubeconfig == nil {
		return fmt.Errorf("cluster %s has no control plane node", cluster.Name())
	}
	program, err := os.ReadFile(built.nodeAgent)
	if err != nil {
		return err
	}

	group, ctx := errgroup.WithContext(ctx)
	for _, node := range nodes {
		group.Go(func() error {
			files, err := nodeAgentFiles(node.Name, built.version, kubernetesVersion, program, kubeconfig)
			if err != nil {
				return err
			}
			started := time.Now()
			restarted, err := startNodeAgent(ctx, node, files)
			if err != nil {
				return fmt.Errorf("installing gardener-node-agent on node %s: %w", node.Name, err)
			}
			since := started.Add(-agentLease)
			if restarted {
				since = started
			}
			return waitForNodeAgent(ctx, c, node, node.Name, since)
		})
	}
	return group.Wait()
}

// nodeAgentFiles returns the program, its configuration, and its unit, as Gardener writes them except for what a kind
// node has no use for: the bootstrap with a token that ends in a kubeconfig.
func nodeAgentFiles(nodeName, version, kubernetesVersion string, program, kubeconfig []byte) ([]nodeFile, error) {
	parsed, err := semver.NewVersion(kubernetesVersion)
	if err != nil {
		return nil, fmt.Errorf("parsing Kubernetes version %q: %w", kubernetesVersion, err)
	}
	// The address of kube-apiserver is needed for the bootstrap only.
	generated, err := nodeagent.Files(nodeagent.ComponentConfig(gardenlet.NodeAgentSecretName, parsed, "", nil))
	if err != nil {
		return nil, fmt.Errorf("generating the configuration of gardener-node-agent: %w", err)
	}
	config, err := base64.StdEncoding.DecodeString(generated[0].Content.Inline.Data)
	if err != nil {
		return nil, fmt.Errorf("decoding the configuration of gardener-node-agent: %w", err)
	}
	dropIn := strings.Join([]string{
		"[Service]",
		"Environment=KUBECONFIG=" + nodeagentconfigv1alpha1.KubeconfigFilePath,
		// A published node image may be newer than what this Gardener supports.
		"Environment=EXPERIMENTAL_DISABLE_KUBERNETES_VERSION_CHECK=true",
		"",
	}, "\n")
	return []nodeFile{
		{nodeagentconfigv1alpha1.BinaryDir + "/" + nodeAgent, 0o755, program},
		// The program looks for the configuration of its own version.
		{nodeagentconfigv1alpha1.BaseDir + "/config-" + version + ".yaml", 0o600, config},
		{nodeagentconfigv1alpha1.MachineNameFilePath, 0o644, []byte(nodeName + "\n")},
		{nodeagentconfigv1alpha1.KubeconfigFilePath, 0o600, kubeconfig},
		{unitPath, 0o644, []byte(nodeagent.UnitContent())},
		{dropInPath, 0o644, []byte(dropIn)},
	}, nil
}

// startNodeAgent writes those files that differ and starts the unit, or restarts it if a file was written.
func startNodeAgent(ctx context.Context, n node, files []nodeFile) (restarted bool, err error) {
	// sha256sum names the files that are missing on stderr and prints the others.
	args := []string{"sh", "-c", `sha256sum -- "$@" 2>/dev/null || true`, "sh"}
	for _, file := range files {
		args = append(args, file.path)
	}
	sums, err := n.Run(ctx, nil, args...)
	if err != nil {
		return false, err
	}
	present := map[string]bool{}
	for line := range bytes.Lines(sums) {
		present[strings.TrimSpace(string(line))] = true
	}
	changed := false
	for _, file := range files {
		sum := sha256.Sum256(file.content)
		if present[hex.EncodeToString(sum[:])+"  "+file.path] {
			continue
		}
		if err := n.WriteFile(ctx, file.path, file.mode, file.content); err != nil {
			return false, err
		}
		changed = true
	}

	commands := [][]string{{"enable", "--quiet"}, {"start"}}
	if changed {
		commands = [][]string{{"daemon-reload"}, {"enable", "--quiet"}, {"restart"}}
	}
	for _, command := range commands {
		args := append([]string{"systemctl"}, command...)
		if command[0] != "daemon-reload" {
			args = append(args, nodeagentconfigv1alpha1.UnitName)
		}
		if _, err := n.Run(ctx, nil, args...); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// waitForNodeAgent returns when the agent of the node has renewed its Lease after since: by then it has connected to
// the cluster and found its Node.
func waitForNodeAgent(ctx context.Context, c client.Client, n node, name string, since time.Time) error {
	err := poll.Until(ctx, 500*time.Millisecond, agentTimeout, func(ctx context.Context) error {
		lease := &coordinationv1.Lease{}
		key := client.ObjectKey{Namespace: metav1.NamespaceSystem, Name: gardenerutils.NodeAgentLeaseName(name)}
		if err := c.Get(ctx, key, lease); err != nil {
			return err
		}
		if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(since) {
			return fmt.Errorf("lease %s is not renewed", key)
		}
		return nil
	})
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), journalTimeout)
	defer cancel()
	journal, journalErr := n.Run(ctx, nil, "journalctl", "--no-pager", "--output=cat", "--lines=20", "--unit="+nodeagentconfigv1alpha1.UnitName)
	return errors.Join(fmt.Errorf("waiting for gardener-node-agent on node %s: %w\n%s", name, err, journal), journalErr)
}
