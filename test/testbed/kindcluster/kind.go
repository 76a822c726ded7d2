// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	kind "sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/log"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// readyWait is how long kind waits for the control plane's node to be ready.
	readyWait = 2 * time.Minute
	// cleanupWait bounds the removal of nodes after a cancelled creation.
	cleanupWait = 2 * time.Minute
)

// kindConfig is the configuration of a new cluster. kind's own CNI is left out, because the node image brings the
// configuration of the pod network with it.
func kindConfig(o Options) *v1alpha4.Cluster {
	config := &v1alpha4.Cluster{
		TypeMeta:   v1alpha4.TypeMeta{Kind: "Cluster", APIVersion: "kind.x-k8s.io/v1alpha4"},
		Name:       o.Name,
		Networking: v1alpha4.Networking{DisableDefaultCNI: true, KubeProxyMode: v1alpha4.ProxyMode(o.KubeProxyMode)},
		Nodes:      []v1alpha4.Node{{Role: v1alpha4.ControlPlaneRole}},
	}
	for range o.Workers {
		config.Nodes = append(config.Nodes, v1alpha4.Node{Role: v1alpha4.WorkerRole})
	}
	return config
}

func kindProvider(e *host.Engine, p *workspace.Progress) *kind.Provider {
	with := kind.ProviderWithPodman()
	if e.Name == host.Docker {
		with = kind.ProviderWithDocker()
	}
	return kind.NewProvider(kind.ProviderWithLogger(kindLogger{p}), with)
}

// withEnvironment calls kind, which runs the container engine in the environment of this process, with the environment
// that the engine needs.
func (c *Cluster) withEnvironment(call func() error) error {
	restore, err := setEnvironment(c.engine.Env())
	if err != nil {
		return err
	}
	defer restore()
	return call()
}

// untilCancelled calls kind to create the cluster. kind knows no context: when ctx ends, the nodes are removed, which
// makes kind fail at its next command, and untilCancelled returns after it.
func (c *Cluster) untilCancelled(ctx context.Context, create func() error) error {
	done := make(chan error, 1)
	go func() { done <- c.withEnvironment(create) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWait)
		defer cancel()
		early := c.removeNodes(cleanup)
		<-done //nolint:errcheck // the error only reports that the nodes were removed
		// kind may have made nodes after the first removal.
		if err := c.removeNodes(cleanup); err != nil {
			return errors.Join(context.Cause(ctx), early, err)
		}
		return context.Cause(ctx)
	}
}

// setEnvironment makes pairs the environment of this process and returns what restores the old one. Only what differs
// is touched.
func setEnvironment(pairs []string) (restore func(), err error) {
	old := environment(os.Environ())
	change := func(to map[string]string) error {
		for name := range environment(os.Environ()) {
			if _, stays := to[name]; !stays {
				if err := os.Unsetenv(name); err != nil {
					return fmt.Errorf("unsetting %s: %w", name, err)
				}
			}
		}
		for name, value := range to {
			if current, is := os.LookupEnv(name); is && current == value {
				continue
			}
			if err := os.Setenv(name, value); err != nil {
				return fmt.Errorf("setting %s: %w", name, err)
			}
		}
		return nil
	}
	// What was an environment can be one again, so this cannot fail.
	restore = func() { _ = change(old) }
	if err := change(environment(pairs)); err != nil {
		restore()
		return nil, err
	}
	return restore, nil
}

// environment returns NAME=value pairs by name; the last of a name counts.
func environment(pairs []string) map[string]string {
	byName := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		if name, value, found := strings.Cut(pair, "="); found && name != "" {
			byName[name] = value
		}
	}
	return byName
}

// kindLogger prints the steps that kind begins as progress, and nothing else of its messages: what fails is in its
// errors.
type kindLogger struct{ progress *workspace.Progress }

var (
	_ log.Logger     = kindLogger{}
	_ log.InfoLogger = kindLogger{}
)

func (kindLogger) Warn(string)           {}
func (kindLogger) Warnf(string, ...any)  {}
func (kindLogger) Error(string)          {}
func (kindLogger) Errorf(string, ...any) {}

func (l kindLogger) V(level log.Level) log.InfoLogger {
	if level > 0 {
		return log.NoopInfoLogger{}
	}
	return l
}

func (l kindLogger) Infof(format string, args ...any) { l.Info(fmt.Sprintf(format, args...)) }
func (kindLogger) Enabled() bool                      { return true }

func (l kindLogger) Info(message string) {
	if step, begins := kindStep(message); begins {
		l.progress.Printf("  kind: %s", step)
	}
}

// kindStep returns the step that begins with a message of kind, which looks like " • Preparing nodes 📦 📦  ...".
func kindStep(message string) (step string, begins bool) {
	if !strings.HasPrefix(strings.TrimSpace(message), "•") {
		return "", false
	}
	ascii := strings.Map(func(r rune) rune {
		if r > 127 {
			return -1
		}
		return r
	}, message)
	return strings.Join(strings.Fields(strings.TrimSuffix(strings.TrimSpace(ascii), "...")), " "), true
}
