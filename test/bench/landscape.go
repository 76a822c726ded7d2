// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/registry-cache/extension/test/testbed/controlplane"
)

// landscape is a Seed and a Shoot without nodes, with Gardener's resource manager. The controller has its own user in
// both, so that their audit logs identify its requests.
type landscape struct {
	dir             string
	seed, shoot     *controlplane.Cluster
	resourceManager *controlplane.Process
	// seedConfig and shootConfig are kubeconfigs of the controller.
	seedConfig, shootConfig []byte
}

const (
	controllerNamespace = "extension-registry-cache"
	controllerAccount   = "controller"
	controllerUser      = "system:serviceaccount:" + controllerNamespace + ":" + controllerAccount
)

// startLandscape writes its files into dir. stop deletes the content; the caller calls it.
func startLandscape(ctx context.Context, dir string) (l *landscape, err error) {
	programs, err := controlplane.Find(ctx)
	if errors.Is(err, controlplane.ErrNotBuilt) {
		return nil, fmt.Errorf("%w: run \"make envtest\"", err)
	}
	if err != nil {
		return nil, err
	}
	l = &landscape{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.stop(), os.RemoveAll(dir))
		}
	}()
	for _, name := range []string{"seed", "shoot", "resource-manager"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return l, err
		}
	}
	if l.seed, err = controlplane.Start(ctx, programs, filepath.Join(dir, "seed"), controlplane.Options{Seed: true, Audit: true}); err != nil {
		return l, err
	}
	// The default range has too few addresses for the Services of all caches.
	if l.shoot, err = controlplane.Start(ctx, programs, filepath.Join(dir, "shoot"), controlplane.Options{Audit: true, ServiceCIDRs: []string{"10.0.0.0/20"}}); err != nil {
		return l, err
	}
	if err := l.shoot.StartControllerManager(); err != nil {
		return l, err
	}
	if l.resourceManager, err = controlplane.StartResourceManager(ctx, programs, filepath.Join(dir, "resource-manager"), l.seed, l.shoot); err != nil {
		return l, err
	}
	if l.seedConfig, err = administrator(ctx, l.seed); err != nil {
		return l, err
	}
	l.shootConfig, err = administrator(ctx, l.shoot)
	return l, err
}

// administrator creates the user of the controller with all permissions, and returns its kubeconfig.
func administrator(ctx context.Context, c *controlplane.Cluster) ([]byte, error) {
	meta := metav1.ObjectMeta{Namespace: controllerNamespace, Name: controllerAccount}
	account := &corev1.ServiceAccount{ObjectMeta: meta}
	err := errors.Join(
		c.Client().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: controllerNamespace}}),
		c.Client().Create(ctx, account),
		c.Client().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "bench-" + controllerAccount},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: controllerNamespace, Name: controllerAccount}},
		}))
	if err != nil {
		return nil, err
	}
	token := &authenticationv1.TokenRequest{}
	if err := c.Client().SubResource("token").Create(ctx, account, token); err != nil {
		return nil, err
	}
	return c.KubeconfigWithToken(token.Status.Token)
}

// startController starts the program like the chart, except for options that require a pod. A higher number of concurrent
// reconciliations shortens only the time before the measurement.
func (l *landscape) startController(ctx context.Context, program, logFile string) (*process, error) {
	kubeconfig := filepath.Join(l.dir, "controller.kubeconfig")
	if err := os.WriteFile(kubeconfig, l.seedConfig, 0o600); err != nil {
		return nil, err
	}
	ports, err := controlplane.FreePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, processOptions{
		Program: program, CPUs: serverCPU, LogFile: logFile,
		Args: []string{"controller", "--kubeconfig=" + kubeconfig,
			"--leader-election-namespace=" + controllerNamespace, "--heartbeat-namespace=" + controllerNamespace,
			"--webhook-config-mode=url", fmt.Sprintf("--webhook-config-url=localhost:%d", ports[0]), "--webhook-config-namespace=" + controllerNamespace,
			fmt.Sprintf("--webhook-config-server-port=%d", ports[0]), "--webhook-config-cert-dir=" + filepath.Join(l.dir, "certificates"),
			"--max-concurrent-reconciles=25", "--metrics-bind-address=0", "--health-bind-address=127.0.0.1:0",
			"--gardener-version=v1.147.1", "--log-level=info", "--log-format=json"},
	})
}

// requests returns the number of requests of the controller to the Seed and to the Shoots between two times.
func (l *landscape) requests(from, to time.Time) (seed, shoot int, err error) {
	count := func(c *controlplane.Cluster) (int, error) {
		events, err := c.AuditLog(controllerUser)
		// The log contains a watch twice.
		all := map[types.UID]bool{}
		for _, event := range events {
			if at := event.RequestReceivedTimestamp.Time; at.After(from) && at.Before(to) {
				all[event.AuditID] = true
			}
		}
		return len(all), err
	}
	seed, seedErr := count(l.seed)
	shoot, shootErr := count(l.shoot)
	return seed, shoot, errors.Join(seedErr, shootErr)
}

func (l *landscape) stop() error {
	var errs []error
	if l.resourceManager != nil {
		errs = append(errs, l.resourceManager.Err(), l.resourceManager.Stop())
	}
	for _, cluster := range []*controlplane.Cluster{l.seed, l.shoot} {
		if cluster != nil {
			errs = append(errs, cluster.Stop())
		}
	}
	return errors.Join(errs...)
}
