// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

func TestControllersStartAfterTheRegistration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		parts := &runnables{}
		m := &registrationFirst{Manager: parts}
		register, started := make(chan struct{}), make(chan string, 3)
		failed := errors.New("the API server is gone")
		for _, part := range []manager.Runnable{
			leaderRunnable(func(context.Context) error {
				<-register
				return failed
			}),
			fakeController{name: "certificates", leader: true, started: started},
			fakeController{name: "reloader", started: started},
		} {
			if err := m.Add(part); err != nil {
				t.Fatal(err)
			}
		}
		errs := make(chan error, len(parts.added))
		for _, part := range parts.added {
			go func() { errs <- part.Start(t.Context()) }()
		}
		synctest.Wait()
		if got := <-started; got != "reloader" || len(started) > 0 {
			t.Errorf("%s was started before the registration had ended, want the reloader alone", got)
		}
		close(register)
		if got := <-started; got != "certificates" {
			t.Errorf("%s was started after the registration, want certificates", got)
		}
		var got []error
		for range parts.added {
			if err := <-errs; err != nil {
				got = append(got, err)
			}
		}
		if len(got) != 1 || got[0] != failed {
			t.Errorf("got %v, want the error of the registration", got)
		}
	})
}

func TestControllersThatWaitForTheRegistrationEnd(t *testing.T) {
	t.Parallel()
	parts := &runnables{}
	m := &registrationFirst{Manager: parts}
	for _, part := range []manager.Runnable{leaderRunnable(func(context.Context) error { return nil }), fakeController{name: "certificates", leader: true, started: make(chan string)}} {
		if err := m.Add(part); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Stopped before the registration could start.
	if err := parts.added[1].Start(ctx); err != nil {
		t.Errorf("got %v", err)
	}
	for _, part := range parts.added {
		if leading, ok := part.(manager.LeaderElectionRunnable); !ok || !leading.NeedLeaderElection() {
			t.Errorf("%T would run without leadership", part)
		}
	}
}

// runnables is a manager that only keeps what is added to it.
type runnables struct {
	manager.Manager
	added []manager.Runnable
}

func (r *runnables) Add(part manager.Runnable) error {
	r.added = append(r.added, part)
	return nil
}

// fakeController is a controller that sends its name when it is started, and ends.
type fakeController struct {
	controller.Controller
	name    string
	leader  bool
	started chan<- string
}

func (c fakeController) Start(context.Context) error {
	c.started <- c.name
	return nil
}

func (c fakeController) NeedLeaderElection() bool { return c.leader }
