// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gardener/gardener/pkg/client/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/registry-cache/extension/test/testbed/gardener"
)

const (
	// startTimeout bounds the start of etcd and of kube-apiserver. They take seconds; a machine that compiles beside them
	// needs the rest.
	startTimeout = 2 * time.Minute

	// auditPolicy records who did what with which answer. A watch is recorded when it begins, too: it may never end.
	auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

	// egressSelection lets kube-apiserver reach pods and Services through a socket only, which is not there: their addresses
	// are made up, and are those of others outside of this machine. The parameter is the socket's file.
	egressSelection = `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      uds:
        udsName: %q
`
)

// Options say how a Cluster differs from the usual.
type Options struct {
	// ServiceCIDRs are the ranges of Service addresses, the one of the primary family first. Empty means 10.0.0.0/16: in the
	// smaller range of envtest, the address of a Service that a test deletes is soon that of another test's Service.
	ServiceCIDRs []string
	// Seed installs Gardener's CRDs.
	Seed bool
	// Audit writes the audit log, see AuditLog.
	Audit bool
}

// Cluster is a kube-apiserver with its etcd. RBAC decides who may do what.
type Cluster struct {
	programs    Programs
	dir         string
	environment *envtest.Environment
	gate        *gate
	client      client.WithWatch
	processes   []*Process
}

// Start starts a Cluster, which keeps its files in dir. Stop ends it.
func Start(ctx context.Context, programs Programs, dir string, o Options) (c *Cluster, err error) {
	c = &Cluster{programs: programs, dir: dir, environment: &envtest.Environment{
		ControlPlaneStartTimeout: startTimeout, ControlPlaneStopTimeout: stopTimeout,
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	for _, name := range []string{"certificates", "etcd"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(dir, apiServer+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()

	server := c.environment.ControlPlane.GetAPIServer()
	server.Path, server.CertDir, server.Out, server.Err = programs.APIServer, filepath.Join(dir, "certificates"), log, log
	c.environment.ControlPlane.Etcd = &envtest.Etcd{Path: programs.Etcd, DataDir: filepath.Join(dir, "etcd")}
	// Nothing runs it, and envtest would look for one elsewhere.
	c.environment.ControlPlane.KubectlPath = os.DevNull
	cidrs := o.ServiceCIDRs
	if len(cidrs) == 0 {
		cidrs = []string{"10.0.0.0/16"}
	}
	server.Configure().Set("service-cluster-ip-range", strings.Join(cidrs, ","))
	primary, _, err := net.ParseCIDR(cidrs[0])
	if err != nil {
		return nil, err
	}
	if primary.To4() == nil {
		// It must be of the primary family. Nobody connects to it: it is for documentation (RFC 3849).
		server.Configure().Set("advertise-address", "2001:db8::1")
	}
	egress := filepath.Join(dir, "egress-selector.yaml")
	if err := os.WriteFile(egress, fmt.Appendf(nil, egressSelection, filepath.Join(dir, "pods.sock")), 0o644); err != nil {
		return nil, err
	}
	server.Configure().Set("egress-selector-config-file", egress)
	if o.Audit {
		policy := filepath.Join(dir, "audit-policy.yaml")
		if err := os.WriteFile(policy, []byte(auditPolicy), 0o644); err != nil {
			return nil, err
		}
		server.Configure().Set("audit-policy-file", policy).Set("audit-log-path", c.auditPath())
	}

	config, err := c.environment.Start()
	if err != nil {
		text, readErr := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("starting a control plane: %w\n%s", err, lastLines(text, 20)), readErr)
	}
	if c.gate, err = newGate(ctx, server.SecureServing.HostPort()); err != nil {
		return nil, err
	}
	scheme := kubernetes.ShootScheme
	if o.Seed {
		scheme = kubernetes.SeedScheme
	}
	if c.client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return nil, fmt.Errorf("connecting to the control plane in %s: %w", dir, err)
	}
	if o.Seed {
		if err := gardener.ApplyCRDs(ctx, c.client); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Stop ends the Cluster and the processes that were started with it.
func (c *Cluster) Stop() error {
	var errs []error
	for _, process := range c.processes {
		errs = append(errs, process.Stop())
	}
	if c.gate != nil {
		errs = append(errs, c.gate.Shut())
	}
	return errors.Join(append(errs, c.environment.Stop())...)
}

// Client may do everything, also while the API is unreachable for others.
func (c *Cluster) Client() client.WithWatch { return c.client }

// Config is for clients that may do everything.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.environment.Config) }

// Kubeconfig has the credentials of an administrator, and an address that MakeUnreachable shuts.
func (c *Cluster) Kubeconfig() ([]byte, error) {
	config := c.environment.Config
	return c.kubeconfig(&clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData})
}

// KubeconfigWithToken is Kubeconfig for whom a bearer token belongs to.
func (c *Cluster) KubeconfigWithToken(token string) ([]byte, error) {
	return c.kubeconfig(&clientcmdapi.AuthInfo{Token: token})
}

func (c *Cluster) kubeconfig(user *clientcmdapi.AuthInfo) ([]byte, error) {
	const name = "controlplane"
	content, err := clientcmd.Write(clientcmdapi.Config{
		CurrentContext: name,
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: "https://" + c.gate.address, CertificateAuthorityData: c.environment.Config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: user},
	})
	if err != nil {
		return nil, fmt.Errorf("making a kubeconfig: %w", err)
	}
	return content, nil
}

// MakeUnreachable lets the API refuse the connections of all who use Kubeconfig, as that of a hibernated Shoot does.
func (c *Cluster) MakeUnreachable() error { return c.gate.Shut() }

// MakeReachable ends what MakeUnreachable began.
func (c *Cluster) MakeReachable(ctx context.Context) error { return c.gate.Open(ctx) }

// writeKubeconfig writes Kubeconfig into dir and returns the path.
func (c *Cluster) writeKubeconfig(dir, name string) (string, error) {
	content, err := c.Kubeconfig()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, content, 0o600)
}
