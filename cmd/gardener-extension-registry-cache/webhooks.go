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

// addWebhooks adds webhooks to mgr, their registration, and the controller of their certificates, whose Secrets are in
// source, or in the cluster of mgr if source is nil.
func addWebhooks(ctx context.Context, mgr manager.Manager, webhooks *webhookcmd.AddToManagerConfig, source cluster.Cluster) error {
	if _, err := webhooks.AddToManager(ctx, &registrationFirst{Manager: mgr}, source); err != nil {
		return fmt.Errorf("adding webhooks: %w", err)
	}
	return nil
}

// registrationFirst is a manager whose controllers start when everything else has ended that was added before them and
// that is, as they are, for the leader alone. Gardener's library adds two such parts, which would start together: the
// registration of the webhooks, done once, writes to the same object that the controller of the certificates reads.
type registrationFirst struct {
	manager.Manager
	registered []<-chan struct{}
}

func (m *registrationFirst) Add(r manager.Runnable) error {
	if leading, ok := r.(manager.LeaderElectionRunnable); !ok || !leading.NeedLeaderElection() {
		return m.Manager.Add(r)
	}
	if _, ok := r.(controller.Controller); !ok {
		done := make(chan struct{})
		m.registered = append(m.registered, done)
		return m.Manager.Add(leaderRunnable(func(ctx context.Context) error {
			defer close(done)
			return r.Start(ctx)
		}))
	}
	registered := m.registered
	return m.Manager.Add(leaderRunnable(func(ctx context.Context) error {
		for _, done := range registered {
			select {
			case <-done:
			case <-ctx.Done():
				return nil
			}
		}
		return r.Start(ctx)
	}))
}

// leaderRunnable is what the leader alone runs.
type leaderRunnable func(context.Context) error

func (r leaderRunnable) Start(ctx context.Context) error { return r(ctx) }

func (leaderRunnable) NeedLeaderElection() bool { return true }
