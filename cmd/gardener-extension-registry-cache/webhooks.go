// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	webhookcmd "github.com/gardener/gardener/extensions/pkg/webhook/cmd"
	"sigs.k8s.io/controller-runtime/pkg/cluster"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// addWebhooks adds to mgr the webhooks, a runnable that registers them once, and the controller that renews their
// certificates. The Secrets with the certificates are in sourceCluster; if it is nil, in the cluster of mgr.
func addWebhooks(ctx context.Context, mgr manager.Manager, webhooks *webhookcmd.AddToManagerConfig, sourceCluster cluster.Cluster) error {
	if _, err := webhooks.AddToManager(ctx, &sequencedManager{Manager: mgr}, sourceCluster); err != nil {
		return fmt.Errorf("adding webhooks: %w", err)
	}
	return nil
}

// sequencedManager delays leader-elected controllers until earlier leader-elected one-shot runnables have finished.
//
// Gardener's library adds one runnable of each kind, and the manager would start them concurrently: the registration of
// the webhooks, which writes the webhook configuration, and the controller of the certificates, which reads it.
type sequencedManager struct {
	manager.Manager
	// finished has one channel for each one-shot runnable that was added. It is closed when the runnable has finished.
	finished []<-chan struct{}
}

// Add implements manager.Manager. It treats each leader-elected runnable that is not a controller as a one-shot
// runnable. If such a runnable fails, the manager stops. Runnables without leader election are added unchanged.
func (m *sequencedManager) Add(r manager.Runnable) error {
	if leading, ok := r.(manager.LeaderElectionRunnable); !ok || !leading.NeedLeaderElection() {
		return m.Manager.Add(r)
	}
	if _, ok := r.(controller.Controller); !ok {
		done := make(chan struct{})
		m.finished = append(m.finished, done)
		return m.Manager.Add(leaderRunnable(func(ctx context.Context) error {
			defer close(done)
			return r.Start(ctx)
		}))
	}
	earlier := m.finished
	return m.Manager.Add(leaderRunnable(func(ctx context.Context) error {
		for _, done := range earlier {
			select {
			case <-done:
			case <-ctx.Done():
				return nil
			}
		}
		return r.Start(ctx)
	}))
}

// leaderRunnable is a function that the manager runs only while it is the leader.
type leaderRunnable func(context.Context) error

func (r leaderRunnable) Start(ctx context.Context) error { return r(ctx) }

func (leaderRunnable) NeedLeaderElection() bool { return true }
